# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dump a database in the very snapshot in which its content is digested."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import MigrationError
from ..postgres import clients, content_digest, databases, driver
from ..postgres.clients import Access, Clients
from ..postgres.driver import Endpoint
from .manifest import Dumped

LOCK_WAIT = "60s"
METHODS = {"none": 0, "gzip": 0, "lz4": 16, "zstd": 16}  # since which version pg_dump has them


@dataclass(frozen=True)
class DumpOptions:
    """How to dump: worker processes, compression as pg_dump takes it (`gzip:1`, `zstd`, `none`), where the clients are."""

    jobs: int = 2
    compression: str = "gzip:1"
    bin_dir: str | None = None


@dataclass(frozen=True)
class Survey:
    """What a dump of a database would take."""

    name: str
    server_version: str
    clients: Clients
    size: int
    tables: int
    rows: int


def survey(endpoint: Endpoint, options: DumpOptions, available: list[Clients]) -> Survey:
    """Return what a dump would take; MigrationError that names what would make it impossible."""
    connection = driver.connect(endpoint, application_name=databases.APPLICATION_NAME, readonly=True)
    try:
        with driver.database_errors(endpoint.place, "looking at what is to be dumped"):
            chosen = choose(connection, endpoint, options, available)
            faults = obstacles(connection)
            if faults:
                raise MigrationError(f"{endpoint.place}: pg_dump would fail: {'; '.join(faults)}; mend that, then run this again")
            size = driver.scalar(connection, "SELECT pg_database_size(current_database())")
            found = content_digest.tables(connection)
            rows = driver.scalar(
                connection,
                "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class"
                " WHERE relkind = 'r' AND relnamespace::regnamespace::text !~ '^(pg_|information_schema)'",
            )
            return Survey(endpoint.name, connection.info.parameter_status("server_version") or "", chosen, int(size), len(found), int(rows))
    finally:
        connection.close()


