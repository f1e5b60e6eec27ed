# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the source: one pass over each part's source, then the first keys of what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from ..checks.findings import INFO, STOP, WARN, Finding
from ..checks.prepare import Encodings, prepare
from ..checks.row_checks import Check, PartScan
from ..checks.source_catalog import SourceCatalog
from ..checks.sql_errors import about_rows, said, state
from ..checks.unique_checks import Unique, build_uniques
from ..errors import MigrationError
from ..plan.model import Plan, Target
from ..plan.predicates import Predicate, between
from ..postgres import driver, without_indexes
from ..throttle.pacer import Pace, unhurried
from ..transfer.chunks import Unit, estimate, plan_chunks

FIRST = 5  # keys named for each finding
_RAISED = {"22P05": "encoding", "22021": "encoding", "22003": "range", "22008": "range"}  # SQLSTATE: rule
BATCH = 300  # conditions in one statement; PostgreSQL's limit is 1664 result columns


@dataclass(frozen=True)
class Scanned:
    """What the scans found: rows for each (target, part), findings, and the scans themselves for what builds on them."""

    rows: dict[tuple[str, str], int]
    findings: tuple[Finding, ...]
    scans: tuple[PartScan, ...]
    uniques: tuple[Unique, ...]


def run(
    connection: driver.Connection,
    plan: Plan,
    source: SourceCatalog,
    encodings: Encodings | None = None,
    *,
    blocked: Container[tuple[str, str]] = (),
    pace: Pace | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Scanned:
    """Return what the rows of the source break; `blocked` as in prepare(), `progress` is told how many parts are through."""
    pace = pace or unhurried()
    scans, findings = prepare(connection, plan, source, encodings, blocked=blocked)
    rows: dict[tuple[str, str], int] = {}
    for number, scan in enumerate(scans):
        progress("checks", number, len(scans))
        count, found = _scan(connection, scan, source, pace)
        rows[scan.target.name, scan.part.name] = count
        findings += found
    progress("checks", len(scans), len(scans))
    uniques = []
    for target in plan.targets:
        mine = [scan for scan in scans if scan.target is target]
        if not mine:
            continue
        for unique in build_uniques(plan, target, mine):
            uniques.append(unique)
            pace.breathe()
            start = time.monotonic()
            found = _duplicates(connection, unique)
            if any(item.count is None and item.keys and item.target == target.name for item in findings):
                found = [item for item in found if item.count is not None]  # the row that no key can be made of is named already
            findings += found
            read = sum(rows.get((target.name, part.part.name), 0) for part in unique.parts)
            pace.rest(read, 0, time.monotonic() - start)
    return Scanned(rows, tuple(findings), scans, tuple(uniques))


def _scan(connection: driver.Connection, scan: PartScan, source: SourceCatalog, pace: Pace) -> tuple[int, list[Finding]]:
    total = 0
    counts = [0] * len(scan.checks)
    width = sum(source.tables[name].width for name in scan.part.tables if name in source.tables)
    try:
        for predicate in _windows(connection, scan, source.schema, pace):
            pace.breathe()
            start = time.monotonic()
            read, found = _count(connection, scan, scan.within(source.schema, predicate), scan.checks, scan.tries)
            total += read
            counts = [one + two for one, two in zip(counts, found, strict=True)]
            pace.rest(read, read * width, time.monotonic() - start)
    except MigrationError as exc:
        if not about_rows(exc):
            raise
        pace.breathe()
        return _one_by_one(connection, scan)
    return total, [_finding(connection, scan, check, count) for check, count in zip(scan.checks, counts, strict=True) if count]


def _windows(connection: driver.Connection, scan: PartScan, schema: str, pace: Pace) -> list[Predicate | None]:
    """Return the conditions under which a part is read in turn: one for all rows unless there are many."""
    with driver.database_errors(scan.part.label, "cutting it into windows"):
        if estimate(connection, scan.base) < pace.window:
            return [None]
        chunks = plan_chunks(connection, schema, Unit(scan.target, scan.part, None, None), pace.window, "load")
    return [between(chunk.low, chunk.high, nulls=chunk.nulls) for chunk in chunks] if len(chunks) > 1 else [None]


def _count(
    connection: driver.Connection, scan: PartScan, source: str, checks: Sequence[Check], tries: Sequence[tuple[str, str]]
) -> tuple[int, list[int]]:
    """Return how many rows there are, and how many break each check; an error when one of the tries raises."""
    total = 0
    counts: list[int] = []
    for start in range(0, max(len(checks), 1), BATCH):
        some = checks[start : start + BATCH]
        columns = ["count(*)", *(f"count(*) FILTER (WHERE {check.sql})" for check in some)]
        columns += [f"count({sql})" for _, sql in tries] if start == 0 else []
        with driver.database_errors(scan.part.label, "checking its rows"):
            row = driver.rows(connection, f"SELECT {', '.join(columns)} FROM {source}")[0]
        total = row[0]
        counts += row[1 : 1 + len(some)]
    return total, counts


def _one_by_one(connection: driver.Connection, scan: PartScan) -> tuple[int, list[Finding]]:
    """Return what can be said when some expression raised an error for some row: the culprits named, then all other checks."""
    findings: dict[str, Finding] = {}
    for name, sql in scan.tries:
        try:
            with driver.database_errors(scan.part.label, name):
                driver.rows(connection, f"SELECT count({sql}) FROM {scan.source}")
        except MigrationError as exc:
            if not about_rows(exc):
                raise
            findings[name] = _culprit(connection, scan, name, sql, exc)
    left = [check for check in scan.checks if check.column not in findings and check.index not in findings]
    try:
        total, counts = _count(connection, scan, scan.source, left, ())
        return total, [*findings.values(), *(_finding(connection, scan, check, count) for check, count in zip(left, counts, strict=True) if count)]
    except MigrationError as exc:
        if not about_rows(exc):
            raise
    for check in left:
        try:
            with driver.database_errors(scan.part.label, check.column):
                count = driver.scalar(connection, f"SELECT count(*) FILTER (WHERE {check.sql}) FROM {scan.source}")
            if count:
                findings[f"{check.column}.{check.rule}.{check.message}"] = _finding(connection, scan, check, count)
        except MigrationError as exc:
            if state(exc).startswith("22") and any(item.count is None and item.keys for item in findings.values()):
                continue  # it reads the value that cannot be made, and whose row is named
            message, step = f"{check.message}: the source cannot tell ({said(exc)})", "simplify the constraint or the mapping"
            findings[check.column] = Finding(STOP, check.place, check.rule, message, step, scan.target.name, check.column)
    try:
        with driver.database_errors(scan.part.label, "counting its rows"):
            total = driver.scalar(connection, f"SELECT count(*) FROM {scan.base}")
    except MigrationError as exc:
        return 0, [*findings.values(), Finding(STOP, scan.part.label, "type", str(exc), "correct the query", scan.target.name)]
    return total, list(findings.values())


def _culprit(connection: driver.Connection, scan: PartScan, name: str, sql: str, error: MigrationError) -> Finding:
    """Return a finding for an expression that raises, with the first key found by halving the rows; or that the source does not know it."""
    values = scan.values.get(name)
    place = (values.cell.place if values else "") or scan.part.label
    what, column = (f"make {values.cell.type} of it", name) if values else (f"compute the index {name}", "")
    if not values and state(error).startswith(("42", "3F")):  # something that it does not know, or that is in no schema of its own
        message, step = f"the source cannot tell whether the index {name} can be built ({said(error)})", "make sure that it holds for every row"
        return Finding(WARN, place, "type", message, step, scan.target.name)
    rule = _RAISED.get(state(error), "type")
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
        STOP, place, rule, f"at least one row: the source cannot {what} ({said(error)})",
        "correct the rows in the source, or write an expression that holds for every row", scan.target.name, column, None, tuple(str(row[0]) for row in keys),
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
    if check.policy is not None and check.policy.policy == "null":
        return WARN, "becomes NULL by policy; each row is carried"
    if check.rejects:
        return WARN, "quarantined by policy, with what depends on them: they go to migration.rejects"
    if check.level == WARN and check.policy is None:
        return WARN, f"make sure that the service can live with it, or choose in the mapping: policies: {{{check.column}: {{{check.rule}: quarantine}}}}"
    if target.bookkeeping:
        return STOP, "correct the rows in the source"
    return STOP, f"correct the rows in the source, or choose in the mapping: policies: {{{check.column}: {{{check.rule}: quarantine}}}}"


def _duplicates(connection: driver.Connection, unique: Unique) -> list[Finding]:
    """Return what _unique() finds, or that the source cannot tell."""
    try:
        return _unique(connection, unique)
    except MigrationError as exc:
        if not about_rows(exc):
            raise
        cause = said(exc)
        message, step = f"the source cannot tell whether {unique.name} would be unique ({cause})", "simplify the index, or correct the rows"
        return [Finding(STOP, unique.place, "unique", message, step, unique.target.name, ", ".join(unique.columns))]


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
        _extra, duplicates, variants = without_indexes.rows(connection, statement)[0]
        findings = []
        if duplicates:
            named = without_indexes.rows(
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
            named = without_indexes.rows(
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
