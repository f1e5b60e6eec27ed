# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are the servers, the roles and the runner ready? Reads settings and catalogs, changes nothing."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from .. import driver
from ..context import Context
from ..errors import MigrationError
from ..quote import ident
from ..sessions.store import StoreOptions, open_store
from ..snapshot import clients
from .findings import INFO, STOP, WARN, Finding

OLDEST = 140000
LONG_TRANSACTION = 600  # seconds
CLOCK = 5  # seconds
LISTED = 5


@dataclass(frozen=True)
class Server:
    """What a connection's server says of itself."""

    name: str
    version: int
    version_text: str
    settings: Mapping[str, str]
    encoding: str
    collation: str
    ctype: str
    user: str
    session_user: str
    superuser: bool
    standby: bool
    size: int
    clock_ahead: float
    tls: bool


_SETTINGS = (
    "server_version", "wal_level", "max_replication_slots", "max_wal_senders", "max_slot_wal_keep_size", "max_connections", "TimeZone",
    "log_timezone", "autovacuum_freeze_max_age", "log_statement", "archive_mode", "synchronous_standby_names", "track_commit_timestamp",
)  # fmt: skip


def describe(connection: driver.Connection, name: str) -> Server:
    """Return what the server says; the difference of clocks is measured against this runner."""
    with driver.database_errors(name, "reading the server's settings"):
        found = dict(driver.rows(connection, "SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", (list(_SETTINGS),)))
        default_zone = driver.scalar(connection, "SELECT reset_val FROM pg_settings WHERE name = 'log_timezone'")
        before = time.time()
        row = driver.rows(
            connection,
            "SELECT pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, current_user::text, session_user::text, r.rolsuper,"
            " pg_is_in_recovery(), CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) ELSE 0 END,"
            " extract(epoch FROM clock_timestamp())::float8, coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)"
            " FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = session_user",
        )[0]
        middle = (before + time.time()) / 2
    found["log_timezone"] = str(default_zone)
    encoding, collation, ctype, user, session_user, superuser, standby, size, clock, tls = row
    return Server(
        name,
        connection.server_version,
        found.get("server_version", ""),
        found,
        encoding,
        collation,
        ctype,
        user,
        session_user,
        superuser,
        standby,
        int(size),
        clock - middle,
        tls,
    )


def check_servers(source: Server, targets: Mapping[str, Server], others: Iterable[Server] = ()) -> list[Finding]:
    """Return what versions, encodings, collations, clocks and replication settings say."""
    findings: list[Finding] = []
    for server in (source, *targets.values(), *others):
        if server.version < OLDEST:
            findings.append(Finding(STOP, server.name, "version", f"PostgreSQL {server.version_text} is older than 14", "upgrade the server"))
        if abs(server.clock_ahead) > CLOCK:
            findings.append(
                Finding(WARN, server.name, "clock", f"its clock differs by {server.clock_ahead:+.0f} s from this runner's", "synchronise the clocks (NTP)")
            )
    for server in targets.values():
        findings += _against_source(source, server)
    findings.append(
        Finding(
            INFO, source.name, "version", f"PostgreSQL {source.version_text}, {source.encoding}, {source.collation}" + (", a standby" if source.standby else "")
        )
    )
    findings += _capture(source)
    return findings


def _against_source(source: Server, server: Server) -> list[Finding]:
    findings = []
    place = server.name
    if server.version // 10000 < source.version // 10000:
        findings.append(
            Finding(
                WARN,
                place,
                "version",
                f"PostgreSQL {server.version_text} is older than the source's {source.version_text}",
                "prefer the same major release or a newer one",
            )
        )
    if server.encoding != source.encoding:
        level = STOP if server.encoding == "SQL_ASCII" else WARN
        findings.append(
            Finding(
                level,
                place,
                "encoding",
                f"the database has encoding {server.encoding}, the source {source.encoding}",
                "make the database with ENCODING 'UTF8'; texts are checked character by character",
            )
        )
    if server.collation != source.collation:
        findings.append(
            Finding(
                WARN,
                place,
                "collation",
                f"sorts as {server.collation}, the source as {source.collation}",
                "ORDER BY on text will give another order; equality is the same",
            )
        )
    if server.standby:
        findings.append(Finding(STOP, place, "standby", "is a standby, nothing can be written to it", f"point login_host in host_vars/{place} at the primary"))
    findings.append(Finding(INFO, place, "version", f"PostgreSQL {server.version_text}, {server.encoding}, {server.collation}"))
    return findings


