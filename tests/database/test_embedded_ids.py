# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ids inside arrays, documents and texts, computed and kept ones (tests/embedded_ids)."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.repair import repair
from ansible.module_utils.migration.validate import run as validate

from tests.conftest import execute
from tests.mapped_world import NAMESPACE, PLAN_TIME, ask, carry, compiled, index, look, make_tables, stops, uuid_of

WORLD = Path(__file__).resolve().parents[1] / "embedded_ids"
SERVICES = ("desk",)


@pytest.fixture
def world(databases: Callable[..., Endpoint]) -> Context:
    source = databases("old")
    execute(source, (WORLD / "monolith.sql").read_text())
    return Context(plan=compiled(WORLD, SERVICES), source=source, targets={"desk": databases("desk")}, control=databases("records"), namespace=NAMESPACE)


def assert_equal_by_hand(world: Context) -> None:
    """Hold every value against the monolith's, element by element, in Python."""
    source, desk = world.source, world.targets["desk"]
    teams = {str(key): public for key, public in ask(source, "SELECT id, public_id::text FROM team")}

    def user(value: Any) -> str | None:
        return None if value is None else uuid_of("users", int(value))

    def settings(value: Any) -> Any:
        if isinstance(value, dict):
            if "owner" in value:
                value["owner"] = user(value["owner"])
            if "teams" in value:
                value["teams"] = [item and teams[str(item)] for item in value["teams"]] if isinstance(value["teams"], list) else teams[str(value["teams"])]
            for item in value["deep"].get("a b", ()) if value.get("deep") else ():
                if "by" in item:
                    item["by"] = user(item["by"])
        return value

    wanted = {uuid_of("users", i): ([*map(user, f)], s and [*map(user, s)]) for i, f, s in ask(source, "SELECT id, friend_ids, seen FROM auth_user")}  # type: ignore[call-overload]
    assert {i: (f, s) for i, f, s in ask(desk, "SELECT id::text, friends::text[], seen::text[] FROM desk.users")} == wanted
    notes = {
        uuid_of("desk.notes", i): (user(o), d and settings(json.loads(str(d))), n and [k and uuid_of("labels", k) for k in n])  # type: ignore[arg-type, attr-defined]
        for i, o, d, n in ask(source, "SELECT id, owner, settings::text, labels FROM note")
    }
    found = ask(desk, "SELECT id::text, owner_id::text, settings::text, labels::text[] FROM desk.notes")
    assert {i: (o, d and json.loads(str(d)), n) for i, o, d, n in found} == notes
    assert ask(desk, "SELECT count(*) FROM desk.notes WHERE settings::text LIKE '%\"n\": 1.10,%'") == [(150,)]


DAMAGE = (
    "UPDATE desk.users SET friends = friends[2:3] || friends[1:1] WHERE name = 'user 1'",
    "UPDATE desk.users SET seen = '{}' WHERE name = 'user 3'",
    "UPDATE desk.notes SET settings = jsonb_set(settings, '{teams,0}', to_jsonb(gen_random_uuid()))"
    " WHERE settings @> '{\"n\": 1.1}' AND (settings -> 'teams' ->> 0) = md5('7')::uuid::text",
    "UPDATE desk.notes SET settings = jsonb_set(settings, '{owner}', '\"7\"')"
    " WHERE id = (SELECT min(id::text)::uuid FROM desk.notes WHERE settings ? 'other')",
)


def test_ids_inside_values_are_carried_proven_and_repaired(world: Context) -> None:
    assert stops(world) == []
    make_tables(world)
    assert carry(world).balance.passed
    index(world)
    found = validate.compare(world, PLAN_TIME, options=validate.Options(accounts=True))
    assert found.passed, [*(item.line for item in found.findings), *(item.line for item in found.references)]
    followed = {(item.target, item.column): item.checked for item in found.references}
    assert followed["desk.users", "friends [*]"] == 4 * 675
    assert followed["desk.users", "seen [*]"] == 600
    assert followed["desk.notes", "settings $.owner"] == 300
    assert followed["desk.notes", "settings $.teams[*]"] == 450
    assert followed["desk.notes", 'settings $.deep."a b"[*].by'] == 150
    assert followed["desk.notes", "labels [*]"] == 450
    assert_equal_by_hand(world)
    execute(world.targets["desk"], *DAMAGE)
    found = validate.compare(world, PLAN_TIME, options=validate.Options(settle_attempts=0))
    hanging = {item.column: item.dangling for item in found.references if item.dangling}
    assert hanging == {"settings $.teams[*]": 30, "settings $.owner": 1}
    planned = repair.plan_repair(found.to_dict(), after_cutover=False)
    assert repair.apply_repair(world, PLAN_TIME, planned).rows == found.differences == 33
    assert validate.compare(world, PLAN_TIME).passed
    assert_equal_by_hand(world)


