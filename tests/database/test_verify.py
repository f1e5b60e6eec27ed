# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Validation finds what differs, names it to row and column, and finds nothing where nothing differs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan.model import Policy
from ansible.module_utils.migration.postgres.driver import Endpoint, connect, rows, scalar
from ansible.module_utils.migration.validate import authorization, drilldown
from ansible.module_utils.migration.validate import run as validate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.mutation import campaign
from tests.mutation import world as w

QUICK = validate.Options(settle_attempts=0)


def run(endpoint: Endpoint, *statements: str) -> None:
    connection = connect(endpoint, application_name="tests", autocommit=True)
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


def ask(endpoint: Endpoint, statement: str) -> str:
    connection = connect(endpoint, application_name="tests", autocommit=True)
    try:
        return str(scalar(connection, statement))
    finally:
        connection.close()


@pytest.fixture
def world(postgres: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    return w.cloned_world(postgres, databases)


@pytest.fixture
def compare(world: w.World) -> Callable[..., validate.Verification]:
    return lambda **options: validate.compare(world.context, w.PLAN_TIME, options=dataclasses.replace(QUICK, **options))


def lines(found: validate.Verification) -> list[str]:
    return [finding.line for finding in found.findings]


def one_user(world: w.World, where: str = "true") -> str:
    return ask(world.targets["auth_service"], f"SELECT id FROM auth_service.users WHERE {where} ORDER BY username LIMIT 1")


@pytest.mark.parametrize("method", ["record", "sha256"])
def test_equal_sides_are_equal_in_every_table(compare: Callable[..., validate.Verification], method: str) -> None:
    found = compare(digest=method)
    assert found.passed, lines(found) + [reference.line for reference in found.references]
    assert found.digest.method == method
    assert len(found.tables) == 10
    assert all(table.source_digest == table.target_digest and table.source_rows == table.target_rows > 0 for table in found.tables.values())


@pytest.mark.parametrize("method", ["record", "sha256"])
def test_the_seeded_faults_are_named_by_table_key_and_column(world: w.World, compare: Callable[..., validate.Verification], method: str) -> None:
    auth, user = world.targets["auth_service"], world.targets["user_service"]
    byte = one_user(world, "password_hash LIKE 'pbkdf2%'")
    empty = ask(user, "SELECT id FROM user_service.profiles WHERE phone IS NULL ORDER BY id LIMIT 1")
    gone = ask(user, "SELECT id FROM user_service.student_profiles ORDER BY id LIMIT 1")
    moved = ask(user, "SELECT id FROM user_service.roles ORDER BY id LIMIT 1")
    extra, wrong = "11111111-2222-8333-8444-555555555555", "00000000-0000-8000-8000-00000000000f"
    run(auth, f"UPDATE auth_service.users SET password_hash = overlay(password_hash PLACING 'X' FROM 30) WHERE id = '{byte}'")
    run(
        user,
        f"UPDATE user_service.profiles SET phone = '' WHERE id = '{empty}'",
        f"DELETE FROM user_service.student_profiles WHERE id = '{gone}'",
        f"INSERT INTO user_service.company_profiles (id, user_id, company_name) VALUES ('{extra}', '{byte}', 'x')",
        f"UPDATE user_service.roles SET id = '{wrong}' WHERE id = '{moved}'",
    )
    found = compare(digest=method)
    named = {(finding.target, finding.kind, finding.id, finding.columns) for finding in found.findings}
    assert named == {
        ("auth_service.users", "different", byte, ("password_hash",)),
        ("user_service.profiles", "different", empty, ("phone",)),
        ("user_service.student_profiles", "missing", gone, ()),
        ("user_service.company_profiles", "extra", extra, ()),
        ("user_service.roles", "missing", moved, ()),
        ("user_service.roles", "extra", wrong, ()),
    }
    assert found.differences == 6
    assert not found.passed
    assert all(finding.source_key for finding in found.findings if finding.kind != "extra")
    assert "X" not in " ".join(lines(found))


def test_a_change_of_the_source_is_a_difference(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    run(
        world.source,
        "UPDATE auth_user SET email = email || 'x' WHERE username = 'ada'",
        "DELETE FROM auth_user_groups WHERE id = (SELECT min(id) FROM auth_user_groups)",
    )
    found = compare()
    assert ("auth_service.users", "different", ("email",)) in {(finding.target, finding.kind, finding.columns) for finding in found.findings}
    assert found.tables["user_service.roles"].kinds == {"extra": 1}


def test_quarantined_rows_are_left_out_and_counted(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    user = world.targets["user_service"]
    key = ask(world.source, "SELECT min(id) FROM students")
    one = validate.compare(world.context, w.PLAN_TIME, options=QUICK)
    run(
        user,
        f"INSERT INTO migration.rejects (target, part, source_key, rule, reason) VALUES ('user_service.student_profiles', '', '{key}', 'blank', 'test')",
    )
    found = compare()
    assert found.tables["user_service.student_profiles"].kinds == {"extra": 1}
    run(user, f"DELETE FROM user_service.student_profiles WHERE id = '{found.findings[0].id}'")
    found = compare()
    assert found.passed
    assert found.tables["user_service.student_profiles"].rejected == 1
    assert found.tables["user_service.student_profiles"].source_rows == one.tables["user_service.student_profiles"].source_rows - 1
    assert found.verdict.endswith(", 1 row quarantined")


def test_a_reference_across_databases_without_its_row_is_named(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    nobody = "99999999-9999-8999-8999-999999999999"
    row = ask(world.targets["user_service"], "SELECT id FROM user_service.profiles ORDER BY id LIMIT 1")
    run(world.targets["user_service"], f"UPDATE user_service.profiles SET user_id = '{nobody}' WHERE id = '{row}'")
    found = compare()
    assert {(reference.target, reference.column): reference.keys for reference in found.references if reference.dangling} == {
        ("user_service.profiles", "user_id"): (f"id {row}",)
    }


def test_a_source_row_that_refers_to_nobody_is_named(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    run(world.source, "UPDATE users_role SET granted_by = 99999999 WHERE id = (SELECT min(id) FROM users_role)")
    w.carry_anew(world, "user_service.roles")
    found = compare()
    assert found.differences == 0
    assert not found.passed
    assert [(reference.column, reference.dangling) for reference in found.references if reference.dangling] == [("granted_by", 1)]


def test_after_the_cutover_a_services_own_rows_are_counted_apart(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    run(
        world.targets["user_service"],
        "INSERT INTO user_service.profiles (user_id, profile_type) SELECT user_id, 'student' FROM user_service.profiles LIMIT 2",
    )
    assert compare().tables["user_service.profiles"].differences == 2
    found = compare(after_cutover=True)
    assert found.passed
    assert found.tables["user_service.profiles"].kinds == {"service_row": 2}


def test_differences_that_vanish_while_somebody_writes_are_no_differences(world: w.World) -> None:
    run(world.source, "UPDATE auth_user SET last_name = 'Lovelace' WHERE username = 'ada'")
    snapshots: list[str] = []

    def catch_up(what: str, done: int, total: int) -> None:
        if not snapshots:
            snapshots.append(what)
            w.carry_anew(world, "user_service.profiles")

    options = validate.Options(settle_attempts=3, settle_seconds=0.01)
    found = validate.compare(world.context, w.PLAN_TIME, options=options, progress=catch_up)
    assert snapshots
    assert found.passed
    assert "read again until none was left" in found.consistency


def test_differences_that_stay_while_somebody_writes_persist(world: w.World) -> None:
    run(world.source, "UPDATE auth_user SET email = 'new@example.org' WHERE username = 'ada'")

    def write(what: str, done: int, total: int) -> None:
        run(world.source, "UPDATE institutions SET name = name")

    options = validate.Options(settle_attempts=1, settle_seconds=0.01)
    found = validate.compare(world.context, w.PLAN_TIME, options=options, progress=write)
    assert found.differences == 1
    assert "persisted" in found.consistency


def test_validation_writes_nothing_and_needs_reading_only(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    before = [ask(endpoint, "SELECT txid_current_snapshot()") for endpoint in world.targets.values()]
    compare()
    assert [ask(endpoint, "SELECT txid_current_snapshot()") for endpoint in world.targets.values()] == before


def test_findings_beyond_the_limit_are_counted(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    run(world.targets["user_service"], "UPDATE user_service.profiles SET is_public = NOT is_public")
    found = compare(findings_kept=5)
    assert len(found.findings) == 5
    assert found.differences == found.tables["user_service.profiles"].target_rows


def test_a_missing_table_is_one_clear_line(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    run(world.targets["user_service"], "DROP TABLE user_service.roles")
    with pytest.raises(MigrationError, match=r'user_service\.roles: the table "user_service"\."roles" does not exist; run playbooks/schema\.yml'):
        compare()


def test_an_unknown_table_is_one_clear_line(world: w.World) -> None:
    with pytest.raises(MigrationError, match=r"no target 'auth_service\.userz'"):
        validate.compare(world.context, w.PLAN_TIME, tables=["auth_service.userz"])


def test_a_monolith_in_another_encoding_is_compared_by_characters(databases: Callable[..., Endpoint], postgres: PostgresServer) -> None:
    world = w.cloned_world(postgres, databases)
    name = f"latin_{world.source.dbname}"
    run(postgres.endpoint(), f"CREATE DATABASE {name} TEMPLATE template0 ENCODING LATIN1 LOCALE_PROVIDER libc LOCALE 'C'")
    try:
        latin = dataclasses.replace(world.source, dbname=name)
        run(latin, w.MONOLITH, "INSERT INTO auth_user SELECT 5, 'é', NULL, false, 'é', '', '', 'é@x', false, true, '2020-01-01Z'")
        plan = dataclasses.replace(world.plan, targets=tuple(target for target in world.plan.targets if target.name == "auth_service.users"))
        other = w.World(dataclasses.replace(world.context, source=latin, plan=plan), plan, latin, world.targets)
        run(world.targets["auth_service"], "TRUNCATE auth_service.users CASCADE")
        w.carry(other, "auth_service.users")
        assert validate.compare(other.context, w.PLAN_TIME, tables=["auth_service.users"], options=QUICK).passed
    finally:
        run(postgres.endpoint(), f"DROP DATABASE {name}")


def test_rights_are_compared_without_the_mappings(world: w.World) -> None:
    assert authorization.compare(world.context, w.PLAN_TIME).passed
    auth, user = world.targets["auth_service"], world.targets["user_service"]
    password, permission = one_user(world), ask(auth, "SELECT user_id FROM auth_service.user_permissions ORDER BY id LIMIT 1")
    run(auth, f"UPDATE auth_service.users SET password_hash = password_hash || 'x' WHERE id = '{password}'")
    run(auth, "DELETE FROM auth_service.user_permissions WHERE id = (SELECT id FROM auth_service.user_permissions ORDER BY id LIMIT 1)")
    role = ask(user, "SELECT user_id FROM user_service.roles WHERE role_type = 'staff' ORDER BY id LIMIT 1")
    run(user, f"UPDATE user_service.roles SET role_type = 'student' WHERE user_id = '{role}' AND role_type = 'staff' AND permissions IS NULL")
    found = authorization.compare(world.context, w.PLAN_TIME)
    named = dict(found.findings)
    assert "credentials" in named[password]
    assert "permissions" in named[permission]
    assert "roles" in named[role]


def test_a_placeholder_of_a_policy_is_what_the_rights_are_compared_with(world: w.World) -> None:
    run(world.source, "UPDATE auth_user SET password = ' ' WHERE username = 'ada'")
    run(world.targets["auth_service"], "UPDATE auth_service.users SET password_hash = '!ada' WHERE username = 'ada'")
    policy = Policy("password_hash", "blank", "placeholder", "CASE username WHEN 'ada' THEN '!ada' ELSE password END", "users.yml:1")
    targets = tuple(
        dataclasses.replace(target, policies=(policy,)) if target.name == "auth_service.users" else target for target in world.context.plan.targets
    )
    chosen = dataclasses.replace(world.context, plan=dataclasses.replace(world.context.plan, targets=targets))
    found = authorization.compare(chosen, w.PLAN_TIME)
    assert found.passed, found.lines
    blank = int(ask(world.source, "SELECT count(*) FROM auth_user WHERE btrim(password) = ''"))
    assert found.placeholders == blank > 0
    assert "with a placeholder for name or password)" in found.verdict
    assert authorization.compare(world.context, w.PLAN_TIME).differing == 1
    run(world.targets["auth_service"], "UPDATE auth_service.users SET password_hash = '!bob' WHERE username = 'ada'")
    assert authorization.compare(chosen, w.PLAN_TIME).differing == 1


def test_a_mapping_that_forgets_groups_cannot_agree_with_itself(world: w.World) -> None:
    held = next(target for target in world.plan.targets if target.name == "auth_service.user_permissions")
    part = dataclasses.replace(held.parts[0], query="SELECT user_id, permission_id FROM auth_user_user_permissions", touches=())
    plan = dataclasses.replace(world.plan, targets=tuple(dataclasses.replace(t, parts=(part,)) if t is held else t for t in world.plan.targets))
    wrong = w.World(dataclasses.replace(world.context, plan=plan), plan, world.source, world.targets)
    w.carry_anew(wrong, held.name)
    assert validate.compare(wrong.context, w.PLAN_TIME, options=QUICK).passed
    found = authorization.compare(wrong.context, w.PLAN_TIME)
    assert not found.passed
    assert {what for _, what in found.findings} == {"permissions"}


def test_every_damage_of_a_short_campaign_is_found(databases: Callable[..., Endpoint]) -> None:
    score = campaign.run(databases, mutations=75, users=150, seed=4)
    assert score.line == "75 mutations, 75 found, 0 missed, 0 false alarms", score.missed + score.false_alarms


def test_clean_random_data_raises_nothing(databases: Callable[..., Endpoint]) -> None:
    for seed in (11, 12):
        made = w.make_world(databases, users=90, seed=seed)
        connection = connect(made.targets["auth_service"], application_name="tests")
        assert rows(connection, "SELECT count(*) FROM auth_service.users")[0][0] == 91
        connection.close()
        assert validate.compare(made.context, w.PLAN_TIME, options=QUICK).passed


def test_many_differences_are_opened_in_small_batches_to_the_same_findings(
    world: w.World, compare: Callable[..., validate.Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world.targets["auth_service"], "UPDATE auth_service.users SET username = username || 'x' WHERE get_byte(uuid_send(id), 3) < 60")
    run(world.targets["user_service"], "UPDATE user_service.roles SET is_active = NOT is_active")
    expected = sorted(lines(compare()))
    monkeypatch.setattr(drilldown, "OPENED_ROWS", 12)
    assert sorted(lines(compare())) == expected
    assert len(expected) > 100


def test_rows_without_an_id_are_counted_once_each(
    world: w.World, compare: Callable[..., validate.Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = world.targets["auth_service"]
    run(target, "ALTER TABLE migration.id_map ALTER id DROP NOT NULL")
    run(target, "INSERT INTO migration.id_map SELECT entity, source_key || 'x', NULL FROM migration.id_map LIMIT 2")
    run(target, "DELETE FROM migration.id_map WHERE get_byte(uuid_send(id), 1) < 60")
    monkeypatch.setattr(drilldown, "OPENED_ROWS", 3)
    found = compare()
    assert [finding.kind for finding in found.findings if finding.id is None] == ["extra", "duplicate"]
