# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stream the live sessions of the monolith into the store and account for every one of them."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import MigrationError
from ..postgres import driver
from ..postgres.quote import qualified
from . import lua
from .key_set import Seen
from .ledger import Ledger
from .pipeline import consume, unindex
from .signature_check import DATA, LIVE, require_genuine
from .store import Store
from .tally import Result, Row, Rules, Size, Tally
from .users import Users
from .workers import Crew, Workers

__all__ = ["Result", "Rules", "carry", "measure", "remove"]

_BYTES_EACH = 420  # key, entry and their overhead in the store, measured; the value comes on top
_GROWTH = 2  # a session decompressed and pickled, against its signed text
_BATCH_BYTES = 16 << 20  # of signed text read at once, where sessions are large
CLOCK_SKEW = 60  # seconds between the clocks of monolith and store


def measure(source: driver.Connection, table: str, place: str) -> Size:
    """Return how many sessions the source has, and their size; MigrationError when it keeps none in the database."""
    with driver.database_errors(place, "counting sessions"):
        if driver.scalar(source, "SELECT to_regclass(%s)", (table,)) is None:
            raise MigrationError(
                f"{place}: there is no table django_session; the monolith keeps its sessions elsewhere (SESSION_ENGINE): leave this phase out"
            )
        ((now, live, expired, size),) = driver.rows(
            source,
            f"SELECT floor(extract(epoch FROM now()))::bigint, count(*) FILTER (WHERE {LIVE}), count(*) FILTER (WHERE NOT ({LIVE})),"
            f" coalesce(sum(octet_length(session_data)) FILTER (WHERE {LIVE}), 0)::bigint FROM {table}",
        )
    return Size(now, live, expired, size)


def check_store(store: Store, size: Size, clock: Callable[[], float], rules: Rules, *, fresh: bool) -> None:
    """Refuse a store that cannot keep sessions to their end: unfit, in another time, too small, or forgetful when it is full.

    `clock` tells the monolith's time in seconds since 1970.
    """
    here = clock()
    rooms = store.rooms()
    need = (size.live * _BYTES_EACH + size.bytes * _GROWTH) // len(rooms) if fresh else 0
    for room in rooms:
        if unfit := room.unfit(indexed=bool(rules.user_index)):
            raise MigrationError(f"session store {room.address}: {'; '.join(unfit)}")
        if room.clock is not None and abs(room.clock - here) > CLOCK_SKEW:
            early = "ahead of" if room.clock > here else "behind"
            raise MigrationError(
                f"session store {room.address}: its clock is {abs(room.clock - here):.0f} s {early} the monolith's, and sessions would end by it;"
                " set both clocks (NTP) and run playbooks/sessions.yml again"
            )
        if room.used is None:
            continue
        if room.maximum and room.policy != "noeviction" and not rules.eviction_allowed:
            raise MigrationError(
                f"session store {room.address}: maxmemory-policy is {room.policy}: when it is full it would log users out;"
                " set it to noeviction, or accept that with sessions_eviction_allowed: true"
            )
        if room.maximum and room.used + need > room.maximum:
            raise MigrationError(
                f"session store {room.address}: the sessions need about {need >> 20} MiB, but only"
                f" {(room.maximum - room.used) >> 20} MiB of maxmemory are free; raise maxmemory"
            )


