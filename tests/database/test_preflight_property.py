# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight against PostgreSQL itself, for random types, constraints and rows.

No row that passes may fail to load or load as another value; a row is refused only where PostgreSQL refuses it, stores
another value, or the named rules `blank` and `unique` (where PostgreSQL would take the first) refuse it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg2
import pytest
from ansible.module_utils.migration.checks import source_catalog
from ansible.module_utils.migration.plan import mapping as m
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.postgres.quote import literal
from ansible.module_utils.migration.preflight import scan
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from tests.one_table import PLAN_TIME, load, one_table

CASES = int(os.environ.get("PREFLIGHT_CASES", "60"))

NUMBERS = ("0", "1", "-1", "0.5", "1.5", "2.25", "9.99", "9.994", "9.995", "9.999", "10", "100", "32767", "32768", "-32769",
           "2147483647", "2147483648", "2147483647.5", "16777217",
           "9007199254740993", "9223372036854775807", "0.1", "123456.789")  # fmt: skip
WILD = (
    "NaN",
    "1e30",
    "1e300",
    "-1e300",
    "1e-300",
    "1e-45",
    "1e39",
    "3.4028235677973366e38",
    "9223372036854775808",
    "0.30000000000000004",
    "Infinity",
    "-Infinity",
)
DOCUMENTS = (
    "null",
    "1",
    "1.0",
    "[]",
    "{}",
    '{"a": 1, "b": 2}',
    '{"a": 1, "a": 2}',
    '[{"x": {"k": 1, "k": 1}}]',
    '"\\u0000"',
    '"\\\\u0000"',
    '"a:b"',
    '{"a:\\"b": ":"}',
    '"\\ud800"',
    '"é😀"',
    "1e400000",
)
TEXTS = (
    "",
    " ",
    "  ",
    "a",
    "A",
    "abcde",
    "abcdef",
    "abc   ",
    "abcd  ",
    "abcde ",
    "é😀ü",
    "é😀üéü",
    "é😀üéüx",
    "12",
    " 7 ",
    "12x",
    "1.005",
    "yes",
    "red",
    "2024-02-30",
    "2024-02-29",
    'it\'s \\ "q"\n',
)
STAMPS = (
    "2024-02-29 12:34:56.789012+00",
    "2024-01-01 00:00:00+00",
    "1999-12-31 23:59:59.999999+00",
    "infinity",
    "-infinity",
    "294276-12-31 23:59:59.5+00",
    "4713-01-02 00:00:00+00 BC",
    "1582-10-10 00:00:00+00",
)
DATES = ("2024-02-29", "infinity", "-infinity", "294276-12-31", "294277-01-01", "5874897-12-31", "4713-01-02 BC")
SPANS = ("1 day", "24:00", "25:30:00.5", "23:59:59.9999995", "-1 month", "1 mon 2 days 03:04:05.6", "0")
TIMES = ("00:00", "24:00", "12:34:56.789", "23:59:59.999999")
ZONED = ("12:00+00", "12:00+05:30", "00:00-08", "23:59:59.9+00")
NETS = ("10.0.0.0/8", "10.1.2.3/8", "10.1.2.3", "::1/64", "fe80::/10")
BITS = ("", "1", "101", "10101")
RANGES = ("empty", "[1,5)", "(,)", "[3,3]", "(1,2)")
LISTS = {
    "integer[]": ("{}", "{1,NULL}", "{{1,2},{3,40000}}", "{-2147483648}"),
    "numeric[]": ("{}", "{1.0,NULL}", "{1.5}", "{99.95}", "{NaN}", "{100000000000}"),
    "double precision[]": ("{}", "{0.5}", "{0.1,NULL}", "{1e300}", "{Infinity}", "{16777217}"),
    "text[]": ("{}", "{a,NULL}", "{'abcd  '}", '{"abc  "}', "{12}", '{" 7 "}', "{abcdef}", '{""}'),
}
OTHERS = {"interval": SPANS, "time": TIMES, "timetz": ZONED, "inet": NETS, "bit varying(5)": BITS, "int4range": RANGES, **LISTS}
LIST_TARGETS = {
    "integer[]": ("integer[]", "smallint[]", "numeric[]", "text[]", "real[]"),
    "numeric[]": ("numeric[]", "numeric(3,1)[]", "integer[]", "double precision[]"),
    "double precision[]": ("double precision[]", "real[]", "numeric[]", "integer[]"),
    "text[]": ("text[]", "varchar(3)[]", "integer[]"),
}
OTHER_TARGETS = {
    "interval": ("interval", "interval(0)", "time", "text"),
    "time": ("time", "time(0)", "interval", "timetz"),
    "timetz": ("timetz", "time", "text"),
    "inet": ("inet", "cidr", "text"),
    "bit varying(5)": ("bit varying(4)", "bit(3)", "text"),
    "int4range": ("int4range", "text"),
    "jsonb": ("integer", "numeric", "boolean", "double precision"),
    **LIST_TARGETS,
}
UUIDS = ("00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")

