# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the source: one pass over each part's source, then the first keys of what was found."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from .. import driver
from ..errors import MigrationError
from ..plan import Cell, Part, Plan, Target
from .contract_checks import Check, PartScan, build_scan, raw_expressions, raw_sql, scanned
from .findings import INFO, STOP, WARN, Finding
from .source_catalog import SourceCatalog
from .uniques import Unique, build_uniques

FIRST = 5  # keys named for each finding
SHOWN = 60  # characters of a constant
NO_PRIVILEGE = "42501"
_RAISED = {"22P05": "encoding", "22021": "encoding", "22003": "range", "22008": "range"}  # SQLSTATE: rule
BATCH = 300  # conditions in one statement; PostgreSQL's limit is 1664 result columns


@dataclass(frozen=True)
class Scanned:
    """What the scans found: rows for each (target, part), findings, and the scans themselves for what builds on them."""

    rows: dict[tuple[str, str], int]
    findings: tuple[Finding, ...]
    scans: tuple[PartScan, ...]
    uniques: tuple[Unique, ...]


Encodings = Mapping[str, tuple[str, str]]  # of the source and of the target, by service


def prepare(
    connection: driver.Connection,
    plan: Plan,
    source: SourceCatalog,
    encodings: Encodings | None = None,
    *,
    blocked: Container[tuple[str, str]] = (),
) -> tuple[tuple[PartScan, ...], list[Finding]]:
    """Return every part's scan, and a finding for each part whose SQL the source does not understand.

    `blocked` are the (target, part) that coverage has spoken of: they have no scan, and no second finding.
    """
    version = connection.server_version
    scans: list[PartScan] = []
    findings: list[Finding] = []
    names: dict[int, str] = {}
    for target, part in scanned(plan):
        wrong = _constants(connection, target, part)
        findings += wrong
        if wrong or (target.name, part.name) in blocked or any(name not in source.tables for name in part.tables):
            continue  # coverage has said so
        try:
            types = _types(connection, raw_expressions(target, part), part.source(source.schema), names)
            with driver.database_errors(part.label, "reading the projection"):
                driver.rows(connection, f"{part.select(source.schema)} LIMIT 0")
            scan = build_scan(plan, target, part, source.schema, types, source.primary_keys, version, (encodings or {}).get(target.service, ("UTF8", "UTF8")))
            with driver.database_errors(part.label, "building the checks"):
                driver.rows(connection, f"SELECT 1 FROM {scan.source} LIMIT 0")
        except MigrationError:
            findings += _diagnose(connection, target, part, source.schema)
            continue
        scans.append(scan)
    return tuple(scans), findings


def run(
    connection: driver.Connection,
    plan: Plan,
    source: SourceCatalog,
    encodings: Encodings | None = None,
    *,
    blocked: Container[tuple[str, str]] = (),
) -> Scanned:
    """Return what the rows of the source break; `blocked` as in prepare()."""
    scans, findings = prepare(connection, plan, source, encodings, blocked=blocked)
    rows: dict[tuple[str, str], int] = {}
    for scan in scans:
        count, found = _scan(connection, scan)
        rows[scan.target.name, scan.part.name] = count
        findings += found
    uniques = []
    for target in plan.targets:
        mine = [scan for scan in scans if scan.target is target]
        if not mine:
            continue
        for unique in build_uniques(plan, target, mine, source.proven):
            uniques.append(unique)
            findings += _unique(connection, unique)
    return Scanned(rows, tuple(findings), scans, tuple(uniques))


def _types(connection: driver.Connection, expressions: Sequence[str], source: str, names: dict[int, str]) -> list[tuple[str, int | None]]:
    with driver.database_errors("the source", "describing the mapping's columns"), connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(expressions)} FROM {source} LIMIT 0")
        codes = [item.type_code for item in cursor.description]
        sizes = [item.internal_size for item in cursor.description]  # of varchar(n): n
    missing = [code for code in set(codes) if code not in names]
    if missing:
        names.update(driver.rows(connection, "SELECT oid::int8, format_type(oid, NULL) FROM pg_type WHERE oid = ANY (%s::oid[])", (missing,)))
    return [(names[code], size if size and size > 0 else None) for code, size in zip(codes, sizes, strict=True)]