FAULTS = (
    "UPDATE auth_user SET friend_ids = friend_ids || ARRAY[5000, 5001] WHERE id IN (8, 12)",
    "UPDATE auth_user SET seen = ARRAY['1', 'x'] WHERE id = 5",
    "UPDATE auth_user SET seen = '[0:0]={1}' WHERE id = 6",
    "UPDATE auth_user SET friend_ids = '{{1,2},{3,4}}' WHERE id = 7",
    "UPDATE note SET owner = '007' WHERE id = 20",
    "UPDATE note SET owner = '5000' WHERE id = 21",
    "UPDATE note SET settings = '{\"owner\": 1.5}' WHERE id = 22",
    "UPDATE note SET settings = '{\"owner\": [1]}' WHERE id = 23",
    "UPDATE note SET settings = '{\"deep\": [{\"a b\": [{\"by\": 1}]}]}' WHERE id = 24",
    "UPDATE note SET settings = '{\"teams\": [1, 31]}' WHERE id = 25",
    "UPDATE note SET labels = ARRAY['l 1', 'gone'] WHERE id = 26",
)
EXPECTED = {
    ("desk.users", "friends", "foreign_key", 2, ("8", "12")),
    ("desk.users", "seen", "type", 2, ("5", "6")),
    ("desk.users", "friends", "type", 1, ("7",)),
    ("desk.notes", "owner_id", "changed", 1, ("20",)),
    ("desk.notes", "owner_id", "foreign_key", 1, ("21",)),
    ("desk.notes", "settings", "type", 2, ("22", "23")),
    ("desk.notes", "settings", "type", 1, ("24",)),
    ("desk.notes", "settings", "foreign_key", 1, ("25",)),
    ("desk.notes", "labels", "foreign_key", 1, ("26",)),
}


def quarantining(tmp_path: Path) -> Plan:
    changed = tmp_path / "mappings"
    shutil.copytree(WORLD / "mappings", changed)
    users, notes = changed / "desk" / "users.yml", changed / "desk" / "notes.yml"
    every = "{type: quarantine, foreign_key: quarantine}"
    users.write_text(users.read_text() + f"policies: {{friends: {every}, seen: {every}}}\n")
    notes.write_text(notes.read_text() + f"policies: {{owner_id: {{changed: quarantine, foreign_key: quarantine}}, settings: {every}, labels: {every}}}\n")
    return compiled(WORLD, SERVICES, mappings=changed)


def test_an_id_inside_a_value_that_names_no_row_is_found_and_can_be_quarantined_with_what_depends_on_it(world: Context, tmp_path: Path) -> None:
    execute(world.source, *FAULTS)
    report = look(world)
    assert {(item.target, item.column, item.rule, item.count, item.keys) for item in report.findings if item.level == "stop" and item.target} == EXPECTED
    world = dataclasses.replace(world, plan=quarantining(tmp_path))
    assert stops(world) == []
    make_tables(world)
    outcome = carry(world)
    assert outcome.balance.passed
    desk = world.targets["desk"]
    gone = {"5", "6", "7", "8", "12"}
    kept = {str(key[0]) for key in ask(desk, "SELECT source_key FROM migration.id_map WHERE entity = 'users'")}
    refused = {str(key[0]) for key in ask(desk, "SELECT source_key FROM migration.rejects WHERE target = 'desk.users'")}
    assert gone <= refused
    assert kept.isdisjoint(refused)
    # Whoever names a row that stays behind inside an array stays behind too: 901 - 8 is 893.
    assert "893" in refused
    index(world)
    found = validate.compare(world, PLAN_TIME, options=validate.Options(accounts=True))
    assert found.passed, [*(item.line for item in found.findings), *(item.line for item in found.references)]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("$.owner: users", "owner: users", "'owner' is no path"),
        ("$.owner: users", "$.owner: user", "no mapping mints 'user'"),
        ("$.owner: users", "$.teams: users", "lies where another does"),
        ("$.owner: users", "$.teams.x: users", "lies where another does"),
        ("labels: {from: labels, map: labels}", "labels: {from: labels, map: {$.a: labels}}", "is for a jsonb column"),
    ],
)
def test_a_path_that_cannot_be_meant_is_refused(tmp_path: Path, old: str, new: str, fault: str) -> None:
    changed = tmp_path / "mappings"
    shutil.copytree(WORLD / "mappings", changed)
    path = changed / "desk" / "notes.yml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(MigrationError, match=re.escape(fault)):
        compiled(WORLD, SERVICES, mappings=changed)