CONSTANTS = (*TEXTS, *NUMBERS, *DOCUMENTS[:8], "NaN", "1e400", "green", "true", DATES[0], STAMPS[0], "infinity", UUIDS[1])

INTEGERS = tuple(text for text in NUMBERS if "." not in text)
LIMITS = {"smallint": 15, "integer": 31, "bigint": 63}
NUMERIC = ("smallint", "integer", "bigint", "numeric", "real", "double precision")
TEXTUAL = ("text", "varchar(20)", "varchar(4)", "char(7)")
TEMPORAL = ("timestamptz", "timestamp", "date")
NUMERIC_TARGETS = (*NUMERIC, "numeric(3,2)", "numeric(6)", "numeric(12,4)")
TEXT_TARGETS = ("text", "varchar(5)", "char(4)", "varchar(1)")
TEMPORAL_TARGETS = ("timestamp", "timestamp(0)", "timestamptz(3)", "timestamptz", "date")
OWN_TARGETS = ("mood", "score", "word", "code", "humour")
ANY_TARGET = (*NUMERIC_TARGETS, *TEXT_TARGETS, *TEMPORAL_TARGETS, "boolean", "json", "jsonb", "uuid", "time", *OWN_TARGETS)
TYPES = """
CREATE TYPE svc.mood AS ENUM ('red', 'green', '12');
CREATE DOMAIN svc.score AS numeric(4,1) CHECK (VALUE >= 0) CHECK (VALUE < 500);
CREATE DOMAIN svc.word AS varchar(4) NOT NULL CHECK (VALUE <> 'A');
CREATE DOMAIN svc.code AS char(3) CHECK (VALUE ~ '^[a-zA-Z0-9. ]{3}$') CHECK (length(VALUE) > 1);
CREATE DOMAIN svc.humour AS svc.mood CHECK (VALUE <> 'green');
"""


# A float's exact value, from its bits: sign, exponent, fraction (IEEE 754 binary64).
EXACTLY = """
CREATE FUNCTION exactly(whole bigint, number double precision) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN whole IS NULL OR number IS NULL THEN whole IS NULL AND number IS NULL WHEN number = 0 THEN whole = 0 ELSE (
        SELECT sign(whole) = sign(number) AND CASE
            WHEN power < 0 THEN abs(whole::numeric) * 2::numeric ^ -power = mantissa ELSE abs(whole::numeric) = mantissa * 2::numeric ^ power END
        FROM (SELECT ((bits & 4503599627370495) | 4503599627370496)::numeric AS mantissa, ((bits >> 52) & 2047)::int - 1075 AS power
              FROM (SELECT ('x' || encode(float8send(number), 'hex'))::bit(64)::bigint AS bits) AS raw) AS parts) END $$
"""


def pairs() -> list[tuple[str, str]]:
    """Return the pairs of types (source, target) that a mapping may name."""
    found = [(a, b) for a in NUMERIC for b in (*NUMERIC_TARGETS, "score", *TEXT_TARGETS)]
    found += [(a, b) for a in TEXTUAL for b in ANY_TARGET]
    found += [(a, b) for a in TEMPORAL for b in (*TEMPORAL_TARGETS, "text", "varchar(5)")]
    found += [(a, b) for a in ("json", "jsonb") for b in ("json", "jsonb", "text", "varchar(5)")]
    found += [(a, b) for a, targets in OTHER_TARGETS.items() for b in targets]
    return [*found, ("boolean", "boolean"), ("boolean", "integer"), ("integer", "boolean"), ("uuid", "uuid"), ("boolean", "varchar(5)"), ("uuid", "text")]