def _constants(connection: driver.Connection, target: Target, part: Part) -> list[Finding]:
    """Return which constants of a mapping are no value of their column's type; they stand in the mapping, so they are shown."""
    findings = []
    for cell in part.cells:
        if not cell.constant:
            continue
        try:
            with driver.database_errors(part.label, cell.name):
                driver.rows(connection, f"SELECT {cell.sql}")
        except MigrationError as exc:
            value = raw_sql(cell, ())
            shown = value if len(value) <= SHOWN else f"{value[:SHOWN]}..."
            message = f"{shown} is no {cell.type}" if _state(exc).startswith("22") else _said(exc, cell.name)
            step = f"write a value of type {cell.type} for {target.name}.{cell.name}"
            findings.append(Finding(STOP, cell.place or part.label, "type", message, step, target.name, cell.name))
    return findings


def _diagnose(connection: driver.Connection, target: Target, part: Part, schema: str) -> list[Finding]:
    """Return what the source does not understand: the part's source as a whole, else its columns, each asked for alone.

    Columns that fail alike share one finding.
    """
    try:
        with driver.database_errors(part.label, "its source"):
            driver.rows(connection, f"SELECT 1 FROM {part.source(schema)} LIMIT 0")
    except MigrationError as exc:
        return [_not_understood(exc, part.label, "its source", target, (), f"correct the source of {part.label}")]
    failed: dict[str, tuple[MigrationError, list[Cell]]] = {}
    for cell in part.cells:
        for expression in (cell.key or "NULL", cell.sql):
            try:
                with driver.database_errors(part.label, cell.name):
                    driver.rows(connection, f"SELECT {expression} FROM {part.source(schema)} LIMIT 0")
            except MigrationError as exc:
                failed.setdefault(_said(exc, cell.name), (exc, []))[1].append(cell)
                break
    findings = []
    for error, cells in failed.values():
        names = tuple(cell.name for cell in cells)
        findings.append(
            _not_understood(error, cells[0].place or part.label, names[0], target, names, f"correct the mapping of {target.name}: {', '.join(names)}")
        )
    return findings or [
        Finding(
            STOP,
            part.label,
            "type",
            "the source does not understand the mapping's SQL together with its parents",
            "check 'map' and 'parents': both sides of a reference need the same kind of type",
            target.name,
        )
    ]


def _not_understood(exc: MigrationError, place: str, doing: str, target: Target, columns: tuple[str, ...], step: str) -> Finding:
    said = _said(exc, doing)
    column = columns[0] if len(columns) == 1 else ""
    if _state(exc) != NO_PRIVILEGE:
        return Finding(STOP, place, "type", said, step, target.name, column)
    kind, name = found.groups() if (found := re.match(r"permission denied for (?:materialized )?(\w+) (\S+)", said)) else ("", "")
    grants = {"schema": "USAGE ON SCHEMA", "function": "EXECUTE ON FUNCTION", "table": "SELECT ON", "view": "SELECT ON"}
    grant = f"GRANT {grants[kind]} {name} TO the reading role" if kind in grants else "grant it to the reading role (docs/privileges.md)"
    return Finding(STOP, place, "privilege", said, grant, target.name, column)


def _said(exc: MigrationError, doing: str) -> str:
    return str(exc).partition(f"{doing}: ")[2]


def _state(exc: MigrationError) -> str:
    """Return the SQLSTATE behind an error of database_errors()."""
    return getattr(exc.__cause__, "pgcode", None) or ""


