# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would keep a dump of a database from being restored beside it by the role that rolls back, found before it is needed."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from .. import driver
from ..driver import Endpoint
from . import database

_OWNERS = """
SELECT DISTINCT pg_get_userbyid(owner) FROM (
    SELECT nspowner AS owner FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    UNION SELECT relowner FROM pg_class WHERE relnamespace::regnamespace::text !~ '^(pg_|information_schema)'
    UNION SELECT proowner FROM pg_proc p WHERE pronamespace::regnamespace::text !~ '^(pg_|information_schema)'
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
    UNION SELECT lomowner FROM pg_largeobject_metadata
) AS owners
WHERE owner NOT IN (SELECT nspowner FROM pg_namespace WHERE nspname = 'public')
"""

_TABLESPACES = """
SELECT quote_ident(spcname) FROM pg_tablespace t JOIN pg_database d ON d.dattablespace = t.oid
WHERE d.datname = %s AND spcname <> 'pg_default' AND NOT has_tablespace_privilege(t.oid, 'CREATE')
"""


def owners(connection: driver.Connection) -> list[str]:
    """Return the roles that own something in the connection's database."""
    return sorted(name for (name,) in driver.rows(connection, _OWNERS))


def acting_role(endpoint: Endpoint) -> str | None:
    """Return the role that a restore acts as: the session role, or none (the login role) when only that reaches every owner."""
    if not endpoint.session_role:
        return None
    with contextlib.closing(_login(endpoint)) as connection, driver.database_errors(endpoint.place, "looking at owners"):
        for owner in owners(connection):
            reached = driver.scalar(connection, "SELECT pg_has_role(%s, %s, 'MEMBER')", (endpoint.session_role, owner))
            if not reached and driver.scalar(connection, "SELECT pg_has_role(current_user, %s, 'MEMBER')", (owner,)):
                return None
    return endpoint.session_role


def obstacles(endpoint: Endpoint, maintenance_db: str) -> list[str]:
    """Return what would make rollback_scope=databases impossible for a service, a line each with the remedy; [] for a superuser."""
    lines = []
    with contextlib.closing(database.admin(endpoint, maintenance_db)) as connection, driver.database_errors(endpoint.place, "looking at rights"):
        superuser, creates, owns, owner = driver.rows(
            connection,
            "SELECT r.rolsuper, r.rolcreatedb, pg_has_role(current_user, d.datdba, 'USAGE'), pg_get_userbyid(d.datdba)"
            " FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = %s",
            (endpoint.dbname,),
        )[0]
        if superuser:
            return []
        user = endpoint.user
        if not creates:
            lines.append(f"the role {user} may not make databases; ALTER ROLE {user} CREATEDB")
        if not owns:
            lines.append(f"the role {user} is not a member of {owner}, who owns the database; GRANT {owner} TO {user}")
        if not driver.scalar(connection, "SELECT pg_has_role(current_user, 'pg_signal_backend', 'USAGE')"):
            lines.append(f"the role {user} may not end others' sessions; GRANT pg_signal_backend TO {user}")
        spaces = driver.rows(connection, _TABLESPACES, (endpoint.dbname,))
        lines += [f"the role {user} may not use the tablespace {name}; GRANT CREATE ON TABLESPACE {name} TO {user}" for (name,) in spaces]
        others = sorted({item.role for item in database.read(connection, endpoint.dbname).settings} - {"", user})
        if others:
            lines.append(f"the database has settings for {', '.join(others)}, which only a superuser can give again; ALTER ROLE ... IN DATABASE ... RESET ALL")
    with contextlib.closing(_login(endpoint)) as connection, driver.database_errors(endpoint.place, "looking at rights"):
        beyond = [name for name in owners(connection) if not driver.scalar(connection, "SELECT pg_has_role(current_user, %s, 'MEMBER')", (name,))]
        if beyond:
            lines.append(f"the role {user} is not a member of {', '.join(beyond)}, who own objects; GRANT them to it")
        untrusted = driver.rows(
            connection,
            "SELECT e.extname FROM pg_extension e LEFT JOIN pg_available_extension_versions v ON v.name = e.extname AND v.version = e.extversion"
            " WHERE e.extname <> 'plpgsql' AND v.trusted IS NOT TRUE ORDER BY 1",
        )
        if untrusted:
            names = ", ".join(name for (name,) in untrusted)
            lines.append(f"only a superuser can make the extensions {names} again; have a superuser roll back, or use rollback_scope=data")
        if driver.scalar(connection, "SELECT EXISTS (SELECT FROM pg_publication WHERE puballtables) OR EXISTS (SELECT FROM pg_event_trigger)"):
            lines.append("only a superuser can make event triggers and publications FOR ALL TABLES again; drop them meanwhile")
    return lines


def proof_obstacles(source: Endpoint, server: Endpoint, maintenance_db: str) -> list[str]:
    """Return what would keep the source's dump from being restored on another server, for its proof; a line each with the remedy."""
    with contextlib.closing(_login(source)) as connection, driver.database_errors(source.place, "looking at extensions"):
        used = [name for (name,) in driver.rows(connection, "SELECT extname FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1")]
        events = driver.scalar(connection, "SELECT count(*) FROM pg_event_trigger")
    with contextlib.closing(database.admin(server, maintenance_db)) as connection, driver.database_errors(server.place, "looking at extensions"):
        superuser, creates = driver.rows(connection, "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user")[0]
        known = dict(
            driver.rows(
                connection,
                "SELECT a.name, v.trusted FROM pg_available_extensions a JOIN pg_available_extension_versions v"
                " ON v.name = a.name AND v.version = a.default_version WHERE a.name = ANY(%s)",
                (used,),
            )
        )
    where, step = f"on {server.name}'s server", "name another one in snapshot_proof_server"
    lines = [f"{source.name} has the extension {name}, which is not installed {where}; install it there or {step}" for name in used if name not in known]
    if superuser:
        return lines
    if not creates:
        lines.append(f"the role {server.user} may not make databases {where}; ALTER ROLE {server.user} CREATEDB")
    untrusted = [name for name in used if known.get(name) is False]
    if untrusted:
        lines.append(f"only a superuser can make the extensions {', '.join(untrusted)} of {source.name} {where}; {step}, with a superuser's login")
    if events:
        lines.append(f"only a superuser can make the event triggers of {source.name} {where}; {step}, with a superuser's login")
    return lines


def _login(endpoint: Endpoint) -> driver.Connection:
    return driver.connect(replace(endpoint, session_role=None), application_name=database.APPLICATION_NAME, readonly=True, autocommit=True)
