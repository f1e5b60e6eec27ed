# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session's user must really be in the target: one that was quarantined, or minted in another namespace, is not."""

from __future__ import annotations

import contextlib

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.sessions import session_ids
from ansible.module_utils.migration.sessions.users import MigratedUsers, User, entity_of

from tests.mutation.world import NAMESPACE, read_plan

TABLES = (
    "CREATE SCHEMA auth_service",
    "CREATE TABLE auth_service.users (id uuid, password_hash text)",
    "CREATE SCHEMA migration",
    "CREATE TABLE migration.id_map (entity text, source_key text, id uuid)",
)


def test_only_users_with_a_row_of_this_namespace_are_found(database: driver.Endpoint) -> None:
    plan = read_plan()
    prefix = ids.prefix(NAMESPACE, "users")
    own = {number: str(ids.compute(prefix, [number])) for number in (1, 2, 3)}
    with contextlib.closing(driver.connect(database, application_name="tests", autocommit=True)) as connection:
        for statement in TABLES:
            driver.rows(connection, statement)
        for number, uuid in own.items():
            driver.rows(connection, "INSERT INTO migration.id_map VALUES ('users', %s, %s)", (str(number), uuid))
            if number != 2:  # quarantined: it kept its id and has no row
                driver.rows(connection, "INSERT INTO auth_service.users VALUES (%s, %s)", (uuid, f"hash {number}"))
        users = MigratedUsers(connection, plan, NAMESPACE)
        assert users.find([1, 2, 3, 4], passwords=True) == {number: User(own[number], f"hash {number}") for number in (1, 3)}
        assert users.find([1, 2], passwords=False) == {1: User(own[1], None)}
        assert session_ids.migrated({"auth_service": connection}, plan)("users", ["1", "2", "4"]) == {"1": own[1]}
        with pytest.raises(MigrationError, match="another namespace"):
            MigratedUsers(connection, plan, "another namespace of the tests").find([1], passwords=False)
    with pytest.raises(MigrationError, match="name one of "):
        entity_of(plan, "people")
