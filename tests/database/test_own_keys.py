# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Primary keys that no id of ours is in: kept UUIDs, a parent's id, several columns (tests/own_keys)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.repair import repair
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
        "INSERT INTO accounts.users VALUES ('01912345-0000-7000-8000-000000000000', 'new@example.org')",
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
    users = ask(source, "SELECT id, email, manager_id FROM auth_user")
    assert rows(accounts, "SELECT id::text, email, manager_id::text FROM accounts.users") == {(kept[i], e, kept.get(m)) for i, e, m in users}
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
    assert carry(world).balance.passed
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