def values(kind: str) -> st.SearchStrategy[str | None]:
    """Return SQL texts of values that a source column of that type can hold."""
    if kind in LIMITS:
        limit = 2 ** LIMITS[kind]
        fitting = [text for text in INTEGERS if -limit <= int(text) < limit]
        chosen = st.one_of(st.sampled_from(fitting), st.integers(-limit, limit - 1).map(str))
    elif kind == "numeric":
        chosen = st.one_of(st.sampled_from((*NUMBERS, *WILD, "1e400")), st.decimals(-1000, 1000, places=3).map(str))
    elif kind == "double precision":
        chosen = st.one_of(st.sampled_from((*NUMBERS, *WILD)), st.floats(width=64, allow_subnormal=False).map(repr))
    elif kind == "real":
        chosen = st.one_of(st.sampled_from((*NUMBERS, "NaN", "Infinity", "1e30")), st.floats(width=32, allow_subnormal=False).map(repr))
    elif kind in TEXTUAL:
        fits = [
            text
            for text in (*TEXTS, *NUMBERS[:8], *DATES[:2], *DOCUMENTS[:8])
            if len(text) <= {"text": 99, "varchar(20)": 20, "varchar(4)": 4, "char(7)": 7}[kind]
        ]
        alphabet = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=7)
        chosen = st.one_of(st.sampled_from(fits), alphabet)
    elif kind in ("timestamptz", "timestamp"):
        chosen = st.sampled_from(STAMPS)
    elif kind == "date":
        chosen = st.sampled_from(DATES)
    elif kind == "json":
        chosen = st.sampled_from(DOCUMENTS)
    elif kind == "jsonb":
        chosen = st.sampled_from([text for text in DOCUMENTS if text not in ('"\\u0000"', '"\\ud800"', "1e400000")])
    elif kind in OTHERS:
        chosen = st.sampled_from(OTHERS[kind])
    elif kind == "boolean":
        chosen = st.sampled_from(("true", "false"))
    else:
        chosen = st.sampled_from(UUIDS)
    return st.one_of(st.none(), chosen, chosen, chosen)


@dataclass(frozen=True)
class Case:
    """A source table, a target table, rows; `constants` stand for a column by its number, the other columns are copies."""

    types: tuple[tuple[str, str], ...]
    constraints: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    constants: tuple[tuple[int, str], ...] = ()
    indexes: tuple[str, ...] = ()

    @property
    def target_sql(self) -> str:
        columns = ", ".join(
            f"c{i} {kind if kind not in OWN_TARGETS else 'svc.' + kind} {rule.format(c=f'c{i}')}"
            for i, ((_, kind), rule) in enumerate(zip(self.types, self.constraints, strict=True))
        )
        return f"CREATE TABLE svc.things (id uuid PRIMARY KEY, {columns});" + "".join(f" CREATE {text};" for text in self.indexes)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    types = draw(st.lists(st.sampled_from(pairs()), min_size=1, max_size=3))
    rules = []
    for _, target in types:
        known = ["", "", "NOT NULL", "UNIQUE", "UNIQUE NOT NULL"] if target != "json" else ["", "NOT NULL"]
        if target in NUMERIC_TARGETS:
            known.append("CHECK ({c} > 0)")
        if target in TEXT_TARGETS:
            known += ["CHECK ({c} <> '' AND length({c}) < 5)", "CHECK ({c} ~ '^[a-z0-9]*$')", "UNIQUE NULLS NOT DISTINCT"]
        rules.append(draw(st.sampled_from(known)))
    rows = draw(st.lists(st.tuples(*(values(source) for source, _ in types)), min_size=1, max_size=8))
    constants = {number: draw(st.sampled_from(CONSTANTS)) for number in range(len(types)) if draw(st.integers(0, 5)) == 0}
    return Case(tuple(types), tuple(rules), tuple(rows), tuple(constants.items()), tuple(draw(st.lists(st.sampled_from(indexes(types)), max_size=2))))


