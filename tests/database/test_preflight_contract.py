# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What no question about one row can answer: foreign keys of several columns, keys too large for an index, what a target demands beyond the schema SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import psycopg2
import pytest
from ansible.module_utils.migration.checks import foreign_key_checks, quarantine, source_catalog
from ansible.module_utils.migration.checks.findings import Finding
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.contract.parse import parse_texts
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan import mapping as m
from ansible.module_utils.migration.plan.compiler import compile_plan
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.postgres.quote import ident
from ansible.module_utils.migration.preflight import collations, collisions, coverage, drift, index_support, privileges, scan
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.schema import build, ddl
from ansible.module_utils.migration.schema.tables import plan_schema
from ansible.module_utils.migration.state import ledger
from ansible.module_utils.migration.throttle.pacer import unhurried
from ansible.module_utils.migration.transfer import run as transfer

from tests.conftest import execute
from tests.one_table import NAMESPACE, PLAN_TIME, load, one_table

FAMILY = """
CREATE SCHEMA svc;
CREATE TABLE svc.lookups (name text PRIMARY KEY);
CREATE TABLE svc.parents (id uuid PRIMARY KEY, tenant integer, code text, UNIQUE (tenant, id), UNIQUE (tenant, code));
CREATE TABLE svc.children (id uuid PRIMARY KEY, tenant integer, parent_id uuid, code text, lookup text REFERENCES svc.lookups,
  CONSTRAINT same_tenant FOREIGN KEY (tenant, parent_id) REFERENCES svc.parents (tenant, id),
  CONSTRAINT by_code FOREIGN KEY (tenant, code) REFERENCES svc.parents (tenant, code) MATCH FULL);
"""
ROWS = """
CREATE TABLE parent (id bigint PRIMARY KEY, tenant integer, code text);
CREATE TABLE child (id bigint PRIMARY KEY, tenant integer, parent bigint, code text, lookup text);
INSERT INTO parent VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, NULL);
INSERT INTO child VALUES (10, 1, 1, 'a', 'known'), (11, 2, 1, 'b', NULL), (12, 2, 2, 'a', NULL), (13, 1, NULL, NULL, NULL), (14, NULL, 2, NULL, 'known'),
  (15, 2, 2, 'b', 'unknown'), (16, NULL, NULL, NULL, NULL)
"""


def family(endpoint: Endpoint, policies: Sequence[m.Policy] = ()) -> Context:
    """Return parents and children of one service; lookups are filled by no mapping."""
    here = "svc/here.yml:1"
    texts = {"parents": ("parent", "parents", ("tenant", "code")), "children": ("child", None, ("tenant", "code", "lookup"))}
    mappings = []
    for table, (source, mints, names) in texts.items():
        columns = [m.Column(name, here, source=name) for name in names]
        if table == "children":
            columns.append(m.Column("parent_id", here, source="parent", translate="parents"))
        part = m.Part("", here, source, None, None, (), m.Key(("id",), ("integer",), mints, here), "id", tuple(columns))
        mappings.append(m.Mapping("svc", table, f"svc/{table}.yml", (part,), tuple(policies) if table == "children" else ()))
    contract = parse_texts("svc", [("svc/tables.sql", FAMILY)])
    plan = compile_plan(m.Mappings(tuple(mappings), ()), {"svc": contract}, ids.fingerprint(NAMESPACE))
    return Context(plan=plan, source=endpoint, targets={"svc": endpoint}, control=endpoint, namespace=NAMESPACE)


def make(context: Context) -> None:
    for name, data in context.plan.contracts:
        contract = Contract.from_dict(data)
        with closing(ddl.connect(context.targets[name], contract)) as connection:
            ddl.apply(connection, plan_schema(connection, contract))


def look(context: Context) -> list[Finding]:
    """Return what stops the rows, beside what else preflight says."""
    with (
        closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as source,
        closing(driver.connect(context.targets["svc"], application_name="tests", autocommit=True)) as target,
    ):
        catalog = source_catalog.read(source, "public")
        scanned = scan.run(source, context.plan, catalog)
        references = foreign_key_checks.build(context.plan, scanned.scans)
        compared = collations.check(source, {"svc": target}, context.plan, scanned.uniques)
        found = [*compared, *coverage.check_references(context.plan), *scanned.findings, *foreign_key_checks.check(source, {"svc": target}, references)]
    return [item for item in found if item.level == "stop"]


def demands(context: Context) -> list[Finding]:
    with closing(driver.connect(context.targets["svc"], application_name="tests", autocommit=True)) as target:
        return drift.check(context, {"svc": target}, {})


