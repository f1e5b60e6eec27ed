# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would keep a dump of a database from being restored beside it by the role that rolls back, found before it is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from dataclasses import replace

from ..postgres import databases, driver
from ..postgres.driver import Endpoint
from . import restore_trial, superuser_objects

_TABLESPACES = """
SELECT quote_ident(spcname) FROM pg_tablespace t JOIN pg_database d ON d.dattablespace = t.oid
WHERE d.datname = %s AND spcname <> 'pg_default' AND NOT has_tablespace_privilege(t.oid, 'CREATE')
"""

# Tables and indexes in a tablespace of their own are made by the role that the restore acts as.
_OBJECTS_TABLESPACES = """
SELECT DISTINCT quote_ident(spcname) FROM pg_tablespace t JOIN pg_class c ON c.reltablespace = t.oid
WHERE c.relnamespace::regnamespace::text !~ '^pg_' AND NOT has_tablespace_privilege(%s, t.oid, 'CREATE') ORDER BY 1
"""

# A setting that nobody knows (of an extension that is not loaded, or of the service's own) is a superuser's to give, too.
_SETTINGS = """
SELECT name FROM unnest(%s::text[]) AS given (name) LEFT JOIN pg_settings AS known USING (name)
WHERE (known.context IS NULL OR known.context IN ('superuser', 'superuser-backend')) AND NOT {granted} ORDER BY 1
"""


def acting_role(endpoint: Endpoint) -> str | None:
    """Return the role that a restore acts as: the session role, or none (the login role) when only that reaches every owner."""
    if not endpoint.session_role:
        return None
    with contextlib.closing(_login(endpoint)) as connection, driver.database_errors(endpoint.place, "looking at owners"):
        for owner in superuser_objects.owners(connection):
            reached = driver.scalar(connection, "SELECT pg_has_role(%s, %s, 'MEMBER')", (endpoint.session_role, owner))
            if not reached and driver.scalar(connection, "SELECT pg_has_role(current_user, %s, 'MEMBER')", (owner,)):
                return None
    return endpoint.session_role


def obstacles(endpoint: Endpoint, maintenance_db: str) -> list[str]:
    """Return what would make rollback_scope=databases impossible for a service, a line each: fault; remedy."""
    return [*_rights(endpoint, maintenance_db), *(item.line for item in restore_trial.obstacles(endpoint))]


def _rights(endpoint: Endpoint, maintenance_db: str) -> list[str]:
    """Return what the role may not do or make again; [] for a superuser."""
    lines = []
    with contextlib.closing(databases.admin(endpoint, maintenance_db)) as connection, driver.database_errors(endpoint.place, "looking at rights"):
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
            lines.append(f"the role {user} may not make databases; ALTER ROLE {user} CREATEDB, or {superuser_objects.DATA}")
        if not owns:
            lent = databases.lendable(connection, owner)
            step = f"GRANT {owner} TO {user}" if lent else "give it to a role of the service's own that the role is member of"
            lines.append(f"the role {user} is not a member of {owner}, who owns the database; {step}, or {superuser_objects.DATA}")
        if not driver.scalar(connection, "SELECT pg_has_role(current_user, 'pg_signal_backend', 'USAGE')"):
            lines.append(f"the role {user} may not end others' sessions; GRANT pg_signal_backend TO {user}, or {superuser_objects.DATA}")
        spaces = driver.rows(connection, _TABLESPACES, (endpoint.dbname,))
        lines += [_tablespace(user, name, "") for (name,) in spaces]
        settings = databases.read(connection, endpoint.dbname).settings
        others = sorted({item.role for item in settings} - {"", user})
        if others:
            step = f"ALTER ROLE ... IN DATABASE ... RESET ALL, or {superuser_objects.DATA}"
            lines.append(f"the database has settings for {', '.join(others)}, which only a superuser can give again; {step}")
        granted = "has_parameter_privilege(name, 'SET')" if connection.server_version >= 150000 else "false"
        beyond = [name for (name,) in driver.rows(connection, _SETTINGS.format(granted=granted), ([item.name for item in settings if not item.role],))]
        if beyond:
            lines.append(
                f"the database has the settings {', '.join(beyond)}, which only a superuser can give again; GRANT SET ON PARAMETER ... TO {user}"
                f" (PostgreSQL 15 and newer), ALTER DATABASE ... RESET them, or {superuser_objects.DATA}"
            )
    with contextlib.closing(_login(endpoint)) as connection, driver.database_errors(endpoint.place, "looking at rights"):
        makes = owner if databases.lendable(connection, owner) else endpoint.session_role or user
        lines += [item.line for item in superuser_objects.obstacles(connection, makes)]
        acting = acting_role(endpoint) or user
        spaces = driver.rows(connection, _OBJECTS_TABLESPACES, (acting,))
        lines += [_tablespace(acting, name, " of tables") for (name,) in spaces]
    return lines


def _tablespace(role: str, name: str, of_what: str) -> str:
    """Return the line of a tablespace that the role may not use."""
    return f"the role {role} may not use the tablespace {name}{of_what}; GRANT CREATE ON TABLESPACE {name} TO {role}, or {superuser_objects.DATA}"


def extensions(source: Endpoint) -> list[str]:
    """Return the extensions that a database uses, but for the one that every database has."""
    with contextlib.closing(_login(source)) as connection, driver.database_errors(source.place, "looking at extensions"):
        return [name for (name,) in driver.rows(connection, "SELECT extname FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1")]


def lacking_extensions(source: Endpoint, known: Container[str], where: str) -> list[str]:
    """Return a line for each extension of the source that a server does not have."""
    missing = [name for name in extensions(source) if name not in known]
    return [f"{source.name} has the extension {name}, which {where} has not; name one that has it in snapshot_verify_server" for name in missing]


def proof_obstacles(source: Endpoint, server: Endpoint, maintenance_db: str) -> list[str]:
    """Return what would keep the source's dump from being restored on another server, for its proof; a line each with the remedy."""
    used = extensions(source)
    with contextlib.closing(_login(source)) as connection, driver.database_errors(source.place, "looking at its objects"):
        beyond = superuser_objects.elsewhere(connection)
    with contextlib.closing(databases.admin(server, maintenance_db)) as connection, driver.database_errors(server.place, "looking at extensions"):
        superuser, creates = driver.rows(connection, "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user")[0]
        known = dict(
            driver.rows(
                connection,
                "SELECT a.name, v.trusted FROM pg_available_extensions a JOIN pg_available_extension_versions v"
                " ON v.name = a.name AND v.version = a.default_version WHERE a.name = ANY(%s)",
                (used,),
            )
        )
    where = f"{server.name}'s server"
    lines = lacking_extensions(source, known, where)
    if superuser:
        return lines
    if not creates:
        lines.append(f"the role {server.user} may not make databases on {where}; ALTER ROLE {server.user} CREATEDB")
    if untrusted := [name for name in used if known.get(name) is False]:
        step = "mark them as trusted in its control files, or leave snapshot_verify_server out: a server that is started for the proof and thrown away can"
        lines.append(f"the role {server.user} cannot make the extensions {', '.join(untrusted)} of {source.name} on {where}; {step}")
    step = "leave snapshot_verify_server out, or set snapshot_verify_restore=false"
    return lines + [f"the role {server.user} cannot make {what} of {source.name} on {where}; {step}" for what in beyond]


def _login(endpoint: Endpoint) -> driver.Connection:
    return driver.connect(replace(endpoint, session_role=None), application_name=databases.APPLICATION_NAME, readonly=True, autocommit=True)
