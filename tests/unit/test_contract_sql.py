# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The services' SQL becomes a contract, or a message that says where it stopped and what would be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.contract.parse import parse_contract, parse_texts
from ansible.module_utils.migration.errors import MigrationError

FILES = Path(__file__).resolve().parents[2] / "roles" / "schema" / "files"


def parsed(sql: str) -> Contract:
    return parse_texts("svc", [("svc/1.sql", sql)])


@pytest.mark.parametrize("service", ["auth_service", "user_service"])
def test_a_contract_survives_being_sent_to_a_runner(service: str) -> None:
    contract = parse_contract(service, FILES / service)
    assert Contract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_the_definition_does_not_change_when_only_lines_move() -> None:
    one, two = parsed("CREATE TABLE t (a integer)"), parsed("-- a remark\n\nCREATE TABLE t (\n a integer)")
    assert one != two
    assert one.to_dict(positions=False) == two.to_dict(positions=False)


def test_the_seven_tables_have_the_strategys_keys_and_indexes() -> None:
    auth, user = (parse_contract(name, FILES / name) for name in ("auth_service", "user_service"))
    assert [table.name for table in (*auth.tables, *user.tables)] == [
        "users",
        "permissions",
        "user_permissions",
        "profiles",
        "roles",
        "student_profiles",
        "company_profiles",
    ]
    names = {item.name for table in (*auth.tables, *user.tables) for item in (*table.constraints, *table.indexes)}
    assert {"idx_users_email", "idx_users_username", "idx_profiles_user_id", "idx_roles_user_id", "idx_roles_active"} <= names


@pytest.mark.parametrize(
    ("declared", "type_", "wire", "length", "precision", "scale"),
    [
        ("varchar(10)", "character varying(10)", "character varying", 10, None, None),
        ("varchar", "character varying", "character varying", None, None, None),
        ("char(3)", "character(3)", "bpchar", 3, None, None),
        ("char", "character(1)", "bpchar", 1, None, None),
        ("decimal(3,2)", "numeric(3,2)", "numeric", None, 3, 2),
        ("numeric(5)", "numeric(5,0)", "numeric", None, 5, 0),
        ("numeric(2,-3)", "numeric(2,-3)", "numeric", None, 2, -3),
        ("timestamp(0)", "timestamp(0) without time zone", "timestamp without time zone", None, 0, None),
        ("timestamptz", "timestamp with time zone", "timestamp with time zone", None, None, None),
        ("time(3) with time zone", "time(3) with time zone", "time with time zone", None, 3, None),
        ("interval(2)", "interval(2)", "interval", None, 2, None),
        ("bit(4)", "bit(4)", "bit varying", 4, None, None),
        ("varchar(20)[]", "character varying(20)[]", "character varying[]", 20, None, None),
        ("int8", "bigint", "bigint", None, None, None),
        ("float", "double precision", "double precision", None, None, None),
    ],
)
def test_a_type_is_written_as_postgresql_writes_it(declared: str, type_: str, wire: str, length: int | None, precision: int | None, scale: int | None) -> None:
    column = parsed(f"CREATE TABLE t (a {declared})").tables[0].columns[0]
    assert (column.type, column.wire_type, column.length, column.precision, column.scale) == (type_, wire, length, precision, scale)


def test_types_of_the_service_travel_as_built_in_types() -> None:
    contract = parsed(
        "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'glad');"
        " CREATE DOMAIN short AS varchar(5) NOT NULL CHECK (VALUE <> '');"
        " CREATE TABLE t (a mood, b short, c citext)"
    )
    mood, short, text = contract.tables[0].columns
    assert (mood.type, mood.wire_type, mood.enum_labels) == ("svc.mood", "text", ("sad", "glad"))
    assert (short.wire_type, short.length) == ("character varying", 5)
    assert short.domain is not None
    assert short.domain.not_null
    assert short.domain.checks == ("value <> ''",)
    assert text.wire_type == "text"


def test_names_are_chosen_as_postgresql_chooses_them() -> None:
    contract = parsed(
        'CREATE TABLE "Odd Table" (id integer PRIMARY KEY, "E Mail" text UNIQUE, n integer CHECK (n > 0), m integer,'
        ' CHECK (n < m), UNIQUE (n, m), FOREIGN KEY (n) REFERENCES "Odd Table");'
        ' CREATE INDEX ON "Odd Table" (lower("E Mail"), n); CREATE INDEX ON "Odd Table" ((n + m), (n - m)) INCLUDE (id);'
    )
    table = contract.tables[0]
    assert [constraint.name for constraint in table.constraints] == [
        "Odd Table_n_check",
        "Odd Table_check",
        "Odd Table_pkey",
        "Odd Table_E Mail_key",
        "Odd Table_n_m_key",
        "Odd Table_n_fkey",
    ]
    assert [index.name for index in table.indexes] == ["Odd Table_lower_n_idx", "Odd Table_expr_expr1_id_idx"]
    assert table.constraints[-1].references == ("svc", "Odd Table", ("id",))


