# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A reference has its row: by the source's own foreign keys where they guarantee it, else row by row."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.validate import run as validate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.database.test_verify import QUICK, run
from tests.mutation import world as w


@pytest.fixture
def world(postgres: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    return w.cloned_world(postgres, databases)


@pytest.fixture
def compare(world: w.World) -> Callable[..., validate.Verification]:
    return lambda: validate.compare(world.context, w.PLAN_TIME, options=QUICK)


def test_the_sources_own_foreign_keys_prove_references(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    run(world.source, "ALTER TABLE users_role ADD CONSTRAINT fk FOREIGN KEY (granted_by) REFERENCES auth_user DEFERRABLE INITIALLY DEFERRED")

    def by() -> str:
        return next(reference.by for reference in compare().references if (reference.target, reference.column) == ("user_service.roles", "granted_by"))

    assert by() == "foreign key"
    run(world.source, "ALTER TABLE users_role DISABLE TRIGGER ALL")
    assert by() == "join"
    run(world.source, "ALTER TABLE users_role ENABLE TRIGGER ALL", "ALTER TABLE users_role DROP CONSTRAINT fk")
    run(world.source, "ALTER TABLE users_role ADD CONSTRAINT fk FOREIGN KEY (granted_by) REFERENCES auth_user NOT VALID")
    assert by() == "join"


def test_they_also_prove_the_references_of_queries_that_show_their_columns(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    def by(found: validate.Verification) -> str:
        return next(reference.by for reference in found.references if (reference.target, reference.column) == ("user_service.profiles", "user_id"))

    assert by(compare()) == "join"
    run(world.source, "ALTER TABLE users_profile ADD CONSTRAINT fk FOREIGN KEY (user_id) REFERENCES auth_user DEFERRABLE INITIALLY DEFERRED")
    assert by(compare()) == "foreign key"
    run(world.source, "CREATE TABLE more_profiles () INHERITS (users_profile)")  # rows that the key does not see
    assert by(compare()) == "join"


@pytest.mark.parametrize(
    "statements",
    [
        (  # a table of the same name elsewhere
            "CREATE SCHEMA other",
            "CREATE TABLE other.auth_user (id int PRIMARY KEY)",
            "INSERT INTO other.auth_user SELECT id FROM auth_user UNION SELECT 424242",
            "ALTER TABLE users_role ADD CONSTRAINT fk FOREIGN KEY (granted_by) REFERENCES other.auth_user",
        ),
        (  # a partition is not all that the key allows
            "ALTER TABLE auth_user ALTER id DROP IDENTITY",
            "CREATE TABLE people (LIKE auth_user, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
            "CREATE TABLE strangers PARTITION OF people FOR VALUES FROM (424242) TO (424243)",
            "ALTER TABLE people ATTACH PARTITION auth_user DEFAULT",
            "INSERT INTO people SELECT 424242, password, last_login, is_superuser, 'stranger', '', '', '', false, false, date_joined FROM auth_user LIMIT 1",
            "ALTER TABLE users_role ADD CONSTRAINT fk FOREIGN KEY (granted_by) REFERENCES people",
        ),
        (  # a partition whose triggers did not fire
            "ALTER TABLE users_role ALTER id DROP IDENTITY",
            "ALTER TABLE users_role RENAME TO users_role_some",
            "CREATE TABLE users_role (LIKE users_role_some) PARTITION BY LIST (is_active)",
            "ALTER TABLE users_role ATTACH PARTITION users_role_some DEFAULT",
            "ALTER TABLE users_role ADD CONSTRAINT fk FOREIGN KEY (granted_by) REFERENCES auth_user",
            "ALTER TABLE users_role_some DISABLE TRIGGER ALL",
        ),
    ],
    ids=["schema", "partition", "trigger"],
)
def test_a_foreign_key_that_does_not_guarantee_a_row_of_the_other_table_proves_nothing(
    world: w.World, compare: Callable[..., validate.Verification], statements: tuple[str, ...]
) -> None:
    run(world.source, *statements, "UPDATE users_role SET granted_by = 424242 WHERE id = (SELECT min(id) FROM users_role)")
    found = next(reference for reference in compare().references if (reference.target, reference.column) == ("user_service.roles", "granted_by"))
    assert (found.by, found.dangling) == ("join", 1)


def test_a_foreign_key_of_a_replicated_table_proves_nothing(
    world: w.World, compare: Callable[..., validate.Verification], databases: Callable[..., Endpoint]
) -> None:
    publisher = databases()
    run(publisher, "CREATE TABLE users_role (id bigint PRIMARY KEY)", "CREATE PUBLICATION roles FOR TABLE users_role")
    run(world.source, "ALTER TABLE users_role ADD CONSTRAINT fk FOREIGN KEY (granted_by) REFERENCES auth_user")
    there = f"host={publisher.host} port={publisher.port} dbname={publisher.dbname} user={publisher.user} password={publisher.password}"
    run(
        world.source,
        f"CREATE SUBSCRIPTION roles CONNECTION '{there}' PUBLICATION roles"
        " WITH (enabled = false, create_slot = false, slot_name = NONE, copy_data = false)",
    )
    try:
        found = compare().references
    finally:
        run(world.source, "DROP SUBSCRIPTION roles")
    assert next(reference.by for reference in found if (reference.target, reference.column) == ("user_service.roles", "granted_by")) == "join"
