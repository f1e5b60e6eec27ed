# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles may do in each database, for every phase; what is missing is named with the GRANT that gives it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..checks.findings import INFO, STOP, WARN, Finding
from ..postgres import databases, driver
from ..postgres.quote import ident

LISTED = 5
CONNECTIONS = 10  # what snapshot, transfer and validation have open at a time on one server, with their defaults


def check_source(connection: driver.Connection, name: str) -> list[Finding]:
    """Return what the reading role cannot read, and what change capture would need besides."""
    with driver.database_errors(name, "reading privileges"):
        reader, replication, bypass = driver.rows(connection, _ROLE)[0]
        unreadable = driver.rows(connection, _UNREADABLE)
        hidden = [row[0] for row in driver.rows(connection, _ROW_SECURITY)] if not bypass else []
        objects = driver.scalar(connection, _LARGE_OBJECTS)
        foreign = [row[0] for row in driver.rows(connection, _NOT_MINE)]
        lent = [holder for holder in foreign if databases.lendable(connection, holder)]
    findings = check_connections(connection, name)
    if unreadable:
        names = [f"{schema}.{table}" for schema, table, _, _ in unreadable]
        message = f"{reader} cannot read {_listed(names)}, so the snapshot (pg_dump) would fail"
        findings.append(Finding(STOP, name, "privilege", message, _reading(unreadable, reader), count=len(unreadable)))
    if hidden:
        message = f"row level security hides rows of {_listed(hidden)} from {reader}: they would be left behind in silence"
        findings.append(Finding(STOP, name, "privilege", message, f"ALTER ROLE {ident(reader)} BYPASSRLS", count=len(hidden)))
    if objects:
        message = f"{reader} cannot read {objects} large objects, so the snapshot (pg_dump) would fail"
        findings.append(Finding(STOP, name, "privilege", message, f"GRANT SELECT ON LARGE OBJECT ... TO {ident(reader)}, on each (pg_largeobject_metadata)"))
    if not replication:
        message = f"{reader} may not replicate: a move without downtime (change capture) would need it"
        findings.append(Finding(INFO, name, "privilege", message, "give that to another role, for that night only: CREATE ROLE ... LOGIN REPLICATION"))
    if foreign:
        message = f"{reader} does not own the tables: a fence on the monolith at a cutover would need a role that does"
        grant = f"GRANT {', '.join(map(ident, lent[:LISTED]))} TO another role" if lent == foreign else "give the tables to a role of the monolith's own"
        findings.append(Finding(INFO, name, "privilege", message, f"for that night only: {grant}" if lent == foreign else grant))
    return findings


def check_target(connection: driver.Connection, name: str, schemas: Iterable[str], tables: Sequence[tuple[str, str]]) -> list[Finding]:
    """Return the privileges that the phases need in a target database and the role does not have, each with its GRANT.

    `schemas` and `tables` (schema, name) are those that the phases write to; what is not there yet will be ours.
    """
    names = list(schemas)
    with driver.database_errors(name, "reading privileges"):
        database, create, owner, user, session, createdb, signal, monitor = driver.rows(connection, _TARGET)[0]
        closed = [row[0] for row in driver.rows(connection, _SCHEMAS, (names,))]
        others = driver.rows(connection, _TABLES, ([item[0] for item in tables], [item[1] for item in tables]))
        lent = {holder for _, holder, _, _ in others if databases.lendable(connection, holder)}
    findings = check_connections(connection, name)
    needs = (
        (create, STOP, "schema, migrate", f"{user} cannot create schemas in {database}", f"GRANT CREATE ON DATABASE {ident(database)} TO {ident(user)}"),
        (owner, WARN, "schema, rollback", f"{user} does not own {database}: it could not be renamed, and search_path not be set",
         f"ALTER DATABASE {ident(database)} OWNER TO {ident(user)}"),
        (createdb, WARN, "snapshot, rollback", f"{session} may not create databases: the proof of the snapshot and the way back need it",
         f"ALTER ROLE {ident(session)} CREATEDB"),
        (signal, WARN, "rollback", f"{session} may not end other sessions: rollback would have to wait for them",
         f"GRANT pg_signal_backend TO {ident(session)}"),
        (monitor, INFO, "index, status", f"{session} does not see other sessions' activity", f"GRANT pg_monitor TO {ident(session)}"),
    )  # fmt: skip
    findings += [Finding(level, name, "privilege", f"{message} ({phases})", grant) for held, level, phases, message, grant in needs if not held]
    for schema in closed:
        grant = f"GRANT USAGE, CREATE ON SCHEMA {ident(schema)} TO {ident(user)}"
        findings.append(Finding(STOP, name, "privilege", f"{user} cannot create tables in schema {schema} (schema, migrate)", grant))
    for table, holder, mine, hidden in others:
        if not mine:
            message = f"{user} does not own {table}, {holder} does (migrate, index)"
            grant = f"GRANT {ident(holder)} TO {ident(user)}; or " if holder in lent else ""
            findings.append(Finding(STOP, name, "privilege", message, f"{grant}ALTER TABLE {table} OWNER TO {ident(user)}"))
        if hidden:
            message = f"row level security hides rows of {table} from {user}: validation could not see them"
            step = f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY; or ALTER ROLE {ident(session)} BYPASSRLS"
            findings.append(Finding(STOP, name, "privilege", message, step))
    return findings