def _capture(source: Server) -> list[Finding]:
    """Return what change capture (a move without downtime) would need of the source."""
    findings = []
    if source.settings.get("wal_level") != "logical":
        findings.append(
            Finding(
                WARN,
                source.name,
                "wal_level",
                f"wal_level is {source.settings.get('wal_level')}",
                "for a move without downtime set wal_level = logical and restart; else plan a write stop",
            )
        )
    if source.settings.get("max_slot_wal_keep_size") == "-1":
        findings.append(
            Finding(
                WARN,
                source.name,
                "wal",
                "max_slot_wal_keep_size is unlimited: a forgotten slot could fill the disk",
                "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB' (or what the disk allows)",
            )
        )
    return findings


def check_source(connection: driver.Connection, name: str, schema: str, reader: str) -> list[Finding]:
    """Return what the reading role may not read, what is in the way, and what replication has left."""
    findings: list[Finding] = []
    with driver.database_errors(name, "reading privileges and activity"):
        unreadable = [row[0] for row in driver.rows(connection, _UNREADABLE)]
        slots, senders, slots_max, senders_max = driver.rows(connection, _SLOTS)[0]
        findings += activity(connection, name)
    if unreadable:
        listed = ", ".join(unreadable[:LISTED]) + (f" and {len(unreadable) - LISTED} more" if len(unreadable) > LISTED else "")
        findings.append(
            Finding(
                STOP,
                name,
                "privilege",
                f"{reader} cannot read {listed}, so the snapshot (pg_dump) would fail",
                f"GRANT pg_read_all_data TO {ident(reader)}; or GRANT SELECT on each (docs/privileges.md)",
                count=len(unreadable),
            )
        )
    if slots >= slots_max or senders >= senders_max:
        findings.append(
            Finding(
                WARN,
                name,
                "slots",
                f"{slots} of {slots_max} replication slots and {senders} of {senders_max} senders are in use",
                "raise max_replication_slots and max_wal_senders for a move without downtime",
            )
        )
    return findings


def activity(connection: driver.Connection, name: str) -> list[Finding]:
    """Return prepared and long transactions, waiting locks and a vacuum against wraparound."""
    findings = []
    prepared, oldest, exclusive, wrap, slots = driver.rows(connection, _ACTIVITY, {"long": LONG_TRANSACTION})[0]
    if prepared:
        findings.append(
            Finding(
                WARN,
                name,
                "transactions",
                f"{prepared} prepared transactions hold their locks and snapshots",
                "COMMIT PREPARED or ROLLBACK PREPARED them (pg_prepared_xacts)",
            )
        )
    if oldest:
        findings.append(
            Finding(
                WARN,
                name,
                "transactions",
                f"a transaction is {oldest:.0f} s old; creating a slot or an index would wait for it",
                "let it end, or end it (pg_stat_activity)",
            )
        )
    if exclusive:
        findings.append(
            Finding(WARN, name, "locks", f"{exclusive} sessions hold or wait for an exclusive lock on a table", "wait for the schema change to end (pg_locks)")
        )
    if wrap:
        findings.append(
            Finding(WARN, name, "autovacuum", f"{wrap} autovacuum workers prevent wraparound and will not yield to a lock", "let them end before the night")
        )
    if slots:
        findings.append(
            Finding(WARN, name, "slots", f"{slots} replication slots have lost WAL or are about to", "drop what nobody reads (pg_replication_slots)")
        )
    return findings


