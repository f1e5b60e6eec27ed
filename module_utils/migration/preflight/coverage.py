# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the mapping account for every column of every table that it reads? Pure, from the plan and the source's catalog."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from ..checks.findings import STOP, Finding
from ..checks.row_checks import minting_part, scanned, spec_of
from ..checks.source_catalog import SourceCatalog
from ..plan.model import Part, Plan, Read, Target
from ..postgres.quote import ident, qualified


def check(plan: Plan, source: SourceCatalog) -> list[Finding]:
    """Return a finding for each table or column that is unknown, and each column that nothing reads or drops.

    A table that cannot be read is said once, and what is only the other side of a misspelt name is not said again.
    """
    parts = [part for _, part in scanned(plan)]
    findings = _other_schemas(parts, source) or _unknown_tables(parts, source)
    for part in parts:
        findings += _unknown_columns(part, source) + _unknown_dropped(part, source)
    covered: dict[str, set[str]] = {}
    for part in parts:
        for name, column in _covers(part, source):
            covered.setdefault(name, set()).add(column)
    misspelt = {found for part in parts for name in part.tables if name not in source.tables and (found := _closest(name, source.tables))}
    for part in parts:
        for read in _unknown_reads(part, source):
            for name in read.tables:
                covered.setdefault(name, set()).add(_closest(read.column, source.tables[name].columns))
    owners: dict[str, Part] = {}
    for part in parts:
        for name in part.tables:
            owners.setdefault(name, part)
    for name, part in owners.items():
        table = source.tables.get(name) if name not in misspelt else None
        for column in table.columns if table else ():
            if column not in covered.get(name, set()):
                findings.append(
                    Finding(
                        STOP, part.path, "coverage", f"{source.schema}.{name}.{column} is read by no mapping and not in 'dropped'",
                        f"map it, or give the reason in {part.path}: dropped: {{{_spelled(part, name, column)}: why it stays behind}}", column=column,
                    )
                )  # fmt: skip
    return list(dict.fromkeys(findings))


def check_references(plan: Plan) -> list[Finding]:
    """Return a finding for each foreign key of the contract whose column goes through the id map of another table than it names."""
    findings = []
    targets = {(target.service, target.schema, target.table): target for target in plan.targets}
    for target in plan.targets:
        spec = spec_of(plan, target)
        for constraint in spec.constraints if spec else ():
            if constraint.foreign is None or len(constraint.columns) != 1:
                continue
            (name,) = constraint.columns
            wanted = (constraint.foreign.schema, constraint.foreign.table)
            for part in target.parts:
                cell = next((item for item in part.cells if item.name == name), None)
                minted = minting_part(plan, cell.entity) if cell is not None and cell.is_id and cell.entity else None
                if cell is None or minted is None or (minted[0].schema, minted[0].table) == wanted:
                    continue
                other = targets.get((target.service, *wanted))
                if other is not None and _carries(other, constraint.foreign.columns[0], cell.entity):
                    continue  # what is no id of that table's own is held against its rows (hanging.py)
                message = f"refers to {'.'.join(wanted)} in the schema SQL, but goes through the id map {cell.entity!r}"
                right = next((item.name for item in plan.entities if item.target == wanted[1]), "")
                step = f"write {name}: {{from: ..., map: {right}}}" if right else f"mint ids in the mapping of {wanted[1]} (key: {{from: id, mints: ...}})"
                findings.append(Finding(STOP, cell.place or part.label, "foreign_key", message, step, target.name, name))
    return findings


def _carries(other: Target, column: str, entity: str | None) -> bool:
    """Tell whether a column of another table has ids of the same id map in all its parts, so that a foreign key to it can hold."""
    return all(any(cell.name == column and cell.is_id and cell.entity == entity for cell in part.cells) for part in other.parts)


def check_database(plan: Plan, source: SourceCatalog, host: str, database: str) -> list[Finding]:
    """Return the one finding that says it all when the source has none of the mapped tables."""
    names = {name for _, part in scanned(plan) for name in part.tables}
    if not names or any(name in source.tables for name in names) or _other_schemas([part for _, part in scanned(plan)], source):
        return []
    message = f"database {database} on {host} has none of the {len(names)} mapped tables in schema {source.schema}"
    return [Finding(STOP, host, "coverage", message, f"check login_db and source_schema in host_vars/{host}")]


