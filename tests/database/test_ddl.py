# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Schema and index bring a database to its contract, leave what is equal, and refuse what differs."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pglast
import psycopg2
import pytest
from ansible.module_utils.migration import build, catalog, ddl, driver
from ansible.module_utils.migration.contract import Contract
from ansible.module_utils.migration.contract_sql.parse import parse_contract, parse_texts
from ansible.module_utils.migration.ddl_epilogue import plan_epilogue
from ansible.module_utils.migration.ddl_index import plan_index
from ansible.module_utils.migration.ddl_schema import plan_schema
from ansible.module_utils.migration.driver import Endpoint
from ansible.module_utils.migration.errors import MigrationError

FILES = Path(__file__).resolve().parents[2] / "roles" / "schema" / "files"
SERVICES = ("auth_service", "user_service")

# The strategy's own statements for its keys and indexes, as PostgreSQL names them, but for the two that DESIGN 5.5 and 7 decide.
EXPECTED_INDEXES = {
    "auth_service": {
        "users": {"users_pkey", "idx_users_email", "idx_users_username"},
        "permissions": {"permissions_pkey", "permissions_codename_content_type_key"},
        "user_permissions": {"user_permissions_pkey"},
    },
    "user_service": {
        "profiles": {"profiles_pkey", "idx_profiles_user_id"},
        "roles": {"roles_pkey", "idx_roles_user_id", "idx_roles_active"},
        "student_profiles": {"student_profiles_pkey", "student_profiles_student_id_key"},
        "company_profiles": {"company_profiles_pkey"},
    },
}


def service(name: str) -> Contract:
    return parse_contract(name, FILES / name)


def parsed(sql: str) -> Contract:
    return parse_texts("svc", [("svc/1.sql", sql)])


def run(endpoint: Endpoint, *statements: str) -> None:
    with contextlib.closing(driver.connect(endpoint, application_name="somebody", autocommit=True)) as connection:
        for statement in statements:
            driver.rows(connection, statement)


def schema(endpoint: Endpoint, contract: Contract) -> tuple[ddl.Action, ...]:
    """Plan and apply the schema phase; return its actions."""
    with contextlib.closing(ddl.connect(endpoint, contract, readonly=True)) as connection:
        actions = plan_schema(connection, contract)
    with contextlib.closing(ddl.connect(endpoint, contract)) as connection:
        ddl.apply(connection, actions)
    return actions


def planned(endpoint: Endpoint, contract: Contract, mode: str = "auto") -> tuple[ddl.Action, ...]:
    with contextlib.closing(ddl.connect(endpoint, contract, readonly=True)) as connection:
        return plan_index(connection, contract, mode)


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


def test_an_invalid_index_left_by_a_killed_run_is_built_again(database: Endpoint) -> None:
    contract = service("auth_service")
    schema(database, contract)
    rows = "INSERT INTO auth_service.users (username, email, password_hash) VALUES ('a', 'same', ''), ('b', 'same', '')"
    run(database, rows)
    with pytest.raises(MigrationError, match=r"idx_users_email.*SQLSTATE 23505.*preflight") as caught:
        build.build(database, contract, mode="concurrent")
    assert "same" not in str(caught.value).replace("the same key", "")
    run(database, "DELETE FROM auth_service.users WHERE username = 'b'")
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        assert any(not index.valid for index in ddl.read(connection, contract)["auth_service", "users"].indexes)
    build.build(database, contract, mode="plain")
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        assert all(index.valid for table in ddl.read(connection, contract).values() for index in table.indexes)
    assert planned(database, contract) == ()


def test_an_unvalidated_foreign_key_is_validated(database: Endpoint) -> None:
    contract = parsed("CREATE TABLE t (a integer PRIMARY KEY, b integer REFERENCES t)")
    schema(database, contract)
    build.build(database, contract, kinds=("primary_key",))
    run(database, "ALTER TABLE svc.t ADD CONSTRAINT t_b_fkey FOREIGN KEY (b) REFERENCES svc.t NOT VALID")
    assert [action.sql for action in planned(database, contract)] == ['ALTER TABLE "svc"."t" VALIDATE CONSTRAINT "t_b_fkey";\n']
    build.build(database, contract)
    assert planned(database, contract) == ()


def test_primary_keys_alone_can_be_built_first(database: Endpoint) -> None:
    contract = service("auth_service")
    schema(database, contract)
    made = build.build(database, contract, tables=("auth_service.users",), kinds=("primary_key",)).made
    assert [item.object for item in made] == ["users_pkey on auth_service.users"]


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


