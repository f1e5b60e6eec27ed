# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a target's catalog and the schema SQL say different things, and what the schema SQL needs that the server does not have.

What the catalog demands beyond the schema SQL (a CHECK, a key, a trigger that changes rows) no question to the source has asked about: once
it is in the way of rows that are still to be carried it stops, afterwards it is worth knowing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

from ..checks.findings import STOP, WARN, Finding
from ..checks.sql_errors import said, state
from ..context import Context
from ..contract.model import Contract, TableSpec
from ..errors import MigrationError
from ..postgres import driver
from ..postgres.faults import LOCKED
from ..postgres.quote import ident
from ..schema import catalog, ddl
from ..schema.catalog import FoundTable
from ..schema.indexes import plan_index
from ..schema.tables import UNCHANGED, plan_schema
from ..state import ledger
from . import index_support

APPLICATION_NAME = "edulink-migration preflight"
_KINDS = {"c": "CHECK", "u": "UNIQUE", "f": "FOREIGN KEY", "x": "EXCLUDE"}
# Bits of tgtype: 1 ROW, 2 BEFORE, 4 INSERT (src/include/catalog/pg_trigger.h).
_FIRING = """
SELECT tgname::text, tgtype & 3 = 3 FROM pg_trigger
WHERE tgrelid = %s AND NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 4 > 0 ORDER BY 1
"""
# Internal ones enforce foreign keys; FOR REPLICA ('R') is off for everybody else.
_OFF = """
SELECT CASE WHEN tgisinternal THEN coalesce((SELECT 'foreign key ' || conname FROM pg_constraint c WHERE c.oid = tgconstraint), 'constraint')
            ELSE 'trigger ' || tgname END, bool_and(tgisinternal)
FROM pg_trigger WHERE tgrelid = %s AND tgenabled IN ('D', 'R') GROUP BY 1 ORDER BY 1
"""
_IDENTITY = """
SELECT c.relreplident = 'n', string_agg(quote_ident(p.pubname), ', ' ORDER BY p.pubname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_publication_tables t ON t.schemaname = n.nspname AND t.tablename = c.relname
JOIN pg_publication p ON p.pubname = t.pubname AND (p.pubupdate OR p.pubdelete)
WHERE c.oid = %s AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT %s) GROUP BY 1
"""
_RULES = "SELECT rulename::text FROM pg_rewrite WHERE ev_class = %s AND ev_type IN ('2', '3') AND ev_enabled IN ('O', 'A') ORDER BY 1"
_EXTENSION = """
SELECT name IS NOT NULL, coalesce(bool_or(trusted) OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), false)
FROM (VALUES (%s)) AS wanted (extension) LEFT JOIN pg_available_extension_versions ON name = extension GROUP BY name
"""
_DOMAIN = """
SELECT t.typnotnull, ARRAY(SELECT pg_get_expr(c.conbin, 0) FROM pg_constraint c WHERE c.contypid = t.oid AND c.contype = 'c' ORDER BY c.conname)
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname = %s AND t.typname = %s
"""


def check(context: Context, targets: Mapping[str, driver.Connection], settings: Mapping[str, str], *, building: bool = False) -> list[Finding]:
    """Return every difference; `targets` are connections to look with, `settings` are for those that need the contract's search_path.

    While other runners are `building` keys, what the index phase would say is left out.
    """
    findings: list[Finding] = []
    for service, data in context.plan.contracts:
        contract = Contract.from_dict(data)
        level = WARN if _carried(targets[service], service) else STOP
        if building and level == WARN:
            continue
        mapped = {(target.schema, target.table) for target in context.plan.of(service)}
        step = "docs/mapping.md lists what schema SQL may contain"
        findings += [Finding(WARN, service, "schema", line, step) for line in contract.ignored_lines(session=False)]
        findings += _needs(targets[service], service, contract)
        with closing(ddl.connect(context.targets[service], contract, readonly=True, settings=settings)) as connection:
            differing = _differences(connection, contract, building=building)
            findings += differing
            with driver.database_errors(service, "reading its constraints and triggers"):
                findings += index_support.check(connection, service, contract)
                findings += _domains(connection, contract)
                for table in contract.tables:
                    found = catalog.read_table(connection, table.schema, table.name) if (table.schema, table.name) in mapped else None
                    if found is not None and found.kind == "r":
                        findings += _triggers(connection, contract, table, found, level)
                        findings += _beside_rows(connection, contract, table, found)
                        findings += [] if differing else _more(connection, contract, table, found, level)
    return findings


