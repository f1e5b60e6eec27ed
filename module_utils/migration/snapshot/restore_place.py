# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a dump is restored to prove it: code of the database's owner runs there, as the role that restores.

A CHECK, an index, a default or a generated column may call any function that the dump brings along. So the monolith's dump
is never restored by a role of the services: a server is started for it and thrown away, or the operator names one.
A service's dump is restored where a rollback would, by the role that would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..context import Context
from ..embedded import throwaway
from ..postgres import databases, driver, identity
from ..postgres.driver import Endpoint
from . import restore_blockers
from .manifest import Dumped
from .restore import RestoreOptions

WITHOUT = "snapshot_verify_restore=false goes without the proof"
THROW_AWAY_DIR = Path("/var/tmp")


@dataclass(frozen=True)
class Place:
    """A server to restore a dump on, and how; `foreign` unless it is the dump's own."""

    server: Endpoint
    options: RestoreOptions
    foreign: bool


@contextlib.contextmanager
def place(context: Context, item: Dumped, verify_server: Endpoint | None, options: RestoreOptions, folder: Path = THROW_AWAY_DIR) -> Iterator[Place]:
    """Yield where a dump is proven; a server of its own is gone afterwards."""
    if verify_server is not None:
        yield Place(plain(verify_server), options, foreign=True)
    elif item.side == "target":
        yield Place(context.targets[item.name], options, foreign=False)
    else:
        with throwaway.throw_away(folder, item.size, restore_blockers.extensions(context.source)) as made:
            yield Place(made.endpoint, replace(options, bin_dir=str(made.bin_dir), maintenance_db="postgres"), foreign=True)


def plain(server: Endpoint) -> Endpoint:
    """Return the endpoint without the role that it would take on: a function could take that off again."""
    return replace(server, session_role=None)


def obstacles(context: Context, verify_server: Endpoint | None, maintenance_db: str) -> list[str]:
    """Return what would make the proof of the source's dump impossible or dangerous, a line each with the remedy."""
    if verify_server is None:
        if missing := throwaway.lacking():
            return [
                f"no server of its own can be started on this runner, which lacks {missing}; install it there (pip), or name a server in"
                f" snapshot_verify_server; {WITHOUT}"
            ]
        return restore_blockers.lacking_extensions(context.source, throwaway.extensions(), "the throw-away server")
    server = plain(verify_server)
    return _dangerous(context, server, maintenance_db) or restore_blockers.proof_obstacles(context.source, server, maintenance_db)


def _dangerous(context: Context, server: Endpoint, maintenance_db: str) -> list[str]:
    """Return why the monolith's code must not run on a server as this login: it is the source's, or it is the services' and the role could do harm."""
    here = identity.reach(replace(server, dbname=maintenance_db))
    source = identity.reach(context.source)
    step = f"name another one in snapshot_verify_server, or leave it out: then one is started and thrown away; {WITHOUT}"
    if here is not None and source is not None and here.same_server(source):
        return [f"snapshot_verify_server {server.name} is the source's own server, where nothing is ever restored; {step}"]
    others = [*(context.targets[service] for service in context.plan.services), context.control]
    shared = [other.name for other in others if here is not None and (there := identity.reach(other)) is not None and here.same_server(there)]
    if not shared:
        return []
    with contextlib.closing(databases.admin(server, maintenance_db)) as connection, driver.database_errors(server.place, "looking at rights"):
        powers = driver.rows(connection, _POWERS)
    if not powers:
        return []
    held = ", ".join(power for (power,) in powers)
    return [
        f"snapshot_verify_server {server.name} is the server of {', '.join(shared)}, where functions in the monolith's dump would run as {server.user}"
        f" ({held}); log in there as a role that is member of no other and has CREATEDB alone, or {step}"
    ]


_POWERS = """
SELECT power FROM (
    SELECT 'a superuser' AS power FROM pg_catalog.pg_roles WHERE rolname = session_user AND rolsuper
    UNION ALL SELECT 'may make roles' FROM pg_catalog.pg_roles WHERE rolname = session_user AND rolcreaterole
    UNION ALL SELECT 'may replicate' FROM pg_catalog.pg_roles WHERE rolname = session_user AND rolreplication
    UNION ALL SELECT 'passes row security' FROM pg_catalog.pg_roles WHERE rolname = session_user AND rolbypassrls
    UNION ALL SELECT 'a member of ' || pg_catalog.pg_get_userbyid(m.roleid)
        FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.member WHERE r.rolname = session_user
    UNION ALL SELECT 'owns the database ' || datname FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles r ON r.oid = d.datdba
        WHERE r.rolname = session_user
) AS held ORDER BY power
"""