def blocked(plan: Plan, source: SourceCatalog) -> frozenset[tuple[str, str]]:
    """Return (target, part) for every part that check() has found unreadable, or whose parents' tables are."""
    result = set()
    for target, part in scanned(plan):
        parents = [minted[1] for cell in part.cells for entity in cell.refers_to if (minted := minting_part(plan, entity))]
        if (
            not _readable(part.tables, source)
            or _unknown_reads(part, source)
            or any(not _has_key(parent, source) for parent in parents)
            or not _readable((name for _, name in part.parents), source)
        ):
            result.add((target.name, part.name))
    return frozenset(result)


def _readable(names: Iterable[str], source: SourceCatalog) -> bool:
    return all(name in source.tables and source.tables[name].readable for name in names)


def _has_key(parent: Part, source: SourceCatalog) -> bool:
    """Return whether a part's keys can be read; in a query every column counts."""
    unknown = _unknown_reads(parent, source)
    return _readable(parent.tables, source) and not (unknown if parent.query else [read for read in unknown if read.column in (*parent.key, parent.keep)])


def volatile_names(plan: Plan) -> dict[str, str]:
    """Return the functions that the mappings' SQL calls, with the first file that calls them."""
    found: dict[str, str] = {}
    for target in plan.targets:
        for part in target.parts:
            for text in (part.query or part.where or "", *(cell.sql for cell in part.cells if not cell.is_id and not cell.constant)):
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


def _other_schemas(parts: Iterable[Part], source: SourceCatalog) -> list[Finding]:
    """Return a finding for each table that a mapping names in another schema: a table of its name in source_schema would be taken for it."""
    findings = []
    for part in parts:
        dotted = [tuple(part.table.split(".", 1))] if part.table is not None and "." in part.table and part.table not in source.tables else []
        for schema, table in (*part.qualified, *dotted):
            if schema != source.schema:
                message = f"{schema}.{table} is not in {source.schema}: a migration reads the tables and views of one schema of the source"
                view = f"CREATE VIEW {qualified(source.schema, f'{schema}_{table}')} AS SELECT * FROM {qualified(schema, table)}"
                findings.append(Finding(STOP, part.label, "coverage", message, f"{view}, and name that; or set source_schema to {schema} in a run of its own"))
    return findings


def _unknown_tables(parts: Iterable[Part], source: SourceCatalog) -> list[Finding]:
    places: dict[str, list[str]] = {}
    for part in parts:
        for name in part.tables:
            places.setdefault(name, []).append(part.label)
    findings = []
    for name, found in places.items():
        table = source.tables.get(name)
        if table is None:
            message = f"the source has no table {source.schema}.{name}{_meant(name, source.tables)}{_also(found)}"
            findings.append(Finding(STOP, found[0], "coverage", message, "correct the mapping, or source_schema in the inventory"))
        elif not table.readable:
            grant = f"GRANT SELECT ON {qualified(source.schema, name)} TO {ident(source.role)}"
            findings.append(Finding(STOP, found[0], "privilege", f"{source.schema}.{name} cannot be read{_also(found)}", grant))
    return findings


def _unknown_columns(part: Part, source: SourceCatalog) -> list[Finding]:
    findings = []
    for read in _unknown_reads(part, source):
        known = [column for name in read.tables for column in source.tables[name].columns]
        where = " or ".join(f"{source.schema}.{name}" for name in read.tables)
        places = list(dict.fromkeys(cell.place for cell in part.cells if cell.place and read.column in cell.reads)) or [part.label]
        message = f"{where} has no column {read.column}{_meant(read.column, known)}{_also(places)}"
        findings.append(Finding(STOP, places[0], "coverage", message, "correct the mapping", column=read.column))
    return findings


def _unknown_reads(part: Part, source: SourceCatalog) -> list[Read]:
    """Return what a part reads of tables that are there, and that none of them has."""
    return [
        read
        for read in part.reads
        if read.tables
        and all(name in source.tables for name in read.tables)
        and not any(read.column in source.tables[name].columns for name in read.tables)
        and not _derived(part, read.column)
    ]


def _unknown_dropped(part: Part, source: SourceCatalog) -> list[Finding]:
    findings = []
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
    close = _closest(name, known)
    return f" (did you mean {close}?)" if close else ""


def _closest(name: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def _also(places: list[str]) -> str:
    return f", read in {', '.join(places[1:])} too" if len(places) > 1 else ""
