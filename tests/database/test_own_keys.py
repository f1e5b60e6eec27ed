# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Primary keys that no id of ours is in: kept UUIDs, a parent's id, several columns (tests/own_keys)."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.content_digest import Content
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.repair import release, repair
from ansible.module_utils.migration.rollback import delete_rows, service_rows
from ansible.module_utils.migration.sessions.users import ForeseenUsers, MigratedUsers, User
from ansible.module_utils.migration.state.control import Migration
from ansible.module_utils.migration.validate import run as validate

from tests.conftest import execute
from tests.mapped_world import NAMESPACE, PLAN_TIME, ask, carry, compiled, index, look, make_tables, rows, stops, uuid_of

WORLD = Path(__file__).resolve().parents[1] / "own_keys"
SERVICES = ("accounts", "blog")


@pytest.fixture
def world(databases: Callable[..., Endpoint]) -> Context:
    source = databases("club")
    execute(source, (WORLD / "monolith.sql").read_text())
    targets = {service: databases(service) for service in SERVICES}
    return Context(plan=compiled(WORLD, SERVICES), source=source, targets=targets, control=databases("records"), namespace=NAMESPACE)


DAMAGE = {
    "accounts": (
        "UPDATE accounts.users SET email = 'other' WHERE email = 'u14@example.org'",
        "DELETE FROM accounts.profiles WHERE bio = 'bio 7'",
        "UPDATE accounts.profiles SET bio = 'other' WHERE bio = 'bio 9'",
        "INSERT INTO accounts.profiles SELECT id, 'stranger' FROM accounts.users WHERE email = 'u2@example.org'",
        "DELETE FROM accounts.memberships WHERE (user_id, group_id) = (SELECT user_id, group_id FROM accounts.memberships ORDER BY 1, 2 LIMIT 1)",
        "INSERT INTO accounts.memberships SELECT u.id, g.id FROM accounts.users u, accounts.groups g WHERE email = 'u8@example.org' AND name = 'group 1'",
        "INSERT INTO accounts.users VALUES ('01912345-0000-7000-8000-000000000000', 'new@example.org', NULL, '')",
    ),
    "blog": (
        "UPDATE blog.posts SET lead_id = gen_random_uuid() WHERE title = 'post 100'",
        "UPDATE blog.post_tags SET at = NULL WHERE tag LIKE 'back%' AND post_id = (SELECT id FROM blog.posts WHERE title = 'post 1')",
        "UPDATE blog.post_tags SET weight = 2 WHERE tag = '' AND post_id = (SELECT id FROM blog.posts WHERE title = 'post 2')",
    ),
}


def assert_equal_by_hand(world: Context) -> None:
    """Hold every table against the monolith with statements and ids of the tests alone."""
    source, accounts, blog = world.source, world.targets["accounts"], world.targets["blog"]
    kept = {key: str(public) for key, public in ask(source, "SELECT id, public_id::text FROM auth_user")}
    users = ask(source, "SELECT id, email, manager_id, password FROM auth_user")
    found = rows(accounts, "SELECT id::text, email, manager_id::text, password_hash FROM accounts.users")
    assert found == {(kept[i], e, kept.get(m), p) for i, e, m, p in users}
    profiles = {(kept[i], bio) for i, bio in ask(source, "SELECT user_id, bio FROM profile")}
    assert rows(accounts, "SELECT user_id::text, bio FROM accounts.profiles") == profiles == rows(blog, "SELECT user_id::text, bio FROM blog.authors")
    members = ask(source, "SELECT user_id, group_id FROM auth_user_groups")
    assert rows(accounts, "SELECT user_id::text, group_id::text FROM accounts.memberships") == {(kept[u], uuid_of("groups", int(str(g)))) for u, g in members}
    posts = ask(source, "SELECT id, author_id, editor_id, lead_id, title FROM post")
    wanted = {(uuid_of("posts", i), kept[a], uuid_of("groups", e) if e else None, kept.get(p), t) for i, a, e, p, t in posts}  # type: ignore[arg-type]
    assert rows(blog, "SELECT id::text, author_id::text, editor_id::text, lead_id::text, title FROM blog.posts") == wanted
    tags = ask(source, "SELECT post_id, tag, weight::text, (at AT TIME ZONE 'UTC')::text FROM post_tag")
    assert rows(blog, "SELECT post_id::text, tag, weight::text, at::text FROM blog.post_tags") == {(uuid_of("posts", p), *rest) for p, *rest in tags}  # type: ignore[arg-type]
    mapped = rows(accounts, "SELECT source_key, id::text FROM migration.id_map WHERE entity = 'users'")
    assert mapped == {(str(key), public) for key, public in kept.items()}


