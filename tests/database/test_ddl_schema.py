# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The schema phase leaves what is equal, refuses what differs, and makes all or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import psycopg2
import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.schema import catalog, ddl

from tests.phases import parsed, run, schema, service


def test_bare_table_names_work_in_a_new_session(databases: Callable[..., Endpoint]) -> None:
    endpoint = databases(role=True)
    schema(endpoint, service("auth_service"))
    plain = psycopg2.connect(host=endpoint.host, port=endpoint.port, dbname=endpoint.dbname, user=endpoint.user, password=endpoint.password)
    with contextlib.closing(plain):
        assert driver.scalar(plain, "SELECT count(*) FROM users") == 0
        assert driver.scalar(plain, "SHOW search_path") == 'auth_service, "$user", public'


def test_a_role_that_does_not_own_the_database_is_shown_what_its_owner_may_run(databases: Callable[..., Endpoint]) -> None:
    owner, contract = databases(), parsed("CREATE TABLE t (a integer)")
    guest = databases(role=True)  # a role of its own; the other database belongs to the superuser
    run(owner, f'GRANT CREATE ON DATABASE "{owner.dbname}" TO "{guest.user}"')
    actions = schema(dataclasses.replace(guest, dbname=owner.dbname), contract)
    assert [action.kind for action in actions] == ["schema", "table", "search_path"]
    assert actions[-1].steps == ()
    assert "its owner may run: ALTER DATABASE" in actions[-1].note
    run(owner, f'REVOKE ALL ON DATABASE "{owner.dbname}" FROM "{guest.user}"', f'REASSIGN OWNED BY "{guest.user}" TO postgres')


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            "ALTER TABLE svc.t ALTER b TYPE varchar(10)",
            r"svc\.t\.b has type character varying\(10\), .* \(svc/1\.sql:3\) says character varying\(20\)",
        ),
        ("ALTER TABLE svc.t ALTER b DROP NOT NULL", r"svc\.t\.b has no NOT NULL, .* says NOT NULL"),
        ("ALTER TABLE svc.t ALTER c SET NOT NULL", r"svc\.t\.c has NOT NULL"),
        ("ALTER TABLE svc.t ALTER b SET DEFAULT 'y'", r"svc\.t\.b has default 'y'"),
        ("ALTER TABLE svc.t ALTER c DROP DEFAULT", r"svc\.t\.c has default none"),
        ("ALTER TABLE svc.t ALTER c TYPE bigint", r"svc\.t\.c has type bigint"),
        ("ALTER TABLE svc.t DROP c", r"svc\.t\.c is missing"),
        ("ALTER TABLE svc.t ADD d integer NOT NULL", r"svc\.t\.d is NOT NULL without a default"),
        ('ALTER TABLE svc.t ALTER b TYPE varchar(20) COLLATE "C"', r"svc\.t\.b has collation C"),
        ("DROP TABLE svc.t; CREATE VIEW svc.t AS SELECT 1 AS id", r"svc\.t is a view"),
        ("ALTER TYPE svc.mood ADD VALUE 'mad'", r"type svc\.mood has the labels sad, glad, mad"),
    ],
)
def test_a_difference_names_place_and_both_sides(database: Endpoint, change: str, says: str) -> None:
    contract = parsed("CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE t (\n id uuid,\n b varchar(20) NOT NULL DEFAULT 'x',\n c integer DEFAULT 1)")
    schema(database, contract)
    run(database, change)
    with pytest.raises(MigrationError, match=says):
        schema(database, contract)


def test_extra_columns_that_can_stay_empty_are_left_alone(database: Endpoint) -> None:
    contract = parsed("CREATE TABLE t (id uuid)")
    schema(database, contract)
    run(database, "ALTER TABLE svc.t ADD x integer, ADD y integer NOT NULL DEFAULT 1, ADD z integer GENERATED ALWAYS AS IDENTITY")
    assert schema(database, contract) == ()


def test_a_failing_schema_leaves_nothing_behind(database: Endpoint) -> None:
    contract = parsed("CREATE TABLE t (id uuid); CREATE TABLE u (id integer DEFAULT nosuch())")
    with pytest.raises(MigrationError, match=r"making the table svc\.u"):
        schema(database, contract)
    with contextlib.closing(ddl.connect(database, contract)) as connection:
        assert driver.scalar(connection, "SELECT to_regnamespace('svc')") is None


def test_now_and_current_timestamp_are_one_default(database: Endpoint) -> None:
    with contextlib.closing(driver.connect(database, application_name="x", autocommit=True)) as connection:
        assert catalog.same_expression(connection, "now()", "CURRENT_TIMESTAMP", cast="timestamp")
        assert not catalog.same_expression(connection, "now()", "'2020-01-01'", cast="timestamp")