def require(context: Context) -> None:
    """Raise when a target that is still to be filled has changed since preflight looked at it, in a way that stops."""
    targets = {name: context.connect_target(name, APPLICATION_NAME, readonly=True, autocommit=True) for name in context.plan.services}
    try:
        found = [item for item in check(context, targets, {}, building=True) if item.level == STOP]
    finally:
        for connection in targets.values():
            connection.close()
    if found:
        more = f" ({len(found) - 1} more: run playbooks/preflight.yml)" if len(found) > 1 else ""
        raise MigrationError(f"{found[0].place}: {found[0].message}; {found[0].next_step}{more}")


def _carried(connection: driver.Connection, service: str) -> bool:
    """Return whether all rows of this target have been carried, so that nothing is to come that could break."""
    with driver.database_errors(service, "reading its ledger"):
        pin = ledger.pinned(connection) if ledger.exists(connection) else None
    return pin is not None and pin.finished


def _differences(connection: driver.Connection, contract: Contract, *, building: bool) -> list[Finding]:
    """Return what the schema and the index phase would refuse."""
    step = f"bring the database and roles/schema/files/{contract.service} together"
    findings = []
    try:
        with driver.database_errors(contract.service, "comparing it with the schema SQL"):
            plan_schema(connection, contract)
            if not building:
                plan_index(connection, contract, "plain", assume_tables=True)
    except MigrationError as exc:
        if state(exc) == LOCKED:
            raise
        findings.append(Finding(STOP, contract.service, "drift", said(exc).partition(UNCHANGED)[0], step))
    return findings


def _more(connection: driver.Connection, contract: Contract, table: TableSpec, found: FoundTable, level: str) -> list[Finding]:
    """Return what the table demands and the schema SQL does not."""
    wanted = list(table.constraints)
    alike = {index.columns for index in table.indexes if index.unique and index.predicate is None}
    findings = []
    for item in found.constraints:
        known = item.kind == "u" and item.columns in alike
        if item.kind in _KINDS and not known and not any(catalog.same_constraint(connection, found, item, spec) for spec in wanted):
            findings.append(_demands(contract, table, level, f"{_KINDS[item.kind]} {item.name}", f"DROP CONSTRAINT {ident(item.name)}"))
    keys = [spec for spec in wanted if spec.kind in ("primary_key", "unique")]
    for index in found.indexes:
        known = index.constraint is not None or any(catalog.backs(index, spec) for spec in keys)
        if index.unique and index.valid and not known and not any(catalog.same_index(connection, found, index, spec) for spec in table.indexes):
            findings.append(_demands(contract, table, level, f"unique index {index.name}", f"DROP INDEX {ident(table.schema)}.{ident(index.name)}"))
    return findings


def _demands(contract: Contract, table: TableSpec, level: str, what: str, remedy: str) -> Finding:
    message = f"the table has the {what}, which the schema SQL does not: whether every row keeps it was not asked"
    drop = f"ALTER TABLE {table.qualified} {remedy}" if remedy.startswith("DROP CONSTRAINT") else remedy
    return Finding(level, f"{contract.service}.{table.name}", "drift", message, f"write it in roles/schema/files/{contract.service}, or {drop}", table.key)


def _triggers(connection: driver.Connection, contract: Contract, table: TableSpec, found: FoundTable, level: str) -> list[Finding]:
    """Return the triggers and rules that fire for every row that is written; one that may change the row, and is not the schema SQL's own, stops."""
    own = {item.object[2] for item in contract.epilogue if item.kind == "trigger" and item.object[:2] == (table.schema, table.name)}
    place = f"{contract.service}.{table.name}"
    findings = []
    for name, changes in driver.rows(connection, _FIRING, (found.oid,)):
        step = f"ALTER TABLE {table.qualified} DISABLE TRIGGER {ident(name)} until validate has passed"
        what = ("before", "change or skip it") if changes else ("after", "change it")
        message = f"the trigger {name} fires {what[0]} every row that the migration writes and may {what[1]}"
        findings.append(Finding(level if changes and name not in own else WARN, place, "trigger", message, step, place))
    for (name,) in driver.rows(connection, _RULES, (found.oid,)):
        step = f"ALTER TABLE {table.qualified} DISABLE RULE {ident(name)} until validate has passed"
        findings.append(Finding(level, place, "trigger", f"the rule {name} rewrites what is written to the table, and COPY does not follow it", step, place))
    return findings