def carry(
    source: driver.Connection,
    schema: str,
    users: Users,
    ledger: Ledger,
    rules: Rules,
    *,
    write: bool,
    place: str = "source",
    crew: Crew | None = None,
    opening: Callable[[], None] = lambda: None,
) -> Result:
    """Write every live session of the source to the store, or tell what would be written; `source` is used in one snapshot.

    With a `crew` many sessions are decoded and written by `rules.workers` processes. `opening` is called before the first write.
    """
    if min(rules.batch, rules.workers) < 1:
        raise MigrationError("sessions_batch and sessions_workers must be 1 or more; set them so")
    if not 0 <= rules.forged_limit <= 100:
        raise MigrationError("sessions_forged_limit is a share in percent; set it to 0 to 100")
    started = time.monotonic()
    table = qualified(schema, "django_session")
    source.set_session(isolation_level="REPEATABLE READ", readonly=True)
    size = measure(source, table, place)
    begun = ledger.begun()
    check_store(ledger.store, size, lambda: float(driver.scalar(source, "SELECT extract(epoch FROM clock_timestamp())")), rules, fresh=not begun)
    if size.live:
        rules = replace(rules, batch=max(1, min(rules.batch, _BATCH_BYTES * size.live // max(1, size.bytes))))
    if begun and not size.live and rules.ended == "remove" and next(ledger.entries(), None):
        raise MigrationError(
            f"{place}: django_session has no live session, yet the store has carried ones: removing them would log everybody out;"
            " if that is meant use -e sessions_state=absent, else -e sessions_ended=keep"
        )
    require_genuine(source, table, place, ledger, rules, live=size.live, begun=begun)
    if write:
        opening()
        if not begun:
            ledger.begin()
    tally = Tally()
    with Seen(ledger.layout.key_prefix) as seen:
        follow = begun and rules.ended == "remove"
        batches: Iterable[Sequence[Row]] = _batches(source, table, rules.batch, place)
        if follow:
            batches = seen.noting(batches)
        if crew is None or rules.workers < 2 or size.live < rules.batch * rules.workers * 2:
            consume(batches, users, ledger, rules, tally, write=write, begun=begun)
        else:
            with Workers(crew, rules, write=write, begun=begun) as workers:
                for batch in batches:
                    workers.give(batch)
                workers.finish(tally)
        if follow:
            tally.result(size, 0)  # what was not read must not pass for ended
            _sweep(seen, ledger, rules, tally, write=write)
    source.rollback()
    return tally.result(size, time.monotonic() - started)


def remove(ledger: Ledger, *, write: bool = True, user_index: str | None = None) -> Mapping[str, int]:
    """Delete exactly the sessions that were written and are still as they were written, and forget the record.

    The counts: `removed`; `service`, those that the service has changed since and keeps; `gone`, those that ended.
    """
    counts: collections.Counter[bytes] = collections.Counter()
    if not ledger.begun():
        return {"removed": 0, "service": 0, "gone": 0}
    for entries in ledger.entries():
        session_keys = [entry.session_key for entry in entries]
        if user_index and write:  # first: without its entry nobody knows whose set a session is in
            said = ledger.remove(session_keys, write=False, forget=True)
            unindex(ledger, user_index, [(entry.user, entry.session_key) for entry, code in zip(entries, said, strict=True) if code != lua.KEPT[0]])
        said = ledger.remove(session_keys, write=write, forget=True)
        counts.update(bytes([character]) for character in said)
    if write:
        ledger.end()
    return {"removed": counts[lua.REMOVED], "service": counts[lua.KEPT], "gone": counts[lua.GONE]}


def _batches(source: driver.Connection, table: str, size: int, place: str) -> Iterator[list[Row]]:
    """Yield the live sessions through a server-side cursor, so that memory stays flat."""
    with driver.database_errors(place, "reading django_session"), source.cursor(name="sessions") as cursor:
        cursor.execute(
            f"SELECT session_key, {DATA}, floor(extract(epoch FROM least(expire_date, timestamptz '9999-12-31')))::bigint"
            f" FROM {table} WHERE {LIVE}"
        )
        while rows := cursor.fetchmany(size):
            yield rows


def _sweep(seen: Seen, ledger: Ledger, rules: Rules, tally: Tally, *, write: bool) -> None:
    """Remove what was carried and has ended in the monolith since."""
    for entries in ledger.entries():
        ended = [entry for entry in entries if not seen.has(entry.session_key)]
        if not ended:
            continue
        said = ledger.remove([entry.session_key for entry in ended], write=write, forget=False)
        tally.removed += said.count(lua.REMOVED)
        if rules.user_index and write:
            unindex(
                ledger, rules.user_index, [(entry.user, entry.session_key) for entry, code in zip(ended, said, strict=True) if code == lua.REMOVED[0]]
            )
