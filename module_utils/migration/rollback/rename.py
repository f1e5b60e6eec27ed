# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exchange the names of two databases in one transaction, ending the sessions that are in the way.

ALTER DATABASE ... RENAME locks the database against newcomers and waits up to five seconds for the sessions in it to go, so
those are ended from a second connection meanwhile. Nothing is switched off beforehand: whatever is killed at whatever
moment, either both names have changed or none. (PostgreSQL source: RenameDatabase, CountOtherDBBackends.)
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass

from ..errors import MigrationError
from ..postgres import databases, driver
from ..postgres.driver import Endpoint
from ..postgres.quote import ident, literal

TRIES = 6
_OBJECT_IN_USE = "55006"


@dataclass(frozen=True)
class Ended:
    """Sessions that were ended: whose, from which application, how many."""

    user: str
    application: str
    sessions: int


def standing(connection: driver.Connection, dbname: str) -> list[str]:
    """Return what would keep the database from being renamed although sessions are ended, a line each."""
    lines = []
    beyond = driver.scalar(
        connection,
        "SELECT count(*) FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid WHERE a.datname = %s AND r.rolsuper"
        " AND a.pid <> pg_backend_pid() AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)",
        (dbname,),
    )
    if beyond:
        lines.append(f"{beyond} sessions of a superuser are in {dbname}, which an ordinary role cannot end; have them closed")
    others = driver.scalar(
        connection,
        "SELECT count(*) FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid WHERE a.datname = %s AND NOT r.rolsuper AND a.pid <> pg_backend_pid()"
        " AND NOT pg_has_role(current_user, a.usesysid, 'USAGE') AND NOT pg_has_role(current_user, 'pg_signal_backend', 'USAGE')",
        (dbname,),
    )
    if others:
        lines.append(f"{others} sessions of other roles are in {dbname}, which the role may not end; GRANT pg_signal_backend TO it, or have them closed")
    prepared = driver.scalar(connection, "SELECT count(*) FROM pg_prepared_xacts WHERE database = %s", (dbname,))
    if prepared:
        lines.append(f"{prepared} prepared transactions are open in {dbname}; COMMIT PREPARED or ROLLBACK PREPARED them")
    able = driver.scalar(
        connection,
        "SELECT rolsuper OR rolcreatedb AND (SELECT pg_has_role(current_user, datdba, 'USAGE') FROM pg_database WHERE datname = %s)"
        " FROM pg_roles WHERE rolname = current_user",
        (dbname,),
    )
    if able is False:
        lines.append(f"the role lacks CREATEDB or membership in the owner of {dbname}; ALTER ROLE ... CREATEDB and GRANT the owner to it")
    return lines


def slots(connection: driver.Connection, dbname: str) -> list[str]:
    """Return the logical replication slots of a database; they go with it when it gets another name, and keep its server's WAL until they are dropped."""
    found = driver.rows(connection, "SELECT slot_name::text FROM pg_replication_slots WHERE database = %s AND NOT temporary ORDER BY 1", (dbname,))
    return [name for (name,) in found]


def exchange(endpoint: Endpoint, maintenance_db: str, live: str, fresh: str, kept: str, reason: str) -> tuple[Ended, ...]:
    """Rename `live` to `kept` and `fresh` to `live` at once; return whose sessions were ended."""
    with contextlib.closing(databases.admin(endpoint, maintenance_db)) as ender, driver.database_errors(endpoint.place, "exchanging names"):
        lines = standing(ender, live)
        if lines:
            raise MigrationError(f"{endpoint.place}: {live} cannot be exchanged: {'; '.join(lines)}; the service is as before, then run this again")
        who = _who(ender, live)
        _say_in_log(ender, f"edulink-migration: {reason}: ending {sum(item.sessions for item in who)} sessions of {live} to exchange it with {fresh}")
        for _ in range(TRIES):
            if _rename(endpoint, maintenance_db, live, fresh, kept, ender):
                return who
        lines = [*standing(ender, live), *standing(ender, fresh)] or ["sessions come faster than they can be ended; stop what connects to it"]
        raise MigrationError(f"{endpoint.place}: {live} could not be exchanged: {'; '.join(lines)}; the service is as before, then run this again")


def _rename(endpoint: Endpoint, maintenance_db: str, live: str, fresh: str, kept: str, ender: driver.Connection) -> bool:
    """Try once; False when sessions were still there."""
    stop = threading.Event()
    failed: list[BaseException] = []
    ending = threading.Thread(target=_end_sessions, args=(ender, (live, fresh), stop, failed), daemon=True)
    with contextlib.closing(databases.admin(endpoint, maintenance_db, autocommit=False)) as connection:
        ending.start()
        try:
            driver.rows(connection, "SET LOCAL lock_timeout = '10s'")
            driver.rows(connection, f"ALTER DATABASE {ident(live)} RENAME TO {ident(kept)}")
            driver.rows(connection, f"ALTER DATABASE {ident(fresh)} RENAME TO {ident(live)}")
            connection.commit()
            return True
        except Exception as exc:
            if failed:
                raise failed[0] from exc
            if getattr(exc, "pgcode", None) not in (_OBJECT_IN_USE, "55P03"):
                raise
            return False
        finally:
            stop.set()
            ending.join()


# Whoever has a role: clients, readers of a logical slot, background workers. What kind a session is (backend_type) only pg_read_all_stats may see.
_SESSIONS = "FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid WHERE a.datname = ANY(%s) AND a.pid <> pg_backend_pid()"


def _end_sessions(ender: driver.Connection, names: tuple[str, ...], stop: threading.Event, failed: list[BaseException]) -> None:
    """End the sessions in the databases again and again until told to stop; a superuser's are left to standing() to name."""
    while not stop.is_set():
        try:
            driver.rows(
                ender,
                f"SELECT pg_terminate_backend(a.pid) {_SESSIONS} AND (NOT r.rolsuper OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))",
                (list(names),),
            )
        except Exception as exc:
            failed.append(exc)
            return
        time.sleep(0.1)


def _who(connection: driver.Connection, dbname: str) -> tuple[Ended, ...]:
    found = driver.rows(
        connection,
        f"SELECT a.usename, coalesce(a.application_name, ''), count(*) {_SESSIONS} GROUP BY 1, 2 ORDER BY 1, 2",
        ([dbname],),
    )
    return tuple(Ended(*row) for row in found)


def _say_in_log(connection: driver.Connection, text: str) -> None:
    """Leave the reason in the server's log, which is where whoever lost a session looks."""
    driver.rows(connection, "DO " + literal(f"BEGIN RAISE LOG '%', {literal(text)}; END"))
