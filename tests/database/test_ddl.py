# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Schema and index together make what the SQL itself makes, and find nothing to do afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pglast
import pytest
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.schema import build, ddl
from ansible.module_utils.migration.schema.epilogue import plan_epilogue
from ansible.module_utils.migration.schema.indexes import plan_index
from ansible.module_utils.migration.schema.tables import plan_schema

from tests.phases import EXPECTED_INDEXES, FILES, parsed, planned, run, schema, service

SERVICES = ("auth_service", "user_service")


def shape(endpoint: Endpoint, names: str) -> list[tuple[object, ...]]:
    """Return columns, constraints and indexes of a schema as PostgreSQL prints them."""
    statements = (
        "SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),"
        " a.attidentity::text, a.attgenerated::text"
        " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)"
        " WHERE c.relnamespace = %s::regnamespace AND c.relkind = 'r' AND a.attnum > 0 ORDER BY 1, 2",
        "SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid), convalidated FROM pg_constraint"
        " WHERE connamespace = %s::regnamespace AND contype <> 'n' ORDER BY 1, 2",
        "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = %s ORDER BY 1, 2",
    )
    with contextlib.closing(driver.connect(endpoint, application_name="somebody", autocommit=True)) as connection:
        return [row for statement in statements for row in driver.rows(connection, statement, (names,))]


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("mode", ["plain", "concurrent"])
def test_the_phases_make_what_the_sql_itself_makes(databases: Callable[..., Endpoint], name: str, mode: str) -> None:
    made, literal = databases(), databases()
    contract = service(name)
    schema(made, contract)
    build.build(made, contract, mode=mode)
    for file in sorted((FILES / name).glob("*.sql")):
        run(literal, *pglast.split(file.read_text()))
    assert shape(made, name) == shape(literal, name)
    with contextlib.closing(ddl.connect(made, contract, readonly=True)) as connection:
        found = ddl.read(connection, contract)
    assert {table.name: {index.name for index in table.indexes} for table in found.values()} == EXPECTED_INDEXES[name]


@pytest.mark.parametrize("name", SERVICES)
def test_a_second_run_has_nothing_to_do(database: Endpoint, name: str) -> None:
    contract = service(name)
    assert schema(database, contract)
    assert schema(database, contract) == ()
    assert build.build(database, contract).made
    assert build.analyze(database, contract).made
    assert build.build(database, contract).made == ()
    assert build.analyze(database, contract).made == ()

ODD = """
CREATE TYPE mood AS ENUM ('sad', 'it''s ok');
CREATE DOMAIN short AS varchar(5) NOT NULL CHECK (VALUE <> '');
CREATE SEQUENCE counter;
CREATE FUNCTION double(n integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.e := 'x'; RETURN NEW; END$$;
CREATE TABLE "Odd Table" (
    id integer GENERATED ALWAYS AS IDENTITY,
    "E Mail" varchar(20) COLLATE "C" DEFAULT 'a''b\\c',
    m mood DEFAULT 'sad', s short, n numeric(6, 2) DEFAULT 1.50 CHECK (n BETWEEN 0 AND 10 OR n IN (11, 12)),
    g integer GENERATED ALWAYS AS (double(id)) STORED,
    arr text[] NOT NULL DEFAULT '{}', j jsonb DEFAULT '{"a": 1}', d date DEFAULT (now() AT TIME ZONE 'utc')::date,
    t timestamp(3) DEFAULT CURRENT_TIMESTAMP, seq bigint DEFAULT nextval('counter'), e text,
    "select" boolean DEFAULT false, c char(3), i interval DEFAULT '1 day', ts timestamptz DEFAULT now(),
    PRIMARY KEY (id) INCLUDE (n), UNIQUE NULLS NOT DISTINCT ("E Mail", s), UNIQUE (c) DEFERRABLE INITIALLY DEFERRED,
    CHECK ("select" OR length("E Mail") > 0)
);
CREATE TABLE child (
    id uuid PRIMARY KEY, parent integer REFERENCES "Odd Table" ON DELETE CASCADE DEFERRABLE, a integer, b integer,
    UNIQUE (a, b), FOREIGN KEY (b, a) REFERENCES child (a, b) MATCH FULL ON UPDATE SET NULL
);
CREATE INDEX ON "Odd Table" (lower("E Mail") text_pattern_ops DESC NULLS LAST, n) INCLUDE (e) WHERE "select" IS NOT TRUE;
CREATE UNIQUE INDEX odd_one ON "Odd Table" ((n + id), e COLLATE "C" DESC) WHERE n > 3 AND m = 'sad';
CREATE INDEX ON "Odd Table" USING gin (j jsonb_path_ops);
CREATE INDEX ON "Odd Table" USING hash (e);
COMMENT ON TABLE child IS 'It''s a child';
COMMENT ON COLUMN child.a IS 'é';
CREATE TRIGGER stamp BEFORE INSERT ON "Odd Table" FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE VIEW seen AS SELECT id FROM child;
GRANT SELECT, INSERT ON child TO PUBLIC
"""


@pytest.mark.parametrize("mode", ["plain", "concurrent"])
def test_odd_but_ordinary_ddl_arrives_and_is_recognised(databases: Callable[..., Endpoint], mode: str) -> None:
    made, literal = databases(), databases()
    contract = parsed(ODD)
    schema(made, contract)
    build.build(made, contract, mode=mode)
    run(literal, "CREATE SCHEMA svc", "SET search_path = svc, public;" + ODD)
    assert shape(made, "svc") == shape(literal, "svc")
    for endpoint in (made, literal):
        assert [action for action in schema(endpoint, contract) if action.kind != "search_path"] == []
        assert planned(endpoint, contract) == ()
    with contextlib.closing(ddl.connect(made, contract)) as connection:
        epilogue = plan_epilogue(connection, contract)
        assert {action.kind for action in epilogue} == {"comment", "trigger", "view", "grant"}
        ddl.apply(connection, epilogue)
        assert plan_epilogue(connection, contract) == ()


def test_planning_writes_nothing(database: Endpoint) -> None:
    contract = parsed(ODD)
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        plan_schema(connection, contract)
        plan_index(connection, contract, assume_tables=True)
        plan_epilogue(connection, contract, assume_tables=True)
        build.plan_analyze(connection, contract)
        assert driver.scalar(connection, "SELECT to_regnamespace('svc')") is None
        assert driver.scalar(connection, "SELECT pg_current_xact_id_if_assigned()") is None