def test_kept_ids_and_keys_of_others_are_carried_proven_repaired_and_removed(world: Context) -> None:
    assert stops(world) == []
    assert [(item.column, item.count) for item in look(world).findings if item.target == "blog.posts" and "becomes NULL" in item.next_step] == [("lead_id", 12)]
    make_tables(world)
    with closing(driver.connect(world.source, application_name="tests", autocommit=True)) as connection:
        foreseen = ForeseenUsers(connection, "public", world.plan, NAMESPACE).find([7, 8, 5000], passwords=True)
    assert carry(world).balance.passed
    with closing(driver.connect(world.targets["accounts"], application_name="tests", autocommit=True)) as connection:
        assert MigratedUsers(connection, world.plan, NAMESPACE).find([7, 8, 5000], passwords=True) == foreseen
    kept = dict(ask(world.source, "SELECT id, public_id::text FROM auth_user WHERE id IN (7, 8)"))
    assert foreseen == {number: User(str(kept[number]), f"hash {number}") for number in (7, 8)}
    index(world)
    found = validate.compare(world, PLAN_TIME, options=validate.Options(accounts=True))
    assert found.passed, [*(item.line for item in found.findings), *(item.line for item in found.references)]
    assert {(item.column, item.nulled) for item in found.references if item.nulled} == {("lead_id", 12)}
    assert_equal_by_hand(world)
    for service, statements in DAMAGE.items():
        execute(world.targets[service], *statements)
    found = validate.compare(world, PLAN_TIME, options=validate.Options(settle_attempts=0))
    assert found.differences == 11, [item.line for item in found.findings]
    planned = repair.plan_repair(found.to_dict(), after_cutover=False)
    assert repair.apply_repair(world, PLAN_TIME, planned).rows == 11
    assert validate.compare(world, PLAN_TIME).passed
    assert_equal_by_hand(world)


def test_a_service_row_is_told_from_a_migrated_one_by_the_id_map_and_rollback_leaves_it(world: Context) -> None:
    """Kept ids have any version, so nothing may be concluded from it."""
    accounts = world.targets["accounts"]
    make_tables(world)
    carry(world)
    execute(accounts, "INSERT INTO accounts.users VALUES ('01912345-0000-8000-8000-000000000000', 'own@example.org', NULL, '')")
    execute(world.source, "DELETE FROM auth_user WHERE id = 898")  # to whom nothing refers: now only the id map knows of it
    found = validate.compare(world, PLAN_TIME, options=validate.Options(settle_attempts=0, after_cutover=True))
    kinds = {name: dict(result.kinds) for name, result in found.tables.items() if result.kinds}
    assert kinds["accounts.users"] == {"service_row": 1, "extra": 1}
    assert kinds["accounts.migration.id_map"] == {"extra": 1}
    dumped: Any = SimpleNamespace(content=Content((), (), 0, ""))  # nothing was there before
    strangers = {item.table: (item.rows, item.computed) for item in service_rows.unaccounted(world, "accounts", PLAN_TIME, dumped, None)}
    assert strangers == {"accounts.users": (2, 1)}  # one of which was migrated
    migration = Migration(1, "1234", "open", "", "", PLAN_TIME, None, datetime.now(tz=UTC))
    foreseen = {service: delete_rows.foresee(world, service, migration) for service in SERVICES}
    assert foreseen == {service: delete_rows.remove(world, service, migration) for service in SERVICES}
    assert ask(accounts, "SELECT email FROM accounts.users") == [("own@example.org",)]
    for table in ("accounts.profiles", "accounts.memberships", "accounts.groups"):
        assert ask(accounts, f"SELECT count(*) FROM {table}") == [(0,)]
    assert ask(world.targets["blog"], "SELECT count(*) FROM blog.post_tags") == [(0,)]


def test_rows_that_changed_between_two_snapshots_are_settled(world: Context) -> None:
    make_tables(world)
    carry(world)
    index(world)
    for service in SERVICES:
        execute(world.targets[service], "UPDATE migration.pin SET finished_at = NULL")
        execute(world.targets[service], "UPDATE migration.chunks SET epoch = 'an older one' WHERE id = 1")
    execute(
        world.source,
        "DELETE FROM auth_user_groups WHERE id % 5 = 0",
        "DELETE FROM profile WHERE user_id = 899",
        "DELETE FROM post WHERE author_id = 899",
        "INSERT INTO auth_user_groups SELECT 100000, 900, 9",
        "UPDATE auth_user SET email = CASE id WHEN 1 THEN 'u2@example.org' ELSE 'u1@example.org' END WHERE id IN (1, 2)",
    )
    assert carry(world).compared
    found = validate.compare(world, PLAN_TIME)
    assert found.passed, [item.line for item in found.findings]
    assert_equal_by_hand(world)