def _beside_rows(connection: driver.Connection, contract: Contract, table: TableSpec, found: FoundTable) -> list[Finding]:
    """Return the state of a table that no row shows: what is switched off, and changes that a publication could not replicate."""
    place = f"{contract.service}.{table.name}"
    findings = []
    for what, internal in driver.rows(connection, _OFF, (found.oid,)):
        step = f"ALTER TABLE {table.qualified} ENABLE TRIGGER {'ALL' if internal else ident(what.partition(' ')[2])} when nothing is to be written any more"
        findings.append(Finding(WARN, place, "drift", f"the {what} is disabled in the database, and the schema SQL disables nothing", step, place))
    keyed = any(item.kind == "primary_key" for item in table.constraints)
    for nothing, publications in driver.rows(connection, _IDENTITY, (found.oid, keyed)):
        why = "REPLICA IDENTITY NOTHING" if nothing else "no primary key for its replica identity"
        message = f"the table has {why} and is in the publication {publications}: the service's UPDATE and DELETE, and a repair's, would be refused"
        findings.append(Finding(WARN, place, "drift", message, f"ALTER TABLE {table.qualified} REPLICA IDENTITY {'DEFAULT' if keyed else 'FULL'}", place))
    return findings


def _domains(connection: driver.Connection, contract: Contract) -> list[Finding]:
    """Return the existing domains that do not demand of a value what the schema SQL says."""
    inherited = {f"{domain.schema}.{domain.name}" for domain in contract.domains if domain.not_null}
    findings = []
    for statement in contract.preamble:
        there = driver.rows(connection, _DOMAIN, statement.object) if statement.kind == "domain" else []
        if not there:
            continue
        (not_null, checks), (base, wanted_not_null, *wanted) = there[0], statement.about
        required = wanted_not_null == "True" and base not in inherited
        if not_null != required or _normalised(connection, base, checks) != _normalised(connection, base, wanted):
            said = f"demands {_said(not_null, checks)}, the schema SQL says {_said(required, wanted)}"
            step = f"bring the database and roles/schema/files/{contract.service} together"
            findings.append(Finding(STOP, contract.service, "drift", f"the domain {'.'.join(statement.object)} {said}", step))
    return findings


def _normalised(connection: driver.Connection, base: str, checks: Sequence[str]) -> list[str]:
    """Return conditions on VALUE as this server's planner prints them, in order; nothing is run."""
    source = f"(VALUES (NULL::{base}), (NULL)) AS domain (value)"
    plans = [driver.scalar(connection, f"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) SELECT ({text}) FROM {source}") for text in checks]
    return sorted(str(plan[0]["Plan"]["Output"][0]) for plan in plans)


def _said(not_null: bool, checks: Sequence[str]) -> str:
    return " ".join([*(["NOT NULL"] if not_null else []), *(f"CHECK ({text})" for text in checks)]) or "nothing"


def _needs(connection: driver.Connection, service: str, contract: Contract) -> list[Finding]:
    """Return what the schema SQL names and the server cannot give: extensions, collations, roles of its grants."""
    findings = []
    with driver.database_errors(service, "looking for what the schema SQL needs"):
        for statement in contract.preamble:
            if statement.kind != "extension" or driver.scalar(connection, "SELECT true FROM pg_extension WHERE extname = %s", statement.object):
                continue
            there, may = driver.rows(connection, _EXTENSION, statement.object)[0]
            name = statement.object[0]
            if not there:
                step = f"install the package that has {name} on the server (postgresql-contrib, say)"
                findings.append(Finding(STOP, service, "drift", f"the schema SQL wants the extension {name}, which the server does not have", step))
            elif not may:
                message = f"the schema SQL wants the extension {name}, which only a superuser may create here"
                findings.append(Finding(STOP, service, "privilege", message, f"as a superuser in {connection.info.dbname}: CREATE EXTENSION {ident(name)}"))
        for table in contract.tables:
            for name in dict.fromkeys(column.collation for column in table.columns if column.collation):
                if not driver.scalar(connection, "SELECT coalesce(to_regcollation(%s), to_regcollation(%s))", (name, f"{ident(service)}.{name}")):
                    message = f"{table.key} wants the collation {name}, which the server does not have"
                    findings.append(Finding(STOP, service, "drift", message, f"CREATE COLLATION {name} in {connection.info.dbname}, or choose another"))
        for role in dict.fromkeys(item.object[2] for item in contract.epilogue if item.kind == "grant" and item.object[2] != "public"):
            if not driver.scalar(connection, "SELECT true FROM pg_roles WHERE rolname = %s", (role,)):
                message = f"the schema SQL grants to the role {role}, which the server does not have"
                findings.append(Finding(STOP, service, "privilege", message, f"CREATE ROLE {ident(role)}, or leave the GRANT out of the schema SQL"))
    return findings