def _scan(connection: driver.Connection, scan: PartScan) -> tuple[int, list[Finding]]:
    total = 0
    counts: list[int] = []
    try:
        for start in range(0, max(len(scan.checks), 1), BATCH):
            some = scan.checks[start : start + BATCH]
            columns = ["count(*)", *(f"count(*) FILTER (WHERE {check.sql})" for check in some)]
            columns += [f"count({sql})" for _, sql in scan.tries] if start == 0 else []
            with driver.database_errors(scan.part.label, "checking its rows"):
                row = driver.rows(connection, f"SELECT {', '.join(columns)} FROM {scan.source}")[0]
            total = row[0]
            counts += row[1 : 1 + len(some)]
    except MigrationError:
        return _one_by_one(connection, scan)
    return total, [_finding(connection, scan, check, count) for check, count in zip(scan.checks, counts, strict=True) if count]


def _one_by_one(connection: driver.Connection, scan: PartScan) -> tuple[int, list[Finding]]:
    """Return what can be said when some expression raised an error for some row: each check alone, the culprits named."""
    findings: dict[str, Finding] = {}
    for name, sql in scan.tries:
        try:
            with driver.database_errors(scan.part.label, name):
                driver.rows(connection, f"SELECT count({sql}) FROM {scan.source}")
        except MigrationError as exc:
            findings[name] = _culprit(connection, scan, name, sql, exc)
    for check in scan.checks:
        if check.column in findings:
            continue
        try:
            with driver.database_errors(scan.part.label, check.column):
                count = driver.scalar(connection, f"SELECT count(*) FILTER (WHERE {check.sql}) FROM {scan.source}")
            if count:
                findings[f"{check.column}.{check.rule}.{check.message}"] = _finding(connection, scan, check, count)
        except MigrationError as exc:
            said = str(exc).partition(f"{check.column}: ")[2]
            findings[check.column] = Finding(
                STOP,
                check.place,
                check.rule,
                f"{check.message}: the source cannot tell ({said})",
                "simplify the constraint or the mapping",
                scan.target.name,
                check.column,
            )
    try:
        with driver.database_errors(scan.part.label, "counting its rows"):
            total = driver.scalar(connection, f"SELECT count(*) FROM {scan.base}")
    except MigrationError as exc:
        return 0, [*findings.values(), Finding(STOP, scan.part.label, "type", str(exc), "correct the query", scan.target.name)]
    return total, list(findings.values())


def _culprit(connection: driver.Connection, scan: PartScan, name: str, sql: str, error: MigrationError) -> Finding:
    """Return a finding for an expression that raises, with the first key found by halving the rows."""
    cell = scan.values[name].cell
    rule, said = _RAISED.get(_state(error), "type"), _said(error, name)
    low, high = 0, int(driver.scalar(connection, f"SELECT count(*) FROM {scan.base}"))
    while high - low > 1:
        middle = (low + high) // 2
        rows = f"SELECT src.* FROM {scan.base} ORDER BY {scan.order} OFFSET {low} LIMIT {middle - low}"
        try:
            with driver.database_errors(scan.part.label, name):
                driver.rows(connection, f"SELECT count({sql}) FROM ({rows}) AS src")
            low = middle
        except MigrationError:
            high = middle
    keys = driver.rows(connection, f"SELECT {scan.part.key_text} FROM {scan.base} ORDER BY {scan.order} OFFSET {low} LIMIT 1")
    return Finding(
        STOP, cell.place or scan.part.label, rule, f"at least one row: the source cannot make {cell.type} of it ({said})",
        "correct the rows in the source, or write an expression that holds for every row", scan.target.name, name, None, tuple(str(row[0]) for row in keys),
    )  # fmt: skip


def first_keys(connection: driver.Connection, scan: PartScan, check: Check) -> tuple[str, ...]:
    """Return the source keys of the first rows that a check is true for."""
    statement = f"SELECT {scan.part.key_text} FROM {scan.source} WHERE {check.sql} ORDER BY {scan.order} LIMIT {FIRST}"
    return tuple("NULL" if row[0] is None else str(row[0]) for row in driver.rows(connection, statement))


