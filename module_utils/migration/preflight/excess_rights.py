# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the source's reader may do beyond reading: each right with the statement that takes it away.

The login is judged with everything that it could become, not the role that a session has taken on.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..checks.findings import WARN, Finding
from ..postgres import driver
from ..postgres.quote import ident

LISTED = 5
_ATTRIBUTES = ("CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS")
_HARM = "the migration only reads the monolith; what runs as this login, or learns its password, could do more"


def check(connection: driver.Connection, name: str, schema: str, tables: Sequence[str]) -> list[Finding]:
    """Return a warning for each right beyond reading; `tables` are the mapped ones, in `schema` unless they name their own."""
    with driver.database_errors(name, "reading what its reader may do beyond reading"):
        reader, superuser, *attributes, hides = driver.rows(connection, _LOGIN)[0]
        if superuser:
            return [Finding(WARN, name, "privilege", f"{reader} is a superuser: {_HARM}", f"ALTER ROLE {ident(reader)} NOSUPERUSER")]
        members = driver.rows(connection, f"{_HELD} {_POWERFUL}")
        rights = driver.rows(connection, f"{_HELD} {_RIGHTS}", {"schema": schema, "tables": list(tables)})
    # Where rows are hidden by policies a reader of all rows needs BYPASSRLS.
    has = [word for word, there in zip(_ATTRIBUTES, attributes, strict=True) if there and not (word == "BYPASSRLS" and hides)]
    findings = []
    if has:
        step = f"ALTER ROLE {ident(reader)} {' '.join('NO' + word for word in has)}"
        findings.append(Finding(WARN, name, "privilege", f"{reader} has {', '.join(has)}: {_HARM}", step))
    told = {via for via, _ in members}
    for via, powers in members:
        findings.append(Finding(WARN, name, "privilege", f"{reader} can act as {', '.join(powers)}: {_HARM}", f"REVOKE {ident(via)} FROM {ident(reader)}"))
    for grantee, via, owner, what, privileges, named in rights:
        if via in told:
            continue
        message = f"{reader} may {', '.join(privileges)} on {_listed(named)}: {_HARM}"
        if via:
            message, step = f"{message} (as {via})", f"REVOKE {ident(via)} FROM {ident(reader)}"
        elif owner:
            message, step = f"{reader} owns {_listed(named)}: {_HARM}", "log in as a role that owns nothing there (docs/privileges.md)"
        else:
            step = f"REVOKE {', '.join(privileges)} ON {what} {', '.join(named)} FROM {ident(grantee) if grantee else 'PUBLIC'}"
        findings.append(Finding(WARN, name, "privilege", message, step, count=len(named)))
    return findings


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


_LOGIN = """
SELECT session_user::text, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication, r.rolbypassrls,
       EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relrowsecurity)
FROM pg_catalog.pg_roles r WHERE r.rolname = session_user
"""
# Every role that the login can act as, with the one of its own memberships that leads there. Before PostgreSQL 16 each gives everything.
_HELD = """
WITH RECURSIVE given AS (
    SELECT m.member, m.roleid FROM pg_catalog.pg_auth_members m
    WHERE m.admin_option OR coalesce((to_jsonb(m) ->> 'inherit_option')::boolean, true) OR coalesce((to_jsonb(m) ->> 'set_option')::boolean, true)
), held (role, via) AS (
    SELECT g.roleid, g.roleid FROM given g JOIN pg_catalog.pg_roles me ON me.oid = g.member WHERE me.rolname = session_user
    UNION SELECT g.roleid, h.via FROM given g JOIN held h ON h.role = g.member
)
"""
_POWERFUL = """
SELECT v.rolname::text, array_agg(DISTINCT r.rolname::text ORDER BY r.rolname::text) FROM held h
JOIN pg_catalog.pg_roles r ON r.oid = h.role JOIN pg_catalog.pg_roles v ON v.oid = h.via
WHERE r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls OR r.rolname IN (
    'pg_write_all_data', 'pg_execute_server_program', 'pg_write_server_files', 'pg_read_server_files', 'pg_create_subscription', 'pg_maintain',
    'pg_signal_backend')
GROUP BY 1 ORDER BY 1
"""
_RIGHTS = """
, mapped AS (
    SELECT c.oid, c.relowner, c.relacl, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS named, n.oid AS schema
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND (n.nspname = %(schema)s AND c.relname = ANY (%(tables)s) OR n.nspname || '.' || c.relname = ANY (%(tables)s))
), things (what, named, owner, acl) AS (
    SELECT 'TABLE', named, relowner, coalesce(relacl, acldefault('r', relowner)) FROM mapped
    UNION ALL SELECT 'TABLE', m.named, m.relowner, a.attacl FROM mapped m JOIN pg_catalog.pg_attribute a ON a.attrelid = m.oid WHERE a.attacl IS NOT NULL
    UNION ALL SELECT 'SCHEMA', quote_ident(n.nspname), n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner))
    FROM pg_catalog.pg_namespace n WHERE n.nspname = %(schema)s OR n.oid IN (SELECT schema FROM mapped)
    UNION ALL SELECT 'DATABASE', quote_ident(d.datname), d.datdba, coalesce(d.datacl, acldefault('d', d.datdba))
    FROM pg_catalog.pg_database d WHERE d.datname = current_database()
), found AS (
    SELECT g.rolname::text AS grantee, CASE WHEN a.grantee <> me.oid THEN v.rolname::text END AS via, a.grantee = t.owner AS owned,
           t.what, t.named, a.privilege_type
    FROM things t CROSS JOIN aclexplode(t.acl) a JOIN pg_catalog.pg_roles me ON me.rolname = session_user
    LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee
    LEFT JOIN (SELECT role, min(via::bigint)::oid AS via FROM held GROUP BY 1) h ON h.role = a.grantee
    LEFT JOIN pg_catalog.pg_roles v ON v.oid = h.via
    WHERE (a.grantee IN (0, me.oid) OR h.role IS NOT NULL)
      AND (t.what = 'TABLE' AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER') OR t.what <> 'TABLE' AND a.privilege_type = 'CREATE')
)
SELECT grantee, via, owned, what, array_agg(DISTINCT privilege_type ORDER BY privilege_type), array_agg(DISTINCT named ORDER BY named)
FROM found GROUP BY grantee, via, owned, what ORDER BY what, grantee, via
"""
