# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A wrong mapping agrees with itself, and so do its rows; the rights of users, read without it, do not."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.contract.parse import parse_contract
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan.compiler import compile_plan
from ansible.module_utils.migration.plan.mapping_files import read_mappings
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.validate import authorization, test_logins
from ansible.module_utils.migration.validate import run as validate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.database.test_verify import QUICK, ask, run
from tests.mutation import world as w

USERS, HELD, ROLES, PERMISSIONS = "auth_service/users.yml", "auth_service/user_permissions.yml", "user_service/roles.yml", "auth_service/permissions.yml"
# What somebody could write into a mapping: the file, what is there, what is there instead, the tables that it fills, the rights that change.
WRONG = {
    "everybody is active": (USERS, "is_active: is_active", "is_active: {value: true}", "credentials"),
    "names in capitals": (USERS, "username: username\n", 'username: {sql: "upper(username)"}\n', "credentials"),
    "superusers are the verified ones": (USERS, "NOT is_superuser", "is_superuser", "credentials"),
    "passwords without their ends": (USERS, "password_hash: password ", "password_hash: {sql: \"rtrim(password, '=')\"} ", "credentials"),
    "every role is active": (
        ROLES,
        "      permissions: permissions\n      is_active: is_active",
        "      permissions: permissions\n      is_active: {value: true}",
        "roles",
    ),
    "no role has permissions": (
        ROLES,
        "      permissions: permissions\n      is_active: is_active",
        "      permissions: {value: null}\n      is_active: is_active",
        "roles",
    ),
    "superusers are staff": (ROLES, "role_type: {value: superuser}", "role_type: {value: staff}", "roles"),
    "staff is asleep": (ROLES, "role_type: {value: staff}", "role_type: {value: student}", "roles"),
    "groups by another name": (ROLES, "role_type: name", 'role_type: {sql: "lower(name)"}', "roles"),
    "another application's permissions": (PERMISSIONS, "codename: codename", "codename: {sql: \"replace(codename, 'add_', 'view_')\"}", "permissions"),
}


