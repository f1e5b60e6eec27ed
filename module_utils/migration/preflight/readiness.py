# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are the servers, the roles and the runner ready? Reads settings and catalogs, changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing

from .. import tls
from ..checks.findings import INFO, STOP, WARN, Finding
from ..context import Context
from ..errors import MigrationError
from ..postgres import driver
from ..sessions.store import Room, StoreOptions, open_store
from . import excess_rights
from .privileges import check_control, check_source, check_target
from .servers import Server, check_servers, check_tls, check_tools, describe

LONG_TRANSACTION = 600  # seconds
WRAPAROUND = 0.9  # of autovacuum_freeze_max_age


def check_capture(connection: driver.Connection, source: Server) -> list[Finding]:
    """Return what change capture (a move without downtime) would need of the source: wal_level, slots, senders, a bound on WAL."""
    with driver.database_errors(source.name, "reading its replication slots"):
        slots, senders = driver.rows(connection, "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_replication)")[0]
    level, bound = source.settings.get("wal_level"), source.settings.get("max_slot_wal_keep_size")
    slots_most, senders_most = int(source.settings["max_replication_slots"]), int(source.settings["max_wal_senders"])
    findings = []
    if level != "logical":
        step = "for a move without downtime set wal_level = logical and restart; else plan a write stop"
        findings.append(Finding(WARN, source.name, "wal_level", f"wal_level is {level}", step))
    if bound == "-1":
        step = "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB' (or what the disk allows)"
        findings.append(Finding(WARN, source.name, "wal", "max_slot_wal_keep_size is unlimited: a forgotten slot could fill the disk", step))
    taken = f"{slots} of {slots_most} replication slots and {senders} of {senders_most} senders are in use"
    if slots >= slots_most or senders >= senders_most:
        findings.append(Finding(WARN, source.name, "slots", taken, "raise max_replication_slots and max_wal_senders for a move without downtime"))
    else:
        findings.append(Finding(INFO, source.name, "slots", f"{taken}; wal_level {level}, max_slot_wal_keep_size {bound} MB"))
    return findings


def activity(connection: driver.Connection, name: str) -> list[Finding]:
    """Return prepared and long transactions, exclusive locks, lost slots, and vacuums against wraparound, running or near."""
    with driver.database_errors(name, "reading its activity"):
        prepared, oldest, wrap, slots = driver.rows(connection, _ACTIVITY, {"long": LONG_TRANSACTION})[0]
        exclusive, tables = driver.rows(connection, _EXCLUSIVE)[0]
        old = [row[0] for row in driver.rows(connection, _OLD, {"share": WRAPAROUND})]
    found = (
        (prepared, "transactions", f"{prepared} prepared transactions hold their locks and snapshots",
         "COMMIT PREPARED or ROLLBACK PREPARED them (pg_prepared_xacts)"),
        (oldest, "transactions", f"a transaction is {oldest or 0:.0f} s old; creating a slot or an index would wait for it",
         "let it end, or end it (pg_stat_activity)"),
        (exclusive, "locks", f"{exclusive} sessions hold or wait for an exclusive lock on {tables}", "wait for the schema change to end (pg_locks)"),
        (wrap, "autovacuum", f"{wrap} autovacuum workers prevent wraparound and will not yield to a lock", "let them end before the night"),
        (old, "autovacuum", f"an autovacuum to prevent wraparound is near for {', '.join(old)}", "VACUUM (FREEZE) them before the night"),
        (slots, "slots", f"{slots} replication slots have lost WAL or are about to", "drop what nobody reads (pg_replication_slots)"),
    )  # fmt: skip
    return [Finding(WARN, name, rule, message, step) for there, rule, message, step in found if there]


