# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each server is: release, encoding, collation, time zone, clock, TLS; and what follows from how they differ."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from .. import tls
from ..checks.findings import INFO, STOP, WARN, Finding
from ..errors import MigrationError
from ..postgres import clients, driver
from ..postgres.quote import ident

OLDEST = 140000
CLOCK = 5  # seconds
APPLICATION_NAME = "edulink-migration preflight"
_UTC = ("UTC", "UCT", "GMT", "Greenwich", "Universal", "Zulu", "Etc/UTC", "Etc/UCT", "Etc/GMT", "Etc/Greenwich", "Etc/Universal", "Etc/Zulu", "UTC0", "GMT0")


@dataclass(frozen=True)
class Server:
    """What a connection's server says of itself; `collation` is (provider, locale, recorded version, version of the library now)."""

    name: str
    version: int
    version_text: str
    settings: Mapping[str, str]
    encoding: str
    collation: tuple[str, str, str | None, str | None]
    database: str
    user: str
    standby: bool
    size: int
    clock_ahead: float
    time_zone: str
    tls: str | None

    @property
    def major(self) -> int:
        """Return the major release."""
        return self.version // 10000

    @property
    def minor(self) -> int:
        """Return the minor release."""
        return self.version % 10000

    @property
    def sorts_as(self) -> str:
        """Return the collation in words."""
        return f"{self.collation[1]} ({self.collation[0]})"


_SETTINGS = (
    "server_version", "wal_level", "max_replication_slots", "max_wal_senders", "max_slot_wal_keep_size", "max_connections",
    "autovacuum_freeze_max_age", "hot_standby_feedback", "max_standby_streaming_delay", "max_standby_archive_delay",
)  # fmt: skip
_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}


