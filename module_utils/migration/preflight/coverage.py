# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the mapping account for every column of every table that it reads? Pure, from the plan and the source's catalog."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from ..plan import Part, Plan
from .findings import STOP, Finding
from .source_catalog import SourceCatalog


def check(plan: Plan, source: SourceCatalog) -> list[Finding]:
    """Return a finding for each table or column that is unknown, and each column that nothing reads or drops."""
    findings: list[Finding] = []
    parts = [part for target in plan.targets for part in target.parts]
    covered: dict[str, set[str]] = {}
    for part in parts:
        findings += _unknown(part, source)
        for name, column in _covers(part, source):
            covered.setdefault(name, set()).add(column)
    owners: dict[str, Part] = {}
    for part in parts:
        for name in part.tables:
            owners.setdefault(name, part)
    for name, part in owners.items():
        table = source.tables.get(name)
        for column in table.columns if table else ():
            if column not in covered.get(name, set()):
                findings.append(
                    Finding(
                        STOP, part.path, "coverage", f"{source.schema}.{name}.{column} is read by no mapping and not in 'dropped'",
                        f"map it, or give the reason in {part.path}: dropped: {{{_spelled(part, name, column)}: why it stays behind}}", column=column,
                    )
                )  # fmt: skip
    return list(dict.fromkeys(findings))


def volatile_names(plan: Plan) -> dict[str, str]:
    """Return the functions that the mappings' SQL calls, with the first file that calls them."""
    found: dict[str, str] = {}
    for target in plan.targets:
        for part in target.parts:
            for text in (part.query or "", *(cell.sql for cell in part.cells if not cell.is_id and not cell.constant)):
                for name in re.findall(r'([A-Za-z_][\w$]*|"[^"]+")\s*\(', text):
                    found.setdefault(name.strip('"') if name.startswith('"') else name.lower(), part.path)
    return found


def check_volatile(names: dict[str, str], volatile: Iterable[str]) -> list[Finding]:
    """Return a finding for each called function that the source calls volatile."""
    return [
        Finding(
            STOP,
            names[name],
            "volatile",
            f"{name}() is volatile on the source: it gives another value at every run",
            "use 'value: plan_time', a source column or a stable expression",
        )
        for name in volatile
        if name in names
    ]


def _unknown(part: Part, source: SourceCatalog) -> list[Finding]:
    findings = []
    for name in part.tables:
        table = source.tables.get(name)
        if table is None:
            findings.append(
                Finding(
                    STOP,
                    part.label,
                    "coverage",
                    f"the source has no table {source.schema}.{name}{_meant(name, source.tables)}",
                    "correct the mapping, or source_schema in the inventory",
                )
            )
        elif not table.readable:
            findings.append(
                Finding(STOP, part.label, "privilege", f"{source.schema}.{name} cannot be read", f"GRANT SELECT ON {source.schema}.{name} TO the reading role")
            )
    for read in part.reads:
        tables = [source.tables[name] for name in read.tables if name in source.tables]
        if tables and len(tables) == len(read.tables) and not any(read.column in table.columns for table in tables) and not _derived(part, read.column):
            known = [column for table in tables for column in table.columns]
            where = " or ".join(f"{source.schema}.{name}" for name in read.tables)
            findings.append(
                Finding(
                    STOP, part.label, "coverage", f"{where} has no column {read.column}{_meant(read.column, known)}", "correct the mapping", column=read.column
                )
            )
    for name, _reason in part.dropped:
        column = name.rpartition(".")[2]
        known = [item for table in _dropped_tables(part, name) if table in source.tables for item in source.tables[table].columns]
        if known and column not in known:
            message = f"'dropped' names {name}, which the source does not have{_meant(column, known)}"
            findings.append(Finding(STOP, part.label, "coverage", message, "correct or remove the line", column=column))
    return findings


def _derived(part: Part, column: str) -> bool:
    """Return whether a query makes a result of that name itself (a subquery's alias, say)."""
    return part.query is not None and re.search(rf'\bAS\s+"?{re.escape(column)}"?\b', part.query, re.IGNORECASE) is not None


def _covers(part: Part, source: SourceCatalog) -> Iterable[tuple[str, str]]:
    for read in part.reads:
        for name in read.tables:
            yield name, read.column
    for name in part.stars:
        if name in source.tables:
            for column in source.tables[name].columns:
                yield name, column
    for name, _reason in part.dropped:
        for table in _dropped_tables(part, name):
            yield table, name.rpartition(".")[2]


def _dropped_tables(part: Part, name: str) -> tuple[str, ...]:
    table, dot, _column = name.rpartition(".")
    return (table,) if dot else part.tables


def _spelled(part: Part, table: str, column: str) -> str:
    return column if len(part.tables) == 1 else f"{table}.{column}"


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