def check_store(options: StoreOptions | None, needed: int = 0) -> list[Finding]:
    """Return whether the session store can be reached, is new enough, keeps what it is given, and has room for `needed` bytes."""
    if options is None:
        return []
    lacking = tls.store_weakness([address.host for address in options.hosts], options.tls, verify_host=options.tls_verify_host)
    findings = [Finding(WARN, "session store", "tls", *lacking)] if lacking else []
    try:
        with closing(open_store(options)) as store:
            rooms = store.rooms()
    except MigrationError as exc:
        return [*findings, Finding(WARN, "session store", "redis", str(exc), "mend it before playbooks/sessions.yml")]
    for room in rooms:
        findings += _room(room, needed // max(1, len(rooms)))
    return findings


def _room(room: Room, needed: int) -> list[Finding]:
    place = f"session store {room.address}"
    findings = []
    if unfit := room.unfit():
        findings.append(Finding(STOP, place, "redis", *unfit))
    if room.maximum and room.policy != "noeviction":
        message = f"maxmemory-policy is {room.policy}: when it is full it logs users out"
        findings.append(Finding(WARN, place, "redis", message, "set maxmemory-policy to noeviction"))
    free = room.maximum - (room.used or 0) if room.maximum else None
    if free is not None and free < needed:
        message = f"{free >> 20} MiB are free, the sessions need about {(needed >> 20) + 1} MiB"
        findings.append(Finding(WARN, place, "redis", message, "raise maxmemory"))
    space = "no limit" if room.maximum == 0 else "unknown" if free is None else f"{free >> 20} MiB free"
    said = f"reachable, version {room.version or 'unknown'}, memory {space}, policy {room.policy or 'unknown'}"
    return [*findings, Finding(INFO, place, "redis", said)]


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
    described = describe(source, context.source)
    servers = {name: describe(connection, context.targets[name]) for name, connection in targets.items()}
    own = describe(control, context.control)
    findings = check_servers(described, servers, own, zoneless=_zoneless(source, context))
    tables = sorted({name for target in context.plan.targets for part in target.parts for name in part.tables})
    findings += excess_rights.check(source, context.source.name, context.source.schema, tables)
    findings += check_source(source, context.source.name) + check_capture(source, described) + activity(source, context.source.name)
    for name, connection in targets.items():
        mine = context.plan.of(name)
        schemas = dict.fromkeys(target.schema for target in mine)
        findings += check_target(connection, name, schemas, [(target.schema, target.table) for target in mine])
        findings += activity(connection, name) + check_tls(context.targets[name], servers[name].tls)
    findings += check_control(control, context.control.name)
    findings += check_tls(context.source, described.tls) + check_tls(context.control, own.tls)
    findings += check_tools(bin_dir, [described, *servers.values()])
    return findings, described, servers


def _zoneless(connection: driver.Connection, context: Context) -> bool:
    """Return whether a mapped table of the source has a timestamp without a zone."""
    tables = sorted({name for target in context.plan.targets for part in target.parts for name in part.tables})
    with driver.database_errors(context.source.place, "reading its columns"):
        return bool(driver.scalar(connection, _ZONELESS, (context.source.schema, tables)))


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


_ACTIVITY = """
SELECT (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()),
       (SELECT max(extract(epoch FROM clock_timestamp() - xact_start))::float8 FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
        AND application_name NOT LIKE 'edulink-migration%%' AND clock_timestamp() - xact_start > make_interval(secs => %(long)s)),
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'autovacuum:%%to prevent wraparound%%'),
       (SELECT count(*) FROM pg_replication_slots WHERE wal_status IN ('unreserved', 'lost'))
"""
_EXCLUSIVE = """
SELECT count(DISTINCT l.pid), string_agg(DISTINCT c.relname, ', ')
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation AND c.relkind IN ('r', 'p') AND c.oid >= 16384
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.mode = 'AccessExclusiveLock'
AND coalesce(a.application_name, '') NOT LIKE 'edulink-migration%'
"""
_OLD = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^pg_' AND age(c.relfrozenxid) > %(share)s * current_setting('autovacuum_freeze_max_age')::bigint
ORDER BY age(c.relfrozenxid) DESC LIMIT 5
"""
_ZONELESS = """
SELECT EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = ANY (%s) AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid = 'timestamp'::regtype)
"""