def indexes(types: list[tuple[str, str]]) -> list[str]:
    """Return indexes that a table of those columns can have, some of which some rows break."""
    found = ["INDEX ON svc.things (id)", "UNIQUE INDEX ON svc.things (id) WHERE id <> '00000000-0000-0000-0000-000000000000'"]
    for number, (_, kind) in enumerate(types):
        column, last = f"c{number}", f"c{len(types) - 1}"
        if kind == "json" or types[-1][1] == "json":
            continue
        found += [
            f"UNIQUE INDEX ON svc.things ({column}, {last})",
            f"UNIQUE INDEX ON svc.things ({column}) NULLS NOT DISTINCT WHERE {last} IS NOT NULL",
            f"UNIQUE INDEX ON svc.things (coalesce({column}, NULL), coalesce(id, '{UUIDS[1]}'))",
        ]
        if kind in TEXT_TARGETS:
            found += [
                f"UNIQUE INDEX ON svc.things (lower({column}))",
                f"INDEX ON svc.things (({column}::integer))",
                f"UNIQUE INDEX ON svc.things ((length({column}) % 2)) WHERE {column} ~ '^[a-z]*$'",
            ]
        if kind in NUMERIC_TARGETS:
            found.append(f"INDEX ON svc.things ((1 / {column})) WHERE {column} <> 1")
    return found


@pytest.fixture(scope="module")
def shared(postgres: Any) -> Any:
    """One database for all cases: the source's tables in public, the target's in svc."""
    with closing(driver.connect(postgres.endpoint(), application_name="tests", autocommit=True)) as connection:
        driver.rows(connection, "CREATE DATABASE preflight_property TEMPLATE template0 ENCODING 'UTF8'")
    with closing(driver.connect(postgres.endpoint("preflight_property"), application_name="tests", autocommit=True)) as connection:
        driver.rows(connection, EXACTLY)
    yield lambda: postgres.endpoint("preflight_property")  # a failing case prints its arguments, not a password
    with closing(driver.connect(postgres.endpoint(), application_name="tests", autocommit=True)) as connection:
        driver.rows(connection, "DROP DATABASE preflight_property WITH (FORCE)")


def same(kinds: tuple[str, str], number: int, constant: str | None = None) -> str:
    """Return SQL: does the target's value say what the source's (or the constant) said? Written without preflight's own code."""
    source, target = (f"s.v{number}" if constant is None else f"{literal(constant)}::text"), f"t.c{number}"
    a, b = kinds if constant is None else ("text", kinds[1])
    if b == "code":
        return f"rtrim({source}::text) IS NOT DISTINCT FROM rtrim({target}::text)"
    if b in TEXT_TARGETS or b in ("mood", "word", "humour"):
        return f"{source}::text IS NOT DISTINCT FROM {target}::text"
    if a in NUMERIC and (b in NUMERIC_TARGETS or b == "score"):
        if a in ("real", "double precision"):
            return f"{target}::{a} IS NOT DISTINCT FROM {source}"
        return (
            f"{source}::numeric IS NOT DISTINCT FROM {target}::text::numeric"
            if a == "numeric" or b not in ("real", "double precision")
            else f"exactly({source}, {target})"
        )
    if a in OTHER_TARGETS:
        return other(source, target, a, b)
    if a in TEXTUAL and b in ("real", "double precision"):
        return f"{source}::text::numeric IS NOT DISTINCT FROM {target}::text::numeric"
    if a in TEXTUAL and b in ("timestamp", "timestamptz", "date"):
        near = f"{source}::text::timestamptz IS NOT DISTINCT FROM {target}::timestamptz"
        return f"CASE WHEN {target} > '294000-01-01' THEN {source}::text::{b} = {target} ELSE {near} END"
    if a in TEXTUAL and b == "time":
        return f"{source}::text ~ '^[ 0-9:.]*$' IS NOT FALSE AND {source}::text::time IS NOT DISTINCT FROM {target}"
    if a in TEMPORAL:
        return f"{source}::timestamptz IS NOT DISTINCT FROM {target}::timestamptz" if a != "date" or b != "date" else f"{source} IS NOT DISTINCT FROM {target}"
    if a == "integer" and b == "boolean":
        return f"{source} IS NOT DISTINCT FROM {target}::int"
    if b in ("json", "jsonb"):
        return (
            f"{source}::text::jsonb IS NOT DISTINCT FROM {target}::text::jsonb"
            if b == "jsonb"
            else f"rtrim({source}::text) IS NOT DISTINCT FROM rtrim({target}::text)"
        )
    if (a in TEXTUAL and b.startswith(("numeric(", "timestamp(0", "timestamptz(3"))) or b == "score":
        base = {"n": "numeric", "s": "numeric", "t": "timestamp" if b.startswith("timestamp(") else "timestamptz"}[b[0]]
        return f"{source}::text::{base} IS NOT DISTINCT FROM {target}::{base}"
    base = re.sub(r"\(.*\)", "", b)
    return f"{source}::text::{base} IS NOT DISTINCT FROM {target}" if a in TEXTUAL else f"{source}::{base} IS NOT DISTINCT FROM {target}"