def test_a_foreign_key_of_several_columns_or_to_another_key_is_asked_of_every_row(database: Endpoint) -> None:
    execute(database, ROWS)
    context = family(database)
    found = {item.column: (item.rule, item.count, item.keys) for item in look(context)}
    assert found == {
        "tenant, parent_id": ("foreign_key", 1, ("11",)),
        "tenant, code": ("foreign_key", 2, ("12", "13")),  # MATCH FULL takes no half
        "lookup": ("foreign_key", 3, ("10", "15")),  # nobody has made the table yet
    }
    make(context)
    execute(database, "INSERT INTO svc.lookups VALUES ('known')")
    assert {item.column: item.keys for item in look(context)}["lookup"] == ("15",)


def test_rows_whose_reference_hangs_can_be_quarantined_and_the_rest_loads(database: Endpoint) -> None:
    execute(database, ROWS, "UPDATE child SET lookup = NULL")
    policies = [m.Policy("tenant", "foreign_key", "quarantine", None, "here"), m.Policy("code", "length", "quarantine", None, "here")]
    context = family(database, policies)
    assert look(context) == []
    make(context)
    free = transfer.Options("runner1", limits=unhurried().limits)
    done = transfer.run(context, PLAN_TIME, "run", free, Progress(None), lambda _context, _time: 0)
    assert done.balance is not None
    assert done.balance.passed
    build.build(database, Contract.from_dict(context.plan.contracts[0][1]))  # the foreign keys hold
    assert {item.source_key for item in quarantine.compute(context, plan_time=PLAN_TIME)} == {"11", "12", "13"}


def test_a_key_is_refused_exactly_where_a_b_tree_refuses_it(database: Endpoint) -> None:
    # Random bytes do not compress; their lengths straddle the limit. The other value is long, and compressed where it is stored.
    context = one_table(database, database, "CREATE SCHEMA svc; CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 bytea UNIQUE);", 1)
    noise = "SELECT string_agg(sha256(('x' || g || n)::bytea), '') FROM generate_series(1, 100) g"
    execute(
        database,
        "CREATE TABLE rows (id bigint PRIMARY KEY, v0 bytea)",
        f"INSERT INTO rows SELECT n, substring(({noise}) FROM 1 FOR n) FROM generate_series(2680, 2700) n",
        "INSERT INTO rows SELECT 1, convert_to(repeat('compressible', 1000), 'UTF8')",
        "CREATE SCHEMA svc; CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 bytea UNIQUE)",
    )
    (finding,) = look(context)
    assert (finding.rule, finding.column) == ("length", "c0")
    with (
        closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as source,
        closing(driver.connect(database, application_name="tests", autocommit=True)) as target,
    ):
        refused = [key for key in (1, *range(2680, 2701)) if load(context, source, target, [str(key)])]
    assert len(refused) == finding.count
    assert str(refused[0]) == finding.keys[0]


def test_a_key_that_would_mint_the_id_of_another_is_refused(database: Endpoint) -> None:
    context = one_table(database, database, "CREATE SCHEMA svc; CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 text);", 1)
    execute(database, "CREATE TABLE rows (id numeric PRIMARY KEY, v0 text)", "INSERT INTO rows VALUES (1, ''), (1.4, ''), (2.0, '')")
    (finding,) = look(context)
    assert (finding.rule, finding.column, finding.keys) == ("changed", "id", ("1.4",))


def test_a_row_of_the_services_own_collides_in_indexes_of_any_kind(database: Endpoint) -> None:
    made = "CREATE SCHEMA svc; CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 text, c1 numeric(6,2)); CREATE UNIQUE INDEX folded ON svc.things (lower(c0));"
    context = one_table(database, database, f"{made} CREATE UNIQUE INDEX part ON svc.things (c1) WHERE c0 IS NOT NULL;", 2)
    make(context)
    execute(database, "INSERT INTO svc.things VALUES (gen_random_uuid(), 'TAKEN', 1.5), (gen_random_uuid(), NULL, 7)")
    execute(database, "CREATE TABLE rows (id bigint PRIMARY KEY, v0 text, v1 numeric)")
    execute(database, "INSERT INTO rows VALUES (1, 'taken', 7), (2, 'free', 1.50), (3, NULL, 1.5)")
    with closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as source:
        scanned = scan.run(source, context.plan, source_catalog.read(source, "public"))
        found = collisions.check(context, source, scanned.scans, {})
    assert [(item.column, item.keys) for item in found if item.level == "stop"] == [("c0", ("1",)), ("c1", ("2",))]


def test_an_index_that_a_row_cannot_be_computed_for_is_named_with_the_row(database: Endpoint) -> None:
    made = "CREATE SCHEMA svc; CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 jsonb); CREATE INDEX by_n ON svc.things (((c0 ->> 'n')::integer))"
    context = one_table(database, database, f"{made} WHERE c0 ? 'n';", 1)
    execute(database, "CREATE TABLE rows (id bigint PRIMARY KEY, v0 jsonb)", """INSERT INTO rows VALUES (1, '{"n": 1}'), (2, '{"n": "x"}'), (3, '{}')""")
    (finding,) = look(context)
    assert (finding.rule, finding.keys) == ("type", ("2",))
    assert "compute the index by_n" in finding.message
    execute(database, "DELETE FROM rows WHERE id = 2")
    assert look(context) == []