def test_a_kept_id_must_be_there_be_unique_and_be_nobody_elses_row(world: Context) -> None:
    execute(
        world.source,
        "ALTER TABLE auth_user ALTER public_id DROP NOT NULL, DROP CONSTRAINT auth_user_public_id_key",
        "UPDATE auth_user SET public_id = NULL WHERE id IN (3, 5)",
        "UPDATE auth_user SET public_id = (SELECT public_id FROM auth_user WHERE id = 7) WHERE id = 9",
    )
    execute(world.source, "UPDATE post SET author_id = 2 WHERE id = 77")  # whose author has no profile, which the service's foreign key names
    make_tables(world)
    execute(world.targets["blog"], "INSERT INTO blog.authors SELECT '01912345-6789-7001-8000-000000000000', 'knows the UUID already'")
    stopping = [item for item in look(world).findings if item.level == "stop"]
    assert [(item.rule, item.count, item.keys) for item in stopping if item.target == "blog.posts"] == [("foreign_key", 1, ("77",))]
    assert [(item.rule, item.count) for item in stopping if item.target == "blog.authors"] == [("unique", 2), ("collision", 1)]
    found = [item for item in stopping if item.target == "accounts.users"]
    assert [(item.rule, item.count, item.keys) for item in found] == [("not_null", 2, ("3", "5")), ("unique", 2, ("7", "9"))]


def quarantining(tmp_path: Path) -> Plan:
    """Return the world's plan with users that have no e-mail address quarantined, and references to them NULL where they may be."""
    changed = tmp_path / "mappings"
    shutil.copytree(WORLD / "mappings", changed)
    users = changed / "accounts" / "users.yml"
    users.write_text(users.read_text() + "policies:\n  email: {blank: quarantine}\n  manager_id: {foreign_key: null}\n")
    return compiled(WORLD, SERVICES, mappings=changed)


def test_a_reference_to_a_quarantined_row_becomes_null_and_comes_back_with_it(world: Context, tmp_path: Path) -> None:
    world = dataclasses.replace(world, plan=quarantining(tmp_path))
    execute(world.source, "UPDATE auth_user SET email = '' WHERE id = 4")  # who manages 40 to 49 and leads posts
    make_tables(world)
    assert carry(world).balance.verdict.endswith("; 24 of their references became NULL by policy")
    index(world)
    found = validate.compare(world, PLAN_TIME, options=validate.Options(accounts=True))
    assert found.passed, [*(item.line for item in found.findings), *(item.line for item in found.references)]
    assert {(item.target, item.column, item.nulled) for item in found.references if item.nulled} == {
        ("accounts.users", "manager_id", 10),
        ("blog.posts", "lead_id", 14),
    }
    accounts, blog = world.targets["accounts"], world.targets["blog"]
    assert ask(accounts, "SELECT count(*) FROM accounts.users WHERE manager_id IS NULL AND email ~ '^u4[0-9]@'") == [(10,)]
    assert ask(blog, "SELECT count(*) FROM blog.posts WHERE lead_id IS NULL") == [(14,)]
    # Another value than NULL is a difference.
    execute(blog, "UPDATE blog.posts SET lead_id = gen_random_uuid() WHERE title = 'post 3'")
    assert validate.compare(world, PLAN_TIME, options=validate.Options(settle_attempts=0)).differences == 1
    execute(blog, "UPDATE blog.posts SET lead_id = NULL WHERE title = 'post 3'")
    execute(world.source, "UPDATE auth_user SET email = 'u4@example.org' WHERE id = 4")
    planned = release.plan_release(world, PLAN_TIME)
    assert planned.by_table == {"accounts.users": 1, "accounts.migration.id_map": 1}
    release.apply_release(world, PLAN_TIME, planned)
    found = validate.compare(world, PLAN_TIME)
    assert found.passed, [item.line for item in found.findings]
    assert_equal_by_hand(world)


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("accounts/users.yml", ", mints: users", "", "'mints' names its entity"),
        ("accounts/profiles.yml", "map: users", "map: users, mints: profiles", "the id is one of 'users' already"),
        ("accounts/memberships.yml", "{from: id}", "{from: id, mints: members}", "is not one uuid, so 'key' cannot mint"),
        ("accounts/memberships.yml", "  group_id: {from: group_id, map: groups}", "", "'columns' gives it: group_id is missing"),
        ("accounts/profiles.yml", "{bio: bio}", "{bio: bio, user_id: {from: user_id, map: users}}", "'user_id' is given by 'key'"),
        ("blog/posts.yml", "lead_id: {foreign_key", "author_id: {foreign_key", "author_id is NOT NULL"),
        ("blog/posts.yml", "lead_id: {foreign_key", "title: {foreign_key", "'title' is no reference through an id map"),
        ("blog/posts.yml", "{foreign_key: null}", "{unique: null}", "'null' is for foreign_key alone"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(tmp_path: Path, file: str, old: str, new: str, fault: str) -> None:
    changed = tmp_path / "mappings"
    shutil.copytree(WORLD / "mappings", changed)
    path = changed / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(MigrationError, match=re.escape(fault)):
        compiled(WORLD, SERVICES, mappings=changed)