def check_target(connection: driver.Connection, name: str, service: str) -> list[Finding]:
    """Return the privileges that the phases need in a target database and the role does not have, each with its GRANT."""
    with driver.database_errors(name, "reading privileges"):
        database, create, owner, user, session, createdb, signal, monitor, schema_ok = driver.rows(connection, _TARGET, (service,))[0]
        findings = activity(connection, name)
    needs = (
        (create, STOP, f"{user} cannot create schemas in {database}", f"GRANT CREATE ON DATABASE {ident(database)} TO {ident(user)}"),
        (schema_ok, STOP, f"{user} cannot create tables in schema {service}", f"GRANT USAGE, CREATE ON SCHEMA {ident(service)} TO {ident(user)}"),
        (
            owner,
            WARN,
            f"{user} does not own {database}: rollback could not rename it, search_path could not be set",
            f"ALTER DATABASE {ident(database)} OWNER TO {ident(user)}",
        ),
        (createdb, WARN, f"{session} may not create databases: the proof of the snapshot and rollback need it", f"ALTER ROLE {ident(session)} CREATEDB"),
        (signal, WARN, f"{session} may not end other sessions: rollback would have to wait for them", f"GRANT pg_signal_backend TO {ident(session)}"),
        (monitor, INFO, f"{session} does not see other sessions' activity", f"GRANT pg_monitor TO {ident(session)}"),
    )
    return findings + [Finding(level, name, "privilege", message, grant) for held, level, message, grant in needs if not held]


def check_control(connection: driver.Connection, name: str) -> list[Finding]:
    """Return whether the records of the migration can be kept."""
    with driver.database_errors(name, "reading privileges"):
        database, user, create, there, writable = driver.rows(connection, _CONTROL)[0]
    if there and not writable:
        return [
            Finding(
                STOP,
                name,
                "privilege",
                f"{user} cannot write the migration's records",
                f"GRANT USAGE ON SCHEMA migration, and INSERT, UPDATE, SELECT on its tables, to {ident(user)}",
            )
        ]
    if not there and not create:
        return [
            Finding(
                STOP,
                name,
                "privilege",
                f"{user} cannot create the schema of the migration's records",
                f"GRANT CREATE ON DATABASE {ident(database)} TO {ident(user)}",
            )
        ]
    return []


def check_tls(connection: driver.Connection, endpoint: driver.Endpoint, server: Server) -> list[Finding]:
    """Return whether TLS is really in use where a network is between."""
    local = not endpoint.host or endpoint.host.startswith("/") or endpoint.host in ("localhost", "127.0.0.1", "::1")
    if server.tls or local:
        return []
    return [
        Finding(
            WARN,
            endpoint.name,
            "tls",
            f"the connection to {endpoint.host} is not encrypted (ssl_mode {endpoint.sslmode})",
            f"set ssl_mode: verify-full and ca_cert in host_vars/{endpoint.name}",
        )
    ]