def test_a_locked_table_is_tried_again_and_then_named(database: Endpoint) -> None:
    contract = parsed("CREATE TABLE t (a integer PRIMARY KEY)")
    schema(database, contract)
    quick = build.Options(lock_timeout="50ms", lock_tries=2)
    with contextlib.closing(driver.connect(database, application_name="psql")) as admin:
        driver.rows(admin, "LOCK TABLE svc.t IN ROW EXCLUSIVE MODE")
        with pytest.raises(MigrationError, match=r"still locked after 2 tries of 50ms: .* svc\.t"):
            build.build(database, contract, mode="plain", options=quick)
    assert build.build(database, contract, options=quick).made


def test_what_was_built_can_be_dropped_and_no_more(database: Endpoint) -> None:
    contract = service("auth_service")
    schema(database, contract)
    build.build(database, contract, kinds=("primary_key",))
    made = [{"kind": item.kind, "object": item.object, "undo": item.undo} for item in build.build(database, contract).made]
    for expected in (len(made), 0):
        with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
            actions = build.plan_drop(connection, contract, made)
        assert len(build.drop(database, contract, actions).made) == expected
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        found = ddl.read(connection, contract)
    assert {index.name for table in found.values() for index in table.indexes} == {"users_pkey", "permissions_pkey", "user_permissions_pkey"}


@pytest.mark.parametrize("mode", ["plain", "concurrent"])
def test_a_killed_build_is_finished_by_the_next(database: Endpoint, mode: str) -> None:
    """Kill the building process four times, each a little later; the last run finds whatever that left."""
    contract = service("auth_service")
    schema(database, contract)
    run(
        database,
        "INSERT INTO auth_service.users (id, username, email, password_hash) SELECT gen_random_uuid(), i, md5(i::text), '' FROM generate_series(1, 60000) i",
        "INSERT INTO auth_service.user_permissions (user_id) SELECT id FROM auth_service.users",
    )
    context = multiprocessing.get_context("fork")
    for delay in (0.05, 0.15, 0.3, 0.5):
        process = context.Process(target=build.build, args=(database, contract), kwargs={"mode": mode})
        process.start()
        time.sleep(delay)
        process.kill()
        process.join()
    wait_until_alone(database)
    build.build(database, contract, mode="plain")
    assert planned(database, contract) == ()
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        found = ddl.read(connection, contract)
    assert {table.name: {index.name for index in table.indexes} for table in found.values()} == EXPECTED_INDEXES["auth_service"]
    assert all(index.valid for table in found.values() for index in table.indexes)
    assert sum(constraint.kind == "f" for table in found.values() for constraint in table.constraints) == 3


def wait_until_alone(endpoint: Endpoint) -> None:
    """Wait for the server to end the statements of killed clients; a CONCURRENTLY in flight would be refused by name."""
    with contextlib.closing(driver.connect(endpoint, application_name="psql", autocommit=True)) as connection:
        for _ in range(300):
            others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            if driver.scalar(connection, f"{others} AND backend_type = 'client backend'") == 0:
                return
            time.sleep(0.05)
    raise AssertionError("server processes of killed clients are still there")


def test_planning_writes_nothing(database: Endpoint) -> None:
    contract = parsed(ODD)
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        plan_schema(connection, contract)
        plan_index(connection, contract, assume_tables=True)
        plan_epilogue(connection, contract, assume_tables=True)
        build.plan_analyze(connection, contract)
        assert driver.scalar(connection, "SELECT to_regnamespace('svc')") is None
        assert driver.scalar(connection, "SELECT pg_current_xact_id_if_assigned()") is None


def test_now_and_current_timestamp_are_one_default(database: Endpoint) -> None:
    with contextlib.closing(driver.connect(database, application_name="x", autocommit=True)) as connection:
        assert catalog.same_expression(connection, "now()", "CURRENT_TIMESTAMP", cast="timestamp")
        assert not catalog.same_expression(connection, "now()", "'2020-01-01'", cast="timestamp")


def test_a_table_is_analyzed_again_only_after_it_changed(database: Endpoint) -> None:
    contract = parsed("CREATE TABLE t (a integer)")
    schema(database, contract)
    assert [item.object for item in build.analyze(database, contract).made] == ["svc.t"]
    assert build.analyze(database, contract).made == ()
    run(database, "INSERT INTO svc.t SELECT generate_series(1, 10)")
    assert [item.object for item in build.analyze(database, contract).made] == ["svc.t"]
    assert build.analyze(database, contract).made == ()
    run(database, "SELECT pg_stat_reset()")
    assert build.analyze(database, contract).made == ()


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