def other(source: str, target: str, a: str, b: str) -> str:
    """Return the same for the types that have few pairs."""
    if a == "jsonb" and b not in ("json", "jsonb"):
        return f"coalesce({source}, 'null') = coalesce(to_jsonb({target}), 'null')"
    if a in LISTS and a != "text[]" and b != "text[]":
        return f"{source}::text[]::numeric[] IS NOT DISTINCT FROM {target}::text[]::numeric[]"
    if b == "text" or a in LISTS or a.startswith("bit"):
        return f"{source}::text IS NOT DISTINCT FROM {target}::text"
    if a == "jsonb":
        return f"{source}::text::jsonb IS NOT DISTINCT FROM {target}::text::jsonb"
    return f"{source} IS NOT DISTINCT FROM {target}::{a}"


def doubled(text: str | None) -> bool:
    """Return whether a JSON text has an object with a key twice."""
    seen = False

    def hook(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal seen
        seen = seen or len({name for name, _ in found}) != len(found)
        return dict(found)

    try:
        json.loads(text or "null", object_pairs_hook=hook)
    except ValueError:
        return False
    return seen


class Bench:
    """One case, set up."""

    def __init__(self, endpoint: Endpoint, case: Case) -> None:
        self.endpoint, self.case = endpoint, case
        given = {number: m.Column(f"c{number}", f"svc/things.yml:{number}", value=text) for number, text in case.constants}
        self.context = one_table(endpoint, endpoint, f"CREATE SCHEMA svc; {TYPES} {case.target_sql}", len(case.types), given=given)
        self.part = self.context.plan.targets[0].parts[0]
        self.writer = driver.connect(endpoint, application_name="tests", autocommit=True)
        source = ", ".join(f"v{i} {kind}" for i, (kind, _) in enumerate(case.types))
        driver.rows(
            self.writer,
            f"DROP SCHEMA IF EXISTS svc CASCADE; CREATE SCHEMA svc; {TYPES} {case.target_sql}"
            f" DROP TABLE IF EXISTS rows, hidden; CREATE TABLE rows (id bigint PRIMARY KEY, {source})",
        )
        for number, row in enumerate(case.rows, 1):
            listed = ", ".join("NULL" if value is None else literal(value) for value in row)
            try:
                driver.rows(self.writer, f"INSERT INTO rows VALUES ({number}, {listed})")
            except psycopg2.Error:  # the source itself cannot hold it
                continue
        self.source = self.context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)

    def close(self) -> None:
        self.source.close()
        self.writer.close()

    def all_keys(self) -> list[str]:
        return [str(row[0]) for row in driver.rows(self.writer, "SELECT id FROM rows ORDER BY id")]

    def refused(self) -> dict[str, set[str]]:
        """Return the refused keys with their rules; rows on which an expression raised are taken out one after the other."""
        found: dict[str, set[str]] = {}
        hidden: list[str] = []
        while True:
            report = scan.run(self.source, self.context.plan, source_catalog.read(self.source, "public"))
            stops = [item for item in report.findings if item.level == "stop"]
            if any(item.count is None and not item.keys for item in stops):  # a constant that is no value of its type
                return {**found, **{key: {"type"} for key in self.all_keys()}}
            raised = [item for item in stops if item.count is None]
            assert all(item.keys for item in raised), raised
            if not raised:
                break
            for key in {item.keys[0] for item in raised}:
                found.setdefault(key, set()).add("type")
                hidden.append(key)
                driver.rows(
                    self.writer,
                    f"CREATE TABLE IF NOT EXISTS hidden (LIKE rows);"
                    f" WITH gone AS (DELETE FROM rows WHERE id = {key} RETURNING *) INSERT INTO hidden SELECT * FROM gone",
                )
        for item in stops:
            for key in item.keys:
                found.setdefault(key, set()).add(item.rule)
        if hidden:
            driver.rows(self.writer, "INSERT INTO rows SELECT * FROM hidden; DROP TABLE hidden")
        return found

    def load(self, keys: list[str]) -> str:
        """Load rows as the transfer does; return '' or PostgreSQL's error."""
        return load(self.context, self.source, self.writer, keys)

    def altered(self) -> dict[str, list[int]]:
        """Return the loaded rows that say something else than the source."""
        given = dict(self.case.constants)
        tests = ", ".join(f"({same(kinds, number, given.get(number))})" for number, kinds in enumerate(self.case.types))
        texts = ", ".join(f"{literal(given[number])}::text" if number in given else f"s.v{number}::text" for number in range(len(self.case.types)))
        ids_of = f"SELECT {self.part.id_sql} AS id, src.id AS key FROM rows AS src"
        joined = f"SELECT s.id, ARRAY[{tests}], ARRAY[{texts}] FROM rows s JOIN ({ids_of}) k ON k.key = s.id JOIN svc.things t ON uuid_send(t.id) = k.id"
        result = {}
        try:
            found = driver.rows(self.source, joined)
        except psycopg2.errors.DatetimeFieldOverflow:  # stored, but nobody can read it
            return {"": []}
        for key, equal, raw in found:
            wrong = [
                n
                for n, good in enumerate(equal)
                if not good or (self.case.types[n][1] == "jsonb" and (self.case.types[n][0] != "jsonb" or n in given) and doubled(raw[n]))
            ]
            if wrong:
                result[str(key)] = wrong
        return result