def check_tools(bin_dir: str | None, servers: Sequence[Server]) -> list[Finding]:
    """Return whether this runner lacks client tools that are as new as the newest server."""
    newest = max(servers, key=lambda item: item.version)
    try:
        clients.choose(clients.candidates(bin_dir), newest.version // 10000, newest.name, bin_dir)
    except MigrationError as exc:
        message, _, step = str(exc).partition("; ")
        return [Finding(STOP, f"runner {platform.node()}", "tools", message, step)]
    return []


def check_store(options: StoreOptions | None) -> list[Finding]:
    """Return whether the session store can be reached, keeps what it is given, and has memory left."""
    if options is None:
        return []
    try:
        with closing(open_store(options)) as store:
            rooms = store.rooms()
    except MigrationError as exc:
        return [Finding(WARN, "session store", "redis", str(exc), "mend it before playbooks/sessions.yml")]
    findings = []
    for room in rooms:
        if room.maximum and room.policy != "noeviction":
            findings.append(
                Finding(
                    WARN,
                    f"session store {room.address}",
                    "redis",
                    f"maxmemory-policy is {room.policy}: when it is full it logs users out",
                    "set maxmemory-policy to noeviction",
                )
            )
        free = f", {(room.maximum - (room.used or 0)) >> 20} MiB free" if room.maximum else ""
        findings.append(Finding(INFO, f"session store {room.address}", "redis", f"reachable{free}, policy {room.policy or 'unknown'}"))
    return findings


def volatile_functions(connection: driver.Connection, names: Iterable[str]) -> list[str]:
    """Return those of the names that are only volatile functions here."""
    return [
        row[0]
        for row in driver.rows(
            connection, "SELECT proname::text FROM pg_proc WHERE proname = ANY (%s::name[]) GROUP BY 1 HAVING bool_and(provolatile = 'v')", (list(names),)
        )
    ]


def check(
    context: Context, source: driver.Connection, targets: Mapping[str, driver.Connection], control: driver.Connection, bin_dir: str | None
) -> tuple[list[Finding], Server, dict[str, Server]]:
    """Return every finding about servers, roles and this runner, and what the servers are."""
    described = describe(source, context.source.name)
    servers = {name: describe(connection, name) for name, connection in targets.items()}
    own = describe(control, context.control.name)
    findings = check_servers(described, servers, (own,))
    findings += check_source(source, context.source.name, context.source.schema, described.user)
    for name, connection in targets.items():
        findings += check_target(connection, name, name)
        findings += check_tls(connection, context.targets[name], servers[name])
    findings += check_control(control, context.control.name)
    findings += check_tls(source, context.source, described) + check_tls(control, context.control, own)
    findings += check_tools(bin_dir, [described, *servers.values()])
    return findings, described, servers


def require_reachable(context: Context) -> None:
    """Connect to every database once, so that a wrong one is named within seconds; one line for all that fail."""
    faults = []
    for endpoint in (context.source, *(context.targets[name] for name in context.plan.services), context.control):
        try:
            driver.connect(endpoint, application_name="edulink-migration preflight", readonly=True).close()
        except MigrationError as exc:
            faults.append(str(exc))
    if faults:
        raise MigrationError("; ".join(faults))


_UNREADABLE = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'S', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1
"""
_SLOTS = """
SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_replication),
       current_setting('max_replication_slots')::int, current_setting('max_wal_senders')::int
"""
_ACTIVITY = """
SELECT (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()),
       (SELECT max(extract(epoch FROM clock_timestamp() - xact_start))::float8 FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
        AND application_name NOT LIKE 'edulink-migration%%' AND clock_timestamp() - xact_start > make_interval(secs => %(long)s)),
       (SELECT count(DISTINCT l.pid) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation AND c.relkind = 'r' AND c.oid >= 16384
        JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.mode = 'AccessExclusiveLock'
        AND a.application_name NOT LIKE 'edulink-migration%%'),
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'autovacuum:%%to prevent wraparound%%'),
       (SELECT count(*) FROM pg_replication_slots WHERE wal_status IN ('unreserved', 'lost'))
"""
_TARGET = """
SELECT d.datname, has_database_privilege(d.oid, 'CREATE'), pg_has_role(d.datdba, 'MEMBER'), current_user::text, session_user::text,
       s.rolcreatedb OR s.rolsuper, s.rolsuper OR pg_has_role(session_user, 'pg_signal_backend', 'MEMBER'),
       s.rolsuper OR pg_has_role(session_user, 'pg_monitor', 'MEMBER'),
       coalesce((SELECT has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE') FROM pg_namespace n WHERE n.nspname = %s), true)
FROM pg_database d, pg_roles s WHERE d.datname = current_database() AND s.rolname = session_user
"""
_CONTROL = """
SELECT current_database(), current_user::text, has_database_privilege(current_database(), 'CREATE'), to_regnamespace('migration') IS NOT NULL,
       CASE WHEN to_regclass('migration.records') IS NULL THEN has_database_privilege(current_database(), 'CREATE')
            ELSE has_table_privilege(to_regclass('migration.records')::oid, 'INSERT') END
"""