def choose(connection: driver.Connection, endpoint: Endpoint, options: DumpOptions, available: list[Clients]) -> Clients:
    """Return the clients that dump this server with the wanted compression."""
    least = METHODS.get(options.compression.partition(":")[0], 0)
    reason = f"snapshot_compression is {options.compression}"
    chosen = clients.choose(available, connection.server_version // 10000, endpoint.place, options.bin_dir, least=least, reason=reason)
    compression(options.compression, chosen.major)
    return chosen


def obstacles(connection: driver.Connection) -> list[str]:
    """Return what keeps the session's role from dumping its database, a line each with the remedy."""
    faults = [
        f"{schema}.{table} cannot be read; GRANT SELECT ON {schema}.{table} to the role"
        for schema, table, readable in content_digest.tables(connection)
        if not readable
    ]
    shut_schemas = driver.rows(
        connection,
        "SELECT DISTINCT quote_ident(nspname) FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid"
        " WHERE c.relkind IN ('r', 'p', 'S', 'm') AND nspname !~ '^pg_' AND nspname <> 'information_schema'"
        " AND NOT has_schema_privilege(n.oid, 'USAGE') ORDER BY 1",
    )
    faults += [f"the schema {name} cannot be entered; GRANT USAGE ON SCHEMA {name} to the role" for (name,) in shut_schemas]
    hidden = driver.rows(
        connection,
        "SELECT nspname || '.' || relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE nspname !~ '^pg_'"
        " AND CASE WHEN relkind = 'S' THEN NOT has_sequence_privilege(c.oid, 'SELECT') END ORDER BY 1",
    )
    faults += [f"the sequence {name} cannot be read; GRANT SELECT ON SEQUENCE {name} to the role" for (name,) in hidden]
    shut = driver.rows(
        connection,
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relrowsecurity AND row_security_active(c.oid) AND relnamespace::regnamespace::text !~ '^pg_'",
    )
    faults += [f"row security hides rows of {name} from the role; give the role BYPASSRLS" for (name,) in shut]
    objects = driver.scalar(
        connection,
        "SELECT count(*) FROM pg_largeobject_metadata m WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
        " AND NOT pg_has_role(current_user, m.lomowner, 'USAGE')"
        " AND NOT EXISTS (SELECT FROM aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'"
        " AND (a.grantee = 0 OR pg_has_role(current_user, a.grantee, 'USAGE')))",
    )
    if objects:
        faults.append(f"{objects} large objects cannot be read (pg_read_all_data does not cover them); GRANT SELECT ON LARGE OBJECT to the role")
    return faults


def compression(chosen: str, major: int) -> str:
    """Return pg_dump's --compress argument for these clients; MigrationError when they cannot do it."""
    method, _, level = chosen.partition(":")
    if method not in METHODS or (level and not level.isdigit()):
        raise MigrationError(f"snapshot_compression is {chosen!r}; it is none, gzip, lz4 or zstd, with a level if you like (gzip:1)")
    if major >= 16:
        return chosen
    return "0" if method == "none" else level or "6"


def dump(
    endpoint: Endpoint, side: str, folder: Path, chosen: Clients, options: DumpOptions, tick: Callable[[str, int, int], None]
) -> Dumped:
    """Dump the database into `folder`/<name>; the digests are taken meanwhile, in the same exported snapshot."""
    started = time.monotonic()
    connection = driver.connect(endpoint, application_name=databases.APPLICATION_NAME, readonly=True)
    try:
        with driver.database_errors(endpoint.place, "exporting a snapshot"):
            _unhurried(connection)
            snapshot = driver.scalar(connection, "SELECT pg_export_snapshot()")
            lsn, taken_at, size = driver.rows(
                connection,
                "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text,"
                " now()::text, pg_database_size(current_database())",
            )[0]
            properties = databases.read(connection, endpoint.dbname)
        digesting = _Digesting(connection, endpoint.place, tick)
        digesting.start()
        try:
            with clients.access(endpoint, databases.APPLICATION_NAME) as way:
                clients.run(
                    [
                        chosen.program("pg_dump"),
                        "--format=directory",
                        f"--encoding={properties.encoding}",  # the role may have a client_encoding of its own
                        f"--jobs={options.jobs}",
                        f"--snapshot={snapshot}",
                        f"--compress={compression(options.compression, chosen.major)}",
                        f"--lock-wait-timeout={LOCK_WAIT}",
                        "--no-password",
                        f"--file={folder / endpoint.name}",
                        *([f"--role={endpoint.session_role}"] if endpoint.session_role else []),
                    ],
                    way,
                    endpoint.place,
                    "pg_dump",
                )
                roles = _dump_roles(folder / f"{endpoint.name}.roles.sql", endpoint, chosen, way)
        except BaseException as exc:
            if (first := digesting.error) is not None:  # its snapshot has gone with it, which is all that pg_dump can tell
                raise first from exc
            connection.cancel()
            digesting.join()
            raise
        content = digesting.result()
        version = connection.info.parameter_status("server_version") or ""
    finally:
        connection.close()
    return Dumped(
        endpoint.name,
        side,
        endpoint.dbname,
        version,
        chosen.version,
        int(size),
        lsn,
        taken_at,
        snapshot,
        roles,
        round(time.monotonic() - started, 3),
        properties,
        content,
    )


def _unhurried(connection: driver.Connection) -> None:
    """Begin a transaction whose snapshot holds and that no timeout ends."""
    connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
    limits = ["statement_timeout", *(["transaction_timeout"] if connection.server_version >= 170000 else [])]
    for name in limits:
        driver.rows(connection, f"SET LOCAL {name} = 0")
    driver.rows(connection, "SET LOCAL row_security = off")


def _dump_roles(path: Path, endpoint: Endpoint, chosen: Clients, way: Access) -> bool:
    """Write the roles of the server, without passwords; False when this role or service may not read them."""
    argv = [chosen.program("pg_dumpall"), "--roles-only", "--no-role-passwords", "--no-password"]
    argv += [f"--database={clients.dbname(endpoint.dbname)}", f"--file={path}"]
    try:
        clients.run(argv, way, endpoint.place, "pg_dumpall")
    except MigrationError as exc:
        path.unlink(missing_ok=True)
        if clients.FULL in str(exc):
            raise
        return False
    return True


class _Digesting(threading.Thread):
    """Digest the content in the exporting session while pg_dump works."""

    def __init__(self, connection: driver.Connection, place: str, tick: Callable[[str, int, int], None]) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self._place = place
        self._tick = tick
        self._content: content_digest.Content | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with driver.database_errors(self._place, "digesting the tables"):
                self._content = content_digest.read(self._connection, self._tick)
        except BaseException as exc:
            self.error = exc

    def result(self) -> content_digest.Content:
        """Wait for the content."""
        self.join()
        if self.error is not None:
            raise self.error
        if self._content is None:
            raise MigrationError(f"{self._place}: the tables were not digested; run this again")
        return self._content


def check_space(folder: Path, needed: int) -> int:
    """Return the free bytes where the folder is or will be; MigrationError when fewer than `needed`."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise MigrationError(
            f"{place} has {in_size(free)} free, the snapshot may need {in_size(needed)}; free some space there, choose another snapshot_dir,"
            " or lower snapshot_space_factor when you know that the dumps compress well"
        )
    return free


def in_size(number: float) -> str:
    """Return a number of bytes as a person reads it."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can enter, with its parents; one that is there already is left as it is."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    os.chmod(path, 0o700)