def check_control(connection: driver.Connection, name: str) -> list[Finding]:
    """Return whether the records of the migration can be kept."""
    with driver.database_errors(name, "reading privileges"):
        database, user, create, tables, open_, writable, filling = driver.rows(connection, _CONTROL)[0]
    if tables == 2 and not (open_ and writable):
        grant = f"GRANT USAGE ON SCHEMA migration TO {ident(user)}; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA migration TO {ident(user)}"
        return [Finding(STOP, name, "privilege", f"{user} cannot write the migration's records", grant)]
    if tables < 2 and not create:
        grant = f"GRANT CREATE ON DATABASE {ident(database)} TO {ident(user)}"
        return [Finding(STOP, name, "privilege", f"{user} cannot create the schema of the migration's records", grant)]
    if tables < 2 and not filling:
        grant = f"GRANT USAGE, CREATE ON SCHEMA migration TO {ident(user)}"
        return [Finding(STOP, name, "privilege", f"{user} cannot create the tables of the migration's records", grant)]
    return []


def check_connections(connection: driver.Connection, name: str) -> list[Finding]:
    """Return whether the server has room for the connections of the phases."""
    with driver.database_errors(name, "counting its connections"):
        role, limit, own, most, used = driver.rows(connection, _CONNECTIONS)[0]
    findings = []
    if 0 <= limit < own + CONNECTIONS:
        message = f"{role} may open {limit} connections and has {own}; the phases need about {CONNECTIONS}"
        findings.append(Finding(WARN, name, "connections", message, f"ALTER ROLE {ident(role)} CONNECTION LIMIT {own + CONNECTIONS}"))
    if most - used < CONNECTIONS:
        message = f"{used} of {most} connections are taken; the phases need about {CONNECTIONS}"
        findings.append(Finding(WARN, name, "connections", message, "raise max_connections, or lower migrate_workers"))
    return findings


def _reading(unreadable: Sequence[tuple[str, str, bool, bool]], reader: str) -> str:
    """Return the GRANTs for relations of (schema, name, whether the schema may be used, whether it may be read), all names quoted."""
    closed = dict.fromkeys(schema for schema, _, usable, _ in unreadable if not usable)
    tables = [(schema, table) for schema, table, _, readable in unreadable if not readable]
    steps = [f"GRANT USAGE ON SCHEMA {', '.join(closed)} TO {ident(reader)}"] if closed else []
    if len(tables) > LISTED:
        schemas = ", ".join(dict.fromkeys(schema for schema, _ in tables))
        steps += [f"GRANT SELECT ON ALL {kind} IN SCHEMA {schemas} TO {ident(reader)}" for kind in ("TABLES", "SEQUENCES")]
    elif tables:
        steps.append(f"GRANT SELECT ON {', '.join(f'{schema}.{table}' for schema, table in tables)} TO {ident(reader)}")
    return "; ".join(steps)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


_USER_TABLES = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_ROLE = """
SELECT current_user::text, s.rolreplication OR s.rolsuper, s.rolbypassrls OR s.rolsuper FROM pg_roles s WHERE s.rolname = current_user
"""
_UNREADABLE = f"""
SELECT quote_ident(n.nspname), quote_ident(c.relname), has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'S', 'm') AND {_USER_TABLES}
AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1, 2
"""
_ROW_SECURITY = f"""
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relrowsecurity AND {_USER_TABLES} AND row_security_active(c.oid) ORDER BY 1
"""
_LARGE_OBJECTS = """
SELECT count(*) FROM pg_largeobject_metadata m WHERE NOT pg_has_role(m.lomowner, 'USAGE') AND NOT EXISTS (
    SELECT FROM aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))
"""
_NOT_MINE = f"""
SELECT DISTINCT r.rolname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
WHERE c.relkind IN ('r', 'p') AND {_USER_TABLES} AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1
"""
_TARGET = """
SELECT d.datname, has_database_privilege(d.oid, 'CREATE'), pg_has_role(d.datdba, 'MEMBER'), current_user::text, session_user::text,
       s.rolcreatedb OR s.rolsuper, s.rolsuper OR pg_has_role(session_user, 'pg_signal_backend', 'MEMBER'),
       s.rolsuper OR pg_has_role(session_user, 'pg_monitor', 'MEMBER')
FROM pg_database d, pg_roles s WHERE d.datname = current_database() AND s.rolname = session_user
"""
_SCHEMAS = """
SELECT n.nspname::text FROM pg_namespace n
WHERE n.nspname = ANY (%s) AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE')) ORDER BY 1
"""
_TABLES = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), r.rolname::text, pg_has_role(c.relowner, 'USAGE'), row_security_active(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
JOIN unnest(%s::text[], %s::text[]) AS wanted (schema, name) ON n.nspname = wanted.schema AND c.relname = wanted.name
WHERE c.relkind IN ('r', 'p') AND has_schema_privilege(n.oid, 'USAGE') ORDER BY 1
"""
_CONTROL = """
SELECT current_database(), current_user::text, has_database_privilege(current_database(), 'CREATE'), count(c.oid),
       coalesce(bool_and(has_schema_privilege(n.oid, 'USAGE')), false),
       coalesce(bool_and(has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                         AND (c.relname = 'records' OR has_table_privilege(c.oid, 'UPDATE'))), false),
       coalesce(bool_and(has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE')), true)
FROM (VALUES ('migration')) AS wanted (schema) LEFT JOIN pg_namespace n ON n.nspname = wanted.schema
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r' AND c.relname IN ('migrations', 'records')
"""
_CONNECTIONS = """
SELECT r.rolname::text, CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END,
       (SELECT count(*) FROM pg_stat_activity WHERE usename = session_user)::int,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type IS NULL OR backend_type = 'client backend')::int
FROM pg_roles r WHERE r.rolname = session_user
"""