def describe(connection: driver.Connection, endpoint: driver.Endpoint) -> Server:
    """Return what the server says; the difference of clocks is measured against this runner."""
    # What a database records of its collation has grown from release to release: PostgreSQL 15 and 17 added columns.
    actual = "pg_database_collation_actual_version(d.oid)" if connection.server_version >= 150000 else "NULL"
    with driver.database_errors(endpoint.place, "reading the server's settings"):
        found = dict(driver.rows(connection, "SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", (list(_SETTINGS),)))
        before = time.time()
        clock = driver.scalar(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")
        middle = (before + time.time()) / 2
        row = driver.rows(
            connection,
            "SELECT pg_encoding_to_char(d.encoding), coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),"
            " coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', d.datcollate), to_jsonb(d) ->> 'datcollversion',"
            f" {actual}, d.datname, current_user::text, pg_is_in_recovery(),"
            " CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) ELSE 0 END,"
            " (SELECT version || ', ' || cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl)"
            " FROM pg_database d WHERE d.datname = current_database()",
        )[0]
        with closing(driver.connect(endpoint, application_name=APPLICATION_NAME, readonly=True, autocommit=True, unpinned=("TimeZone",))) as plain:
            zone = driver.scalar(plain, "SHOW TimeZone")
    encoding, provider, locale, recorded, now, database, user, standby, size, tls = row
    return Server(
        name=endpoint.name,
        version=connection.server_version,
        version_text=found.get("server_version", ""),
        settings=found,
        encoding=encoding,
        collation=(_PROVIDERS.get(provider, provider), locale, recorded, now),
        database=database,
        user=user,
        standby=standby,
        size=int(size),
        clock_ahead=clock - middle,
        time_zone=zone,
        tls=tls,
    )


def check_servers(source: Server, targets: Mapping[str, Server], control: Server, *, zoneless: bool) -> list[Finding]:
    """Return what releases, encodings, collations, time zones and clocks say.

    `zoneless`: the source has mapped columns of type timestamp without time zone.
    """
    findings: list[Finding] = []
    every = (source, *targets.values(), control)
    for server in every:
        findings += _alone(server)
    for server in targets.values():
        findings += _against_source(source, server)
    if zoneless and source.time_zone not in _UTC:
        message = f"its time zone is {source.time_zone}, and mapped columns are timestamps without a zone: they are carried as UTC"
        findings.append(Finding(WARN, source.name, "time_zone", message, f"if they are local times, write in the mapping: {_AT_ZONE}"))
    if source.standby:
        findings += _standby(source)
    ahead = max(abs(one.clock_ahead - two.clock_ahead) for one in every for two in every)
    findings.append(Finding(INFO, "clocks", "clock", f"the servers' clocks differ by {ahead:.1f} s at most"))
    return findings


_AT_ZONE = "column: {sql: \"column AT TIME ZONE 'the zone' AT TIME ZONE 'UTC'\"}"


def _alone(server: Server) -> list[Finding]:
    said = f"PostgreSQL {server.version_text}, {server.encoding}, sorts as {server.sorts_as}, time zone {server.time_zone}"
    findings = [Finding(INFO, server.name, "version", said + (", a standby" if server.standby else ""))]
    if server.version < OLDEST:
        findings.append(Finding(STOP, server.name, "version", f"PostgreSQL {server.version_text} is older than 14", "upgrade the server"))
    if abs(server.clock_ahead) > CLOCK:
        message = f"its clock differs by {server.clock_ahead:+.0f} s from this runner's"
        findings.append(Finding(WARN, server.name, "clock", message, "synchronise the clocks (NTP)"))
    _, _, recorded, now = server.collation
    if recorded is not None and now is not None and recorded != now:
        message = f"its collation was made by version {recorded} of the library, which now is {now}: indexes on text may be wrong"
        step = f"REINDEX DATABASE; ALTER DATABASE {ident(server.database)} REFRESH COLLATION VERSION"
        findings.append(Finding(WARN, server.name, "collation", message, step))
    return findings


def _against_source(source: Server, server: Server) -> list[Finding]:
    findings = []
    place = server.name
    if server.major < source.major:
        message = f"PostgreSQL {server.version_text} is older than the source's {source.version_text}"
        findings.append(Finding(WARN, place, "version", message, "prefer the same major release or a newer one"))
    elif server.major == source.major and server.minor < source.minor:
        message = f"PostgreSQL {server.version_text} is an older minor release than the source's {source.version_text}"
        findings.append(Finding(WARN, place, "version", message, "install the newest minor release: it only mends faults"))
    if server.encoding != source.encoding:
        message = f"the database has encoding {server.encoding}, the source {source.encoding}"
        step = "make the database with ENCODING 'UTF8'; texts are checked character by character"
        findings.append(Finding(STOP if server.encoding == "SQL_ASCII" else WARN, place, "encoding", message, step))
    if server.collation[:2] != source.collation[:2]:
        message = f"sorts as {server.sorts_as}, the source as {source.sorts_as}"
        findings.append(Finding(WARN, place, "collation", message, "ORDER BY on text will give another order; equality is the same"))
    if server.time_zone not in _UTC:
        message = f"its time zone is {server.time_zone}: DEFAULT CURRENT_TIMESTAMP in a column without zone will store local times beside carried UTC"
        findings.append(Finding(WARN, place, "time_zone", message, f"ALTER DATABASE {ident(server.database)} SET timezone = 'UTC'"))
    if server.standby:
        findings.append(Finding(STOP, place, "standby", "is a standby, nothing can be written to it", f"point login_host in host_vars/{place} at the primary"))
    return findings


def _standby(source: Server) -> list[Finding]:
    delays = (source.settings.get("max_standby_streaming_delay"), source.settings.get("max_standby_archive_delay"))
    if source.settings.get("hot_standby_feedback") == "on" or "-1" in delays:
        return []
    message = f"a standby that cancels reads after {delays[0]} ms when they are in the way of replay"
    return [Finding(WARN, source.name, "standby", message, "set hot_standby_feedback = on or max_standby_streaming_delay = -1 on it for the night")]


def check_tls(endpoint: driver.Endpoint, used: str | None) -> list[Finding]:
    """Return whether TLS is really in use (`used`: its version and cipher), and whether it knows whom it talks to."""
    if lacking := tls.database_weakness(endpoint.host, endpoint.sslmode):
        return [Finding(WARN, endpoint.name, "tls", lacking[0], f"{lacking[1]} in host_vars/{endpoint.name} or group_vars/databases")]
    if tls.is_local(endpoint.host):
        said = f"encrypted ({used}), a local connection" if used else "not encrypted, and no network between: a local connection"
        return [Finding(INFO, endpoint.name, "tls", said)]
    return [Finding(INFO, endpoint.name, "tls", f"encrypted ({used}), and the server proved its name")]


def check_tools(bin_dir: str | None, servers: Sequence[Server]) -> list[Finding]:
    """Return whether this runner has client tools as new as the newest server."""
    newest = max(servers, key=lambda item: item.version)
    place = f"runner {platform.node()}"
    try:
        chosen = clients.choose(clients.candidates(bin_dir), newest.major, newest.name, bin_dir)
    except MigrationError as exc:
        message, _, step = str(exc).partition("; ")
        return [Finding(STOP, place, "tools", message, step)]
    minor = chosen.version.partition(".")[2]
    if chosen.major == newest.major and minor.isdigit() and int(minor) < newest.minor:
        message = f"pg_dump {chosen.version} is an older minor release than {newest.name}'s PostgreSQL {newest.version_text}"
        return [Finding(WARN, place, "tools", message, f"upgrade postgresql-client-{newest.major} there")]
    return [Finding(INFO, place, "tools", f"pg_dump {chosen.version} for PostgreSQL {newest.version_text}")]

