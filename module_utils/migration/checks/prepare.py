# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a plan to scans that the source understands, and what it does not understand, cannot read or has locked."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from ..errors import DatabaseError, MigrationError
from ..plan.model import Cell, Part, Plan, Target
from ..postgres import driver
from ..postgres.faults import LOCKED, NO_PRIVILEGE
from ..postgres.quote import ident, qualified
from .findings import STOP, Finding
from .row_checks import PartScan, build_scan, minting_part, raw_expressions, raw_sql, scanned
from .source_catalog import SourceCatalog
from .sql_errors import about_rows, said, state

SHOWN = 60  # characters of a constant
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
    barred: set[str] = set()  # tables that were waited for in vain
    for target, part in scanned(plan):
        wanted = _tables(plan, part)
        if barred and (held := [name for name in wanted if name in barred and locked(connection, source.schema, [name])]):
            findings.append(_locked_finding(target, part, source.schema, held))
            continue
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
        except MigrationError as exc:
            if state(exc) == LOCKED:
                held = locked(connection, source.schema, wanted)
                barred.update(held)
                findings.append(_locked_finding(target, part, source.schema, held or wanted))
            elif about_rows(exc):
                findings += _diagnose(connection, target, part, source)
            else:
                raise
            continue
        scans.append(scan)
    return tuple(scans), findings


def locked(connection: driver.Connection, schema: str, names: Iterable[str]) -> list[str]:
    """Return those of the tables that another session has locked against reading at this moment."""
    return [
        row[0]
        for row in driver.rows(
            connection,
            "SELECT DISTINCT c.relname::text FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE l.granted AND l.mode = 'AccessExclusiveLock' AND l.pid <> pg_backend_pid() AND n.nspname = %s AND c.relname = ANY (%s)"
            " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (schema, list(names)),
        )
    ]


def _tables(plan: Plan, part: Part) -> list[str]:
    """Return every table that a part's scan reads, its parents' included."""
    names = [*part.every_table, *(table for _, table in part.parents)]
    for cell in part.cells:
        for entity in cell.refers_to:
            if minted := minting_part(plan, entity):
                names += minted[1].tables
    return list(dict.fromkeys(names))


def _locked_finding(target: Target, part: Part, schema: str, names: Sequence[str]) -> Finding:
    listed = ", ".join(f"{schema}.{name}" for name in names)
    step = "let the session that holds it end (pg_locks says who), then run playbooks/preflight.yml again"
    return Finding(STOP, part.label, "locks", f"{listed} is locked by another session, so its rows could not be read", step, target.name)


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
            message = f"{shown} is no {cell.type}" if state(exc).startswith("22") else said(exc)
            step = f"write a value of type {cell.type} for {target.name}.{cell.name}"
            findings.append(Finding(STOP, cell.place or part.label, "type", message, step, target.name, cell.name))
    return findings


def _diagnose(connection: driver.Connection, target: Target, part: Part, source: SourceCatalog) -> list[Finding]:
    """Return what the source does not understand: the part's source as a whole, else its columns, each asked for alone.

    Columns that fail alike share one finding.
    """
    schema = source.schema
    try:
        with driver.database_errors(part.label, "its source"):
            driver.rows(connection, f"SELECT 1 FROM {part.source(schema)} LIMIT 0")
    except MigrationError as exc:
        return [_not_understood(exc, source, part.label, target, (), f"correct the source of {part.label}")]
    failed: dict[str, tuple[MigrationError, list[Cell]]] = {}
    for cell in part.cells:
        for expression in (cell.key or "NULL", cell.sql):
            try:
                with driver.database_errors(part.label, cell.name):
                    driver.rows(connection, f"SELECT {expression} FROM {part.source(schema)} LIMIT 0")
            except MigrationError as exc:
                failed.setdefault(said(exc), (exc, []))[1].append(cell)
                break
    findings = []
    for error, cells in failed.values():
        names = tuple(cell.name for cell in cells)
        findings.append(
            _not_understood(error, source, cells[0].place or part.label, target, names, f"correct the mapping of {target.name}: {', '.join(names)}")
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


def _not_understood(
    exc: MigrationError, source: SourceCatalog, place: str, target: Target, columns: tuple[str, ...], step: str
) -> Finding:
    message = said(exc)
    column = columns[0] if len(columns) == 1 else ""
    role = ident(source.role)
    if state(exc) != NO_PRIVILEGE:
        return Finding(STOP, place, "type", message, step, target.name, column)
    if "row-level security" in message:
        return Finding(STOP, place, "privilege", message, f"ALTER ROLE {role} BYPASSRLS (docs/privileges.md)", target.name)
    kind, name = exc.names[0] if isinstance(exc, DatabaseError) and exc.names else ("", "")
    kind = kind.rpartition(" ")[2]  # materialized view, foreign table
    quoted = qualified(source.schema, name) if name in source.tables else ident(name) if name else ""
    grants = {"schema": "USAGE ON SCHEMA", "function": "EXECUTE ON FUNCTION", "table": "SELECT ON", "view": "SELECT ON"}
    grant = f"GRANT {grants[kind]} {quoted} TO {role}" if kind in grants else f"grant it to {role} (docs/privileges.md)"
    return Finding(STOP, place, "privilege", message, grant, target.name, column)
