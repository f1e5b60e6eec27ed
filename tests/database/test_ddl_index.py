# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The index phase recognises keys and indexes, by what they are and not by name, and says how it will build."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.schema import build, ddl
from ansible.module_utils.migration.schema.indexes import plan_index

from tests.phases import parsed, planned, run, schema, service


def test_a_key_under_another_name_is_the_same_key(database: Endpoint) -> None:
    contract = service("auth_service")
    schema(database, contract)
    run(database, "ALTER TABLE auth_service.users ADD CONSTRAINT users_email_key UNIQUE (email)")
    build.build(database, contract)
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        names = {index.name for index in ddl.read(connection, contract)["auth_service", "users"].indexes}
    assert names == {"users_pkey", "users_email_key", "idx_users_username"}


def test_a_name_that_belongs_to_something_else_is_refused(database: Endpoint) -> None:
    contract = service("auth_service")
    schema(database, contract)
    run(database, "CREATE INDEX idx_users_email ON auth_service.users (username)")
    with pytest.raises(MigrationError, match=r"idx_users_email on auth_service\.users exists with another definition"):
        planned(database, contract)


def test_another_primary_key_is_refused(database: Endpoint) -> None:
    contract = parsed("CREATE TABLE t (a integer PRIMARY KEY, b integer NOT NULL)")
    schema(database, contract)
    run(database, "ALTER TABLE svc.t ADD PRIMARY KEY (b)")
    with pytest.raises(MigrationError, match="has the primary key t_pkey"):
        planned(database, contract)


def test_without_tables_the_index_phase_points_to_schema_but_can_preview(database: Endpoint) -> None:
    contract = service("user_service")
    with pytest.raises(MigrationError, match=r"run playbooks/schema\.yml first"):
        planned(database, contract)
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        preview = plan_index(connection, contract, assume_tables=True)
    assert {action.object.split(" on ")[0] for action in preview} >= {"idx_roles_active", "roles_pkey", "student_profiles_student_id_key"}


def test_a_unique_index_left_by_a_killed_run_is_adopted(database: Endpoint) -> None:
    contract = service("auth_service")
    schema(database, contract)
    run(database, "CREATE UNIQUE INDEX idx_users_email ON auth_service.users (email)")
    action = next(item for item in planned(database, contract) if item.object.startswith("idx_users_email"))
    assert [step.sql.split(" ADD ")[-1] for step in action.steps] == ['CONSTRAINT "idx_users_email" UNIQUE USING INDEX "idx_users_email"']
    build.build(database, contract)
    assert planned(database, contract) == ()


def test_tables_in_use_are_indexed_concurrently(databases: Callable[..., Endpoint], postgres: object) -> None:
    owner = databases(role=True)
    contract = service("user_service")
    schema(owner, contract)
    assert all(action.transactional for action in planned(owner, contract))
    with contextlib.closing(driver.connect(owner, application_name="the service itself", autocommit=True)):
        actions = planned(owner, contract)
    assert not any(action.transactional for action in actions)
    assert all("is connected" in action.note for action in actions)


def test_a_lock_of_an_administrator_makes_one_table_concurrent(database: Endpoint) -> None:
    contract = service("user_service")
    schema(database, contract)
    with contextlib.closing(driver.connect(database, application_name="psql")) as admin:
        assert all(action.transactional for action in planned(database, contract))
        driver.rows(admin, "SELECT count(*) FROM user_service.roles")
        actions = planned(database, contract)
    assert {action.tables[0] for action in actions if not action.transactional} == {"user_service.roles"}

NEAR = "CREATE TABLE t (a text, b integer, c integer); CREATE TABLE far (id integer PRIMARY KEY); "


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        ("CREATE INDEX i ON t (a)", "CREATE INDEX other ON t (a DESC)"),
        ("CREATE INDEX i ON t (a)", "CREATE INDEX other ON t (a NULLS FIRST)"),
        ("CREATE INDEX i ON t (a)", "CREATE INDEX other ON t (a text_pattern_ops)"),
        ("CREATE INDEX i ON t (a)", 'CREATE INDEX other ON t (a COLLATE "C")'),
        ("CREATE INDEX i ON t (a)", "CREATE INDEX other ON t (a) WHERE b > 0"),
        ("CREATE INDEX i ON t (a) WHERE b > 0", "CREATE INDEX other ON t (a) WHERE b > 1"),
        ("CREATE INDEX i ON t (a)", "CREATE INDEX other ON t (a) INCLUDE (b)"),
        ("CREATE INDEX i ON t (a)", "CREATE INDEX other ON t USING hash (a)"),
        ("CREATE INDEX i ON t (a)", "CREATE UNIQUE INDEX other ON t (a)"),
        ("CREATE INDEX i ON t (a, b)", "CREATE INDEX other ON t (b, a)"),
        ("CREATE INDEX i ON t (lower(a))", "CREATE INDEX other ON t (upper(a))"),
        ('CREATE INDEX i ON t (lower(a) COLLATE "C")', "CREATE INDEX other ON t (lower(a))"),
        ("ALTER TABLE t ADD CONSTRAINT i UNIQUE (a)", "ALTER TABLE t ADD CONSTRAINT other UNIQUE (a) INCLUDE (b)"),
        ("ALTER TABLE t ADD CONSTRAINT i UNIQUE (a)", "ALTER TABLE t ADD CONSTRAINT other UNIQUE NULLS NOT DISTINCT (a)"),
        ("ALTER TABLE t ADD CONSTRAINT i UNIQUE (a)", "ALTER TABLE t ADD CONSTRAINT other UNIQUE (a) DEFERRABLE"),
        ("ALTER TABLE t ADD CONSTRAINT i UNIQUE (a)", "CREATE UNIQUE INDEX other ON t (a) WHERE a <> ''"),
        ("ALTER TABLE t ADD CONSTRAINT i CHECK (b > 0)", "ALTER TABLE t ADD CONSTRAINT other CHECK (b >= 0)"),
        ("ALTER TABLE t ADD CONSTRAINT i FOREIGN KEY (b) REFERENCES far", "ALTER TABLE t ADD CONSTRAINT other FOREIGN KEY (c) REFERENCES far"),
        (
            "ALTER TABLE t ADD CONSTRAINT i FOREIGN KEY (b) REFERENCES far",
            "ALTER TABLE t ADD CONSTRAINT other FOREIGN KEY (b) REFERENCES far ON DELETE CASCADE",
        ),
    ],
)
def test_what_is_only_nearly_the_same_is_made_or_refused(database: Endpoint, wanted: str, there: str) -> None:
    contract, tables = parsed(NEAR + wanted), parsed(NEAR)
    schema(database, tables)
    build.build(database, tables)
    run(database, "SET search_path = svc; " + there)
    assert [action.object for action in planned(database, contract)] == ["i on svc.t"]
    run(database, "ALTER INDEX svc.other RENAME TO i" if "INDEX" in there else "ALTER TABLE svc.t RENAME CONSTRAINT other TO i")
    with pytest.raises(MigrationError, match=r"i on svc\.t exists with another definition"):
        planned(database, contract)