def _finding(connection: driver.Connection, scan: PartScan, check: Check, count: int) -> Finding:
    level, next_step = _level(check, scan.target)
    with driver.database_errors(scan.part.label, f"naming rows of {check.column}"):
        keys = first_keys(connection, scan, check)
    return Finding(level, check.place, check.rule, check.message, next_step, scan.target.name, check.column, count, keys)


def _level(check: Check, target: Target) -> tuple[str, str]:
    if check.level == INFO:
        return INFO, ""
    if check.rejects:
        return WARN, "quarantined by policy, with what depends on them: they go to migration.rejects"
    if check.level == WARN and check.policy is None:
        return WARN, f"make sure that the service can live with it, or choose in the mapping: policies: {{{check.column}: {{{check.rule}: quarantine}}}}"
    if target.bookkeeping:
        return STOP, "correct the rows in the source"
    return STOP, f"correct the rows in the source, or choose in the mapping: policies: {{{check.column}: {{{check.rule}: quarantine}}}}"


def _unique(connection: driver.Connection, unique: Unique) -> list[Finding]:
    keys = unique.keys
    with driver.database_errors(unique.target.name, f"looking for duplicates of {unique.name}"):
        if unique.fold:
            # Grouping by a hash is cheaper than by the text; only what meets in a group is looked at as text.
            folded = "hashtextextended(lower(v1::text), 0)"
            suspects = f"SELECT {folded} FROM ({unique.rows}) AS every GROUP BY 1 HAVING count(*) > 1"
            statement = (
                "SELECT coalesce(sum(extra), 0), coalesce(sum(dup), 0), coalesce(sum(variants) FILTER (WHERE variants > 1), 0) FROM ("
                "SELECT count(*) AS variants, sum(n - 1) AS extra, sum(n) FILTER (WHERE n > 1) AS dup FROM ("
                f"SELECT v1, count(*) AS n FROM ({unique.rows}) AS every WHERE {folded} IN ({suspects}) GROUP BY v1"
                ") AS each GROUP BY lower(v1::text)) AS folded"
            )
        else:
            statement = (
                "SELECT coalesce(sum(n - 1), 0), coalesce(sum(n), 0), 0 FROM ("
                f"SELECT count(*) AS n FROM ({unique.rows}) AS every GROUP BY {keys} HAVING count(*) > 1) AS each"
            )
        _extra, duplicates, variants = driver.rows(connection, statement)[0]
        findings = []
        if duplicates:
            named = driver.rows(
                connection,
                f"SELECT source_key FROM (SELECT source_key, count(*) OVER (PARTITION BY {keys}) AS n FROM ({unique.rows}) AS every) AS each"
                f" WHERE n > 1 ORDER BY length(source_key), source_key LIMIT {FIRST}",
            )
            rejects = unique.policy is not None and unique.policy.policy == "quarantine"
            label = ", ".join(unique.columns)
            next_step = (
                "quarantined by policy: of each value the row with the lowest key is carried, the others go to migration.rejects"
                if rejects
                else f"correct the rows in the source, or choose in the mapping: policies: {{{unique.columns[0]}: {{unique: quarantine}}}}"
            )
            findings.append(
                Finding(
                    WARN if rejects else STOP,
                    unique.place,
                    "unique",
                    f"has values that more than one row holds ({unique.name} is unique)",
                    next_step,
                    unique.target.name,
                    label,
                    int(duplicates),
                    tuple(str(row[0]) for row in named),
                )
            )
        if variants:
            named = driver.rows(
                connection,
                "SELECT source_key FROM (SELECT source_key, min(v1::text) OVER w <> max(v1::text) OVER w AS differ"
                f" FROM ({unique.rows}) AS every WINDOW w AS (PARTITION BY lower(v1::text))) AS each"
                f" WHERE differ ORDER BY length(source_key), source_key LIMIT {FIRST}",
            )
            findings.append(
                Finding(
                    WARN,
                    unique.place,
                    "case",
                    "differ in upper and lower case only",
                    "make sure that the service compares as the monolith did",
                    unique.target.name,
                    unique.columns[0],
                    int(variants),
                    tuple(str(row[0]) for row in named),
                )
            )
    return findings