@settings(max_examples=CASES, deadline=None, derandomize="PREFLIGHT_CASES" not in os.environ, suppress_health_check=list(HealthCheck))
@given(case=cases())
@example(case=Case((("numeric", "numeric(3,2)"),), ("",), (("9.99",), ("9.994",), ("9.995",), ("10",), ("NaN",), ("Infinity",))))
@example(case=Case((("timestamptz", "date"),), ("",), ((STAMPS[0],), (STAMPS[1],), (STAMPS[3],))))
@example(case=Case((("timestamp", "timestamp(0)"),), ("",), ((STAMPS[0],), (STAMPS[5],), (STAMPS[4],))))
@example(case=Case((("interval", "time"), ("inet", "cidr")), ("", ""), (("1 day", None), ("12:00", "10.1.2.3/8"))))
@example(case=Case((("numeric[]", "integer[]"), ("text", "timestamp")), ("", ""), (("{1.5}", None), ("{1}", "2024-01-01 12:00+05"), (None, "now"))))
@example(case=Case((("text", "uuid"),), ("UNIQUE NULLS NOT DISTINCT",), ((UUIDS[1],), (UUIDS[1].upper(),), (None,), (None,))))
@example(case=Case((("varchar(20)", "varchar(5)"), ("json", "jsonb")), ("", ""), (("abcdef", "1"), ("abc   ", "1"), ("a", DOCUMENTS[6]), ("b", DOCUMENTS[8]))))
def test_preflight_refuses_what_postgresql_refuses_and_nothing_else(shared: Callable[[], Endpoint], case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "FIRST", 1000)
    with closing(Bench(shared(), case)) as bench:
        refused = bench.refused()
        good = [key for key in bench.all_keys() if key not in refused]
        event(f"refused {len(refused) > 0}, passed {len(good) > 0}")
        if good:
            assert bench.load(good) == "", (case, refused)
            assert bench.altered() == {}, (case, refused)
        if refused and all(rules == {"unique"} for rules in refused.values()):
            assert bench.load(list(refused)) != "", (case, refused)
        for key, rules in refused.items():
            if rules & {"unique", "blank"}:
                continue
            fault = bench.load([key])
            assert fault or bench.altered(), (case, key, rules)


def test_duplicates_are_refused_only_where_postgresql_would_refuse_one_of_them(shared: Callable[[], Endpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "FIRST", 1000)
    case = Case((("text", "text"), ("integer", "integer")), ("UNIQUE", ""), (("a", "1"), ("a", "2"), ("A", "3"), (None, "4"), (None, "5")))
    with closing(Bench(shared(), case)) as bench:
        assert bench.refused() == {"1": {"unique"}, "2": {"unique"}}
        assert bench.load(["1", "3", "4", "5"]) == ""
        assert bench.load(["1", "2"]).startswith("23505")