def test_a_unique_index_that_the_source_cannot_compute_stops_and_ends_nothing_else(database: Endpoint) -> None:
    function = "CREATE FUNCTION svc.bare(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT $1 $$;"
    made = f"CREATE SCHEMA svc; {function} CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 text, c1 varchar(1));"
    context = one_table(database, database, f"{made} CREATE UNIQUE INDEX bare ON svc.things (svc.bare(c0));", 2)
    execute(database, "CREATE TABLE rows (id bigint PRIMARY KEY, v0 text, v1 text)", "INSERT INTO rows VALUES (1, 'a', 'bb')")
    assert {(item.rule, item.column) for item in look(context)} == {("unique", "c0"), ("length", "c1")}


def test_texts_that_are_equal_under_a_collation_of_the_target_are_found_there(databases: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = databases("source"), databases("target")
    made = 'CREATE SCHEMA svc; CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 text COLLATE "ci" UNIQUE, c1 text);'
    context = one_table(source, target, made, 2)
    execute(source, "CREATE TABLE rows (id bigint PRIMARY KEY, v0 text, v1 text)", "INSERT INTO rows VALUES (1, 'a', ''), (2, 'a', ''), (3, 'A', '')")
    assert any("wants the collation ci" in item.message for item in demands(context))
    # This server is built without ICU, so no collation of its own is nondeterministic: one is taken for it.
    monkeypatch.setattr(collations, "_collation", lambda *_arguments: ('pg_catalog."C"', False))
    found = [item for item in look(context) if "the target's collation" in item.message]
    assert [(item.rule, item.column, item.keys) for item in found] == [("unique", "c0", ("1", "2"))]


def test_conditions_that_need_types_of_the_target_are_doubtful(database: Endpoint) -> None:
    made = "CREATE SCHEMA svc; CREATE EXTENSION citext; CREATE TYPE svc.mood AS ENUM ('low', 'high');"
    table = "CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 citext CHECK (c0 <> 'x'), c1 svc.mood CHECK (c1 > 'low'), c2 svc.mood CHECK (c2 <> 'low'));"
    found = collations.doubts(one_table(database, database, made + table, 3).plan)
    assert [(item.level, item.column) for item in found] == [("warn", "c0"), ("warn", "c1")]


DEMANDS = {
    "ALTER TABLE svc.parents ADD CONSTRAINT own CHECK (tenant < 3)": "CHECK own",
    "ALTER TABLE svc.parents ADD CONSTRAINT own UNIQUE (code)": "UNIQUE own",
    "CREATE UNIQUE INDEX own ON svc.parents (tenant)": "unique index own",
    "ALTER TABLE svc.parents ADD CONSTRAINT own FOREIGN KEY (code) REFERENCES svc.lookups (name)": "FOREIGN KEY own",
    "ALTER TABLE svc.parents ADD CONSTRAINT own EXCLUDE USING btree (tenant WITH =)": "EXCLUDE own",
    "CREATE TRIGGER own BEFORE INSERT ON svc.parents FOR EACH ROW EXECUTE FUNCTION svc.stamp()": "the trigger own",
    "CREATE RULE own AS ON INSERT TO svc.parents DO INSTEAD NOTHING": "the rule own",
}


@pytest.mark.parametrize("change", DEMANDS)
def test_what_a_target_demands_beyond_the_schema_sql_stops_until_all_is_carried(database: Endpoint, change: str) -> None:
    context = family(database)
    make(context)
    execute(database, "CREATE FUNCTION svc.stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.tenant := 1; RETURN NEW; END $$")
    if "lookups" in change:
        execute(database, "ALTER TABLE svc.lookups ADD PRIMARY KEY (name)")
    assert demands(context) == []
    drift.require(context)
    execute(database, change)
    (finding,) = demands(context)
    assert (finding.level, DEMANDS[change] in finding.message) == ("stop", True)
    with pytest.raises(MigrationError, match=DEMANDS[change]):
        drift.require(context)
    with closing(driver.connect(database, application_name="tests", autocommit=True)) as connection:
        ledger.create(connection, context.plan, "svc", PLAN_TIME, "run")
        driver.rows(connection, "UPDATE migration.pin SET finished_at = now()")
    assert [item.level for item in demands(context)] == ["warn"]
    drift.require(context)


@pytest.mark.parametrize(
    ("there", "level"),
    [("CHECK (VALUE > 0) NOT NULL", []), ("NOT NULL CHECK (VALUE > 1)", ["stop"]), ("CHECK (VALUE > 0)", ["stop"]), ("NOT NULL", ["stop"])],
)
def test_a_domain_that_demands_something_else_is_drift(database: Endpoint, there: str, level: list[str]) -> None:
    made = "CREATE SCHEMA svc; CREATE DOMAIN svc.grade AS numeric(3,1) NOT NULL CHECK (VALUE > 0); CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 svc.grade);"
    context = one_table(database, database, made, 1)
    assert demands(context) == []
    execute(database, f"CREATE SCHEMA svc; CREATE DOMAIN svc.grade AS numeric(3,1) {there}")
    assert [item.level for item in demands(context)] == level


def test_extensions_and_roles_that_the_schema_sql_needs_are_looked_for(database: Endpoint) -> None:
    made = "CREATE SCHEMA svc; CREATE EXTENSION nowhere_to_be_found; CREATE EXTENSION plpgsql; CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 text);"
    context = one_table(database, database, f"{made} GRANT SELECT ON svc.things TO nobody_has_made;", 1)
    messages = " ".join(f"{item.level} {item.message}" for item in demands(context))
    assert "stop the schema SQL wants the extension nowhere_to_be_found" in messages
    assert "stop the schema SQL grants to the role nobody_has_made" in messages
    assert "plpgsql" not in messages


# What follows the table's name in CREATE INDEX, of a table with each of these columns.
INDEXES = {
    "USING gin (words gin_trgm_ops)": "CREATE EXTENSION pg_trgm",
    "USING gin (words)": "a default operator class of gin for character varying",
    "USING nowhere (words)": "the access method nowhere",
    "(raw)": "a default operator class of btree for json",
    "(words public.nowhere_ops)": "the operator class public.nowhere_ops",
    "USING gist (n)": "CREATE EXTENSION btree_gist",
    "USING gin (tags)": "",
    "USING gin (doc jsonb_path_ops)": "",
    "USING gist (span)": "",
    "USING brin (n)": "",
    "USING hash (words)": "",
    "(words text_pattern_ops, mood, few, lower(words))": "",
    "USING spgist (words)": "",
}


def test_an_index_that_the_server_cannot_make_stops_before_the_rows_are_carried(database: Endpoint) -> None:
    columns = "words varchar(20), tags int[], doc jsonb, raw json, span int4range, n integer, mood svc.mood, few svc.few"
    before = "CREATE SCHEMA svc; CREATE TYPE svc.mood AS ENUM ('a'); CREATE DOMAIN svc.few AS varchar(3)"
    made = f"{before}; CREATE TABLE svc.things (id uuid PRIMARY KEY, {columns})"
    execute(database, made)
    with closing(driver.connect(database, application_name="tests", autocommit=True)) as connection:
        for index, wanted in INDEXES.items():
            contract = parse_texts("svc", [("svc/1.sql", f"{made};\nCREATE INDEX one ON svc.things {index};")])
            found = index_support.check(connection, "svc", contract)
            said = [(item.level, item.place, wanted in f"{item.message} {item.next_step}") for item in found]
            assert said == ([("stop", "svc/1.sql:2", True)] if wanted else [])
            try:
                driver.rows(connection, f"BEGIN; CREATE INDEX one ON svc.things {index}; ROLLBACK")
                assert not wanted
            except psycopg2.Error:
                driver.rows(connection, "ROLLBACK")
                assert wanted, index
        pending = parse_texts("svc", [("svc/1.sql", f"CREATE EXTENSION pg_trgm; {made}; CREATE INDEX one ON svc.things USING gin (words gin_trgm_ops);")])
        assert index_support.check(connection, "svc", pending) == []


def test_the_grants_for_the_records_and_for_reading_work_as_printed(databases: Callable[..., Endpoint]) -> None:
    records, reader = databases("control"), databases("reader", role=True)
    execute(records, "CREATE SCHEMA migration; CREATE TABLE migration.migrations (id int); CREATE TABLE migration.records (id int)")
    execute(records, 'CREATE SCHEMA "Own ""Schema"; CREATE TABLE "Own ""Schema"."Big Table" (id int); CREATE SEQUENCE public."Seq"')
    asked = Endpoint("control", records.host, records.port, records.dbname, reader.user, reader.password)
    with closing(driver.connect(asked, application_name="tests", autocommit=True)) as connection:
        for check in (privileges.check_control, privileges.check_source):
            (before,) = [item for item in check(connection, "control") if item.level == "stop"]
            execute(records, before.next_step)
            assert [item for item in check(connection, "control") if item.level == "stop"] == []
        driver.rows(connection, "INSERT INTO migration.records VALUES (1)")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            driver.rows(connection, "DELETE FROM migration.records")
    execute(records, f"DROP OWNED BY {ident(reader.user)}")