def test_a_long_name_is_cut_where_postgresql_cuts_it() -> None:
    table = parsed(f"CREATE TABLE {'t' * 60} ({'c' * 50} integer UNIQUE)").tables[0]
    assert len(table.constraints[0].name) == 63
    assert table.constraints[0].name.endswith("_key")


def test_deferrable_beside_a_column_belongs_to_the_constraint_before_it() -> None:
    table = parsed("CREATE TABLE t (a integer PRIMARY KEY, b integer UNIQUE REFERENCES t DEFERRABLE INITIALLY DEFERRED)").tables[0]
    unique, foreign = table.constraints[1], table.constraints[2]
    assert (unique.kind, unique.deferrable) == ("unique", False)
    assert foreign.deferrable
    assert foreign.deferred
    assert foreign.definition.endswith('REFERENCES "svc"."t" ("a") DEFERRABLE INITIALLY DEFERRED')


def test_alter_table_adds_to_what_is_there() -> None:
    table = parsed(
        "BEGIN; SET lock_timeout = '5s'; CREATE TABLE t (a integer);"
        " ALTER TABLE t ADD COLUMN b text NOT NULL UNIQUE, ADD CONSTRAINT p PRIMARY KEY (a), ALTER b SET DEFAULT 'x;y'; COMMIT;"
    ).tables[0]
    assert [column.definition for column in table.columns] == ['"a" integer NOT NULL', "\"b\" text DEFAULT 'x;y' NOT NULL"]
    assert {constraint.name for constraint in table.constraints} == {"t_b_key", "p"}


def test_an_index_keeps_order_class_and_predicate() -> None:
    index = (
        parsed("CREATE TABLE t (a text, b integer); CREATE UNIQUE INDEX CONCURRENTLY i ON t (a text_pattern_ops DESC, b) WHERE b IS NOT NULL")
        .tables[0]
        .indexes[0]
    )
    assert index.columns == ("a", "b")
    assert index.predicate == "b IS NOT NULL"
    assert index.create("svc", "t", concurrently=True) == (
        'CREATE UNIQUE INDEX CONCURRENTLY "i" ON "svc"."t" USING btree ("a" text_pattern_ops DESC, "b") WHERE b IS NOT NULL'
    )


@pytest.mark.parametrize(
    ("sql", "line", "fault"),
    [
        ("CREATE TABLE t (\n a integer\n b text)", 3, "syntax error"),
        ("-- é ü 漢\n\nCREATE TABLE t (a varchr)", 3, "type varchr is not known here; did you mean varchar"),
        ("CREATE TABLE t (a serial)", 1, "GENERATED BY DEFAULT AS IDENTITY"),
        ("CREATE TABLE t (a citext)", 1, "CREATE EXTENSION citext"),
        ("CREATE TABLE other.t (a integer)", 1, "schema other is not created here"),
        ("CREATE SCHEMA migration", 1, "reserved"),
        ("CREATE TABLE t (a integer);\nCREATE INDEX ON t (b)", 2, "no column b"),
        ("CREATE TABLE t (a integer);\nCREATE INDEX ON u (b)", 2, "there is no table svc.u"),
        ("CREATE TABLE t (a integer);\nCREATE TABLE t (a integer)", 2, "used twice"),
        ("CREATE TABLE t (a integer UNIQUE);\nCREATE INDEX t_a_key ON t (a)", 2, "used twice"),
        ("CREATE TABLE t (a integer REFERENCES u)", 1, "do not create"),
        ("CREATE TABLE t (a integer,\n a text)", 2, "twice"),
        ("CREATE TABLE t (a integer, EXCLUDE USING gist (a WITH =))", 1, "EXCLUDE"),
        ("CREATE EXTENSION hstore; CREATE TABLE t (a hstore[])", 1, "array"),
        ("CREATE TABLE t (a integer) PARTITION BY LIST (a); CREATE TABLE u (a integer REFERENCES t)", 1, "do not create"),
        ("CREATE TABLE t (a integer GENERATED ALWAYS AS IDENTITY (START WITH 100))", 1, "START 100"),
        ("\\i tables.sql\nCREATE TABLE t (a integer)", 1, "psql command"),
        ("CREATE UNLOGGED TABLE t (a integer)", 1, "unlogged"),
        ("CREATE TABLE t (a integer);\nDROP TABLE t", 2, "no meaning"),
        ("CREATE TABLE t (a integer);\nINSERT INTO t VALUES (1)", 2, "no meaning"),
        ("CREATE TABLE t (a integer);\nALTER TABLE t DROP COLUMN a", 2, "no meaning"),
        ("CREATE TYPE m AS ENUM ('a'); CREATE TABLE t (a m[])", 1, "array"),
        ("CREATE TYPE m AS (a integer)", 1, "no meaning"),
        ("SET search_path = elsewhere", 1, "search_path"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(sql: str, line: int, fault: str) -> None:
    with pytest.raises(MigrationError, match=fault) as caught:
        parsed(sql)
    assert str(caught.value).startswith(f"svc/1.sql:{line}: ")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="no such folder"):
        parse_contract("svc", tmp_path / "none")
    with pytest.raises(MigrationError, match="no file named"):
        parse_contract("svc", tmp_path)