@pytest.fixture
def world(postgres: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    """A world with a superuser, whose tables take any rows."""
    world = w.cloned_world(postgres, databases)
    service = world.targets["auth_service"]
    keys = ("user_permissions DROP CONSTRAINT user_permissions_user_id_fkey", "user_permissions DROP CONSTRAINT user_permissions_permission_id_fkey")
    run(service, *(f"ALTER TABLE auth_service.{key}" for key in (*keys, "permissions DROP CONSTRAINT permissions_codename_content_type_key")))
    run(service, "ALTER TABLE auth_service.users DROP CONSTRAINT idx_users_username")
    run(world.source, "UPDATE auth_user SET is_superuser = true WHERE username = 'ada'")
    for name in ("auth_service.users", "user_service.roles"):
        w.carry_anew(world, name)
    return world


def mapped(world: w.World, folder: Path, change: Callable[[Path], None]) -> w.World:
    """Return the world with what other mappings say in place of what is there."""
    shutil.copytree(w.PROJECT / "mappings", folder / "mappings")
    change(folder / "mappings")
    contracts = {service: parse_contract(service, w.PROJECT / "roles" / "schema" / "files" / service) for service in w.SERVICES}
    plan = compile_plan(read_mappings(folder / "mappings", w.SERVICES), contracts, ids.fingerprint(w.NAMESPACE))
    return w.World(dataclasses.replace(world.context, plan=plan), plan, world.source, world.targets)


def carried(world: w.World, *names: str) -> authorization.Equivalence:
    """Carry these targets by the world's own mappings, see that the rows agree, and return how the rights do."""
    for name in names:
        w.carry_anew(world, name)
    assert validate.compare(world.context, w.PLAN_TIME, tables=names, options=QUICK).differences == 0
    return authorization.compare(world.context, w.PLAN_TIME)


def test_a_mapping_that_agrees_with_itself_is_caught_by_the_rights(world: w.World, tmp_path: Path) -> None:
    caught: dict[str, set[str]] = {}
    for number, (wrong, (name, there, instead, _)) in enumerate(WRONG.items()):

        def change(mappings: Path, name: str = name, there: str = there, instead: str = instead) -> None:
            text = (mappings / name).read_text(encoding="utf-8")
            assert text.count(there) == 1, (name, there)
            (mappings / name).write_text(text.replace(there, instead), encoding="utf-8")

        target = name.replace("/", ".").removesuffix(".yml")
        caught[wrong] = {what for _, what in carried(mapped(world, tmp_path / str(number), change), target).findings}
        w.carry_anew(world, target)
    assert caught == {wrong: {right} for wrong, (_, _, _, right) in WRONG.items()}
    assert authorization.compare(world.context, w.PLAN_TIME).passed


def test_a_kind_of_role_that_is_left_out_is_caught(world: w.World) -> None:
    roles = next(target for target in world.plan.targets if target.name == "user_service.roles")
    for part in roles.parts:
        fewer = dataclasses.replace(roles, parts=tuple(one for one in roles.parts if one is not part))
        plan = dataclasses.replace(world.plan, targets=tuple(fewer if target is roles else target for target in world.plan.targets))
        found = carried(w.World(dataclasses.replace(world.context, plan=plan), plan, world.source, world.targets), roles.name)
        assert {what for _, what in found.findings} == {"roles"}, part.name


def test_rights_that_change_hands_are_caught_and_both_users_named(world: w.World) -> None:
    service = world.targets["auth_service"]
    users = [ask(service, f"SELECT id FROM auth_service.users ORDER BY id OFFSET {n} LIMIT 1") for n in (1, 2)]
    exchange = (
        "UPDATE auth_service.users AS u SET password_hash = o.password_hash FROM auth_service.users AS o"
        f" WHERE (u.id, o.id) IN (('{users[0]}', '{users[1]}'), ('{users[1]}', '{users[0]}'))"
    )
    run(service, exchange)
    assert dict(authorization.compare(world.context, w.PLAN_TIME).findings) == dict.fromkeys(users, "credentials")
    run(service, exchange)
    assert authorization.compare(world.context, w.PLAN_TIME).passed
    holder = ask(service, "SELECT min(user_id::text) FROM auth_service.user_permissions")
    other = ask(service, "SELECT id FROM auth_service.users WHERE id NOT IN (SELECT user_id FROM auth_service.user_permissions) ORDER BY id LIMIT 1")
    run(service, f"UPDATE auth_service.user_permissions SET user_id = '{other}' WHERE user_id = '{holder}'")
    assert dict(authorization.compare(world.context, w.PLAN_TIME).findings) == {holder: "permissions", other: "permissions"}


def test_a_quarantined_user_is_set_aside_on_both_sides_and_no_other(world: w.World) -> None:
    service = world.targets["auth_service"]
    key, other = (ask(world.source, f"SELECT id FROM auth_user ORDER BY id OFFSET {n} LIMIT 1") for n in (3, 4))
    id_, other_id = (ask(service, f"SELECT id FROM migration.id_map WHERE entity = 'users' AND source_key = '{one}'") for one in (key, other))
    run(service, f"INSERT INTO migration.rejects (target, part, source_key, rule, reason) VALUES ('auth_service.users', '', '{key}', 'blank', 'x')")
    run(service, f"UPDATE auth_service.users SET is_active = NOT is_active WHERE id IN ('{id_}', '{other_id}')")
    found = authorization.compare(world.context, w.PLAN_TIME)
    assert dict(found.findings) == {other_id: "credentials"}
    assert found.users == int(ask(world.source, "SELECT count(*) FROM auth_user")) - 1


def test_no_name_or_password_is_in_what_is_told(world: w.World) -> None:
    run(world.targets["auth_service"], "UPDATE auth_service.users SET username = 'hidden', password_hash = 'hidden' WHERE username = 'ada'")
    found = authorization.compare(world.context, w.PLAN_TIME)
    assert found.differing == 1
    assert "hidden" not in json.dumps(found.to_dict()) + "".join(found.lines)


def test_after_the_cutover_rights_that_a_service_gave_are_its_own_and_those_it_took_are_not(world: w.World) -> None:
    auth, user = world.targets["auth_service"], world.targets["user_service"]
    one = ask(auth, "SELECT min(user_id::text) FROM auth_service.user_permissions")
    new = "INSERT INTO auth_service.users (username, email, password_hash) VALUES ('own', 'own@example.org', '!')"
    held = f"INSERT INTO auth_service.user_permissions (user_id, permission_id) SELECT '{one}', id FROM auth_service.permissions ORDER BY id DESC LIMIT 1"
    run(auth, new, held)
    run(user, f"INSERT INTO user_service.roles (user_id, role_type) VALUES ('{one}', 'own')")
    assert authorization.compare(world.context, w.PLAN_TIME).differing == 2
    found = authorization.compare(world.context, w.PLAN_TIME, after_cutover=True)
    assert found.passed, found.lines
    run(
        auth,
        f"UPDATE auth_service.users SET is_active = NOT is_active WHERE id = '{one}'",
        f"DELETE FROM auth_service.user_permissions WHERE user_id = '{one}'",
    )
    assert dict(authorization.compare(world.context, w.PLAN_TIME, after_cutover=True).findings) == {one: "credentials, permissions"}


def test_what_the_mappings_do_not_declare_is_said_and_the_rest_is_compared(world: w.World) -> None:
    plan = world.plan
    bare = dataclasses.replace(world.context, plan=dataclasses.replace(plan, accounts=()))
    assert "authorisation not compared: not declared; _accounts.yml" in authorization.compare(bare, w.PLAN_TIME).verdict
    assert "password hashes: not declared; _accounts.yml" in test_logins.check(bare, []).verdict
    assert not test_logins.check(bare, [("ada", "x")]).passed
    users = dataclasses.replace(plan.accounts[0], columns=(("username", "username"), ("password", "password_hash")))
    found = authorization.compare(dataclasses.replace(world.context, plan=dataclasses.replace(plan, accounts=(users,))), w.PLAN_TIME)
    assert found.users > 0
    assert found.verdict.endswith("not declared in _accounts.yml of the mappings: held_permissions, roles")
    run(world.targets["auth_service"], "UPDATE auth_service.users SET password_hash = 'other' WHERE username = 'ada'")
    again = authorization.compare(dataclasses.replace(world.context, plan=dataclasses.replace(plan, accounts=(users,))), w.PLAN_TIME)
    assert [what for _, what in again.findings] == ["credentials"]
