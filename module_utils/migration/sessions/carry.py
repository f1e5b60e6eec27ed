# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stream the live sessions of the monolith into the store and account for every one of them."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .. import driver
from ..errors import MigrationError
from ..quote import qualified
from . import scripts
from .layout import digest, short
from .ledger import Item, Ledger
from .signing import SESSION_SALT, USER_BACKEND, USER_HASH, USER_ID, AuthHashes, Rejected, decoder
from .store import Store
from .users import Users

OUTDATED = "outdated"  # the password has changed since: the monolith would end this session at its next request
NOT_MIGRATED = "not_migrated"
NO_USER = "no_such_user_id"  # `_auth_user_id` is no integer
BACKEND = "unknown_backend"
NAMED = 20  # short hashes reported for each reason
_LIVE = "expire_date >= date_trunc('second', now()) + interval '1 second'"
_BYTES_EACH = 420  # key, entry and their overhead in the store, measured; the value comes on top
_GROWTH = 2  # a session decompressed and pickled, against its signed text


@dataclass(frozen=True)
class Rules:
    """How sessions are rewritten; the secrets never leave this object."""

    secret_key: str = field(repr=False)
    secret_key_fallbacks: tuple[str, ...] = field(default=(), repr=False)
    service_secret_key: str | None = field(default=None, repr=False)
    salt: str = SESSION_SALT
    backends: Mapping[str, str] = field(default_factory=dict)
    known_backends: tuple[str, ...] = ()
    user_index: str | None = None
    restore: bool = False
    ended: str = "remove"
    eviction_allowed: bool = False
    batch: int = 2000

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return every key that the monolith may have signed with."""
        return (self.secret_key, *self.secret_key_fallbacks)


@dataclass(frozen=True)
class Result:
    """What there was and what became of it; `carried` = written + updated + unchanged + service + ended_in_service."""

    live: int
    expired: int
    anonymous: int
    authenticated: int
    not_migrated: int
    outdated: int
    rejected: Mapping[str, int]
    carried: int
    written: int
    updated: int
    unchanged: int
    service: int
    ended_in_service: int
    removed: int
    indexed: int
    backends: Mapping[str, int]
    examples: Mapping[str, Sequence[str]]
    seconds: float

    @property
    def changed(self) -> bool:
        """Tell whether the store changed, or would."""
        return bool(self.written or self.updated or self.removed or self.indexed)

    @property
    def line(self) -> str:
        """Return an operator's line."""
        rejected = sum(self.rejected.values())
        return (
            f"sessions: {self.live} live ({self.authenticated} of users, {self.anonymous} anonymous) = {self.carried} carried"
            f" + {self.not_migrated} of users not migrated + {self.outdated} outdated + {rejected} rejected; {self.expired} expired."
            f" {self.written} written, {self.updated} updated, {self.unchanged} unchanged, {self.service} changed and"
            f" {self.ended_in_service} ended by the service, {self.removed} removed; {self.seconds:.1f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON can carry them; there is no session key among them."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Size:
    """What the source holds at one moment."""

    now: int
    live: int
    expired: int
    bytes: int


def measure(source: driver.Connection, table: str, place: str) -> Size:
    """Return how many sessions the source has, and their size; MigrationError when it keeps none in the database."""
    with driver.database_errors(place, "counting sessions"):
        if driver.scalar(source, "SELECT to_regclass(%s)", (table,)) is None:
            raise MigrationError(
                f"{place}: there is no table django_session; the monolith keeps its sessions elsewhere (SESSION_ENGINE): leave this phase out"
            )
        ((now, live, expired, size),) = driver.rows(
            source,
            f"SELECT floor(extract(epoch FROM now()))::bigint, count(*) FILTER (WHERE {_LIVE}), count(*) FILTER (WHERE NOT ({_LIVE})),"
            f" coalesce(sum(octet_length(session_data)) FILTER (WHERE {_LIVE}), 0)::bigint FROM {table}",
        )
    return Size(now, live, expired, size)


def check_room(store: Store, size: Size, *, eviction_allowed: bool, fresh: bool) -> None:
    """Refuse a store that is too small for the sessions, or that would throw some away when it is full."""
    rooms = store.rooms()
    need = (size.live * _BYTES_EACH + size.bytes * _GROWTH) // len(rooms) if fresh else 0
    for room in rooms:
        if room.used is None:
            continue
        if room.maximum and room.policy != "noeviction" and not eviction_allowed:
            raise MigrationError(
                f"session store {room.address}: maxmemory-policy is {room.policy}: when it is full it would log users out;"
                " set it to noeviction, or accept that with sessions_eviction_allowed: true"
            )
        if room.maximum and room.used + need > room.maximum:
            raise MigrationError(
                f"session store {room.address}: the sessions need about {need >> 20} MiB, but only"
                f" {(room.maximum - room.used) >> 20} MiB of maxmemory are free; raise maxmemory"
            )


def carry(source: driver.Connection, schema: str, users: Users, ledger: Ledger, rules: Rules, *, write: bool, place: str = "source") -> Result:
    """Write every live session of the source to the store, or tell what would be written; `source` is used in one snapshot."""
    started = time.monotonic()
    table = qualified(schema, "django_session")
    source.set_session(isolation_level="REPEATABLE READ", readonly=True)
    size = measure(source, table, place)
    begun = ledger.begun()
    check_room(ledger.store, size, eviction_allowed=rules.eviction_allowed, fresh=not begun)
    if begun and not size.live and rules.ended == "remove" and next(ledger.entries(), None):
        raise MigrationError(
            f"{place}: django_session has no live session, yet the store has carried ones: removing them would log everybody out;"
            " if that is meant use -e sessions_state=absent, else -e sessions_ended=keep"
        )
    if write and not begun:
        ledger.begin()
    tally = _Tally()
    rewriter = _Rewriter(users, ledger, rules, tally, write=write)
    with ThreadPoolExecutor(1) as writer:  # the store works while the next batch is decoded
        pending: Future[None] | None = None
        for batch in _batches(source, table, rules.batch, place):
            items, dropped = rewriter.batch(batch)
            if pending is not None:
                pending.result()
            pending = writer.submit(_store_batch, ledger, rules, tally, items, dropped if begun else [], write)
        if pending is not None:
            pending.result()
    if begun and rules.ended == "remove":
        _sweep(source, table, ledger, rules, tally, write=write, place=place)
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
        said = ledger.remove([entry.session_key for entry in entries], write=write, forget=True)
        counts.update(bytes([character]) for character in said)
        if user_index and write:
            _unindex(ledger, user_index, [(entry.user, entry.session_key) for entry, code in zip(entries, said, strict=True) if code != scripts.KEPT[0]])
    if write:
        ledger.end()
    return {"removed": counts[scripts.REMOVED], "service": counts[scripts.KEPT], "gone": counts[scripts.GONE]}


class _Tally:
    """Counts of one run; the decoding and the writing thread each add to names of their own."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.codes: collections.Counter[int] = collections.Counter()
        self.rejected: collections.Counter[str] = collections.Counter()
        self.backends: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, list[str]] = {}
        self.removed = 0
        self.indexed = 0

    def leave(self, reason: str, session_key: str) -> None:
        if reason in (OUTDATED, NOT_MIGRATED):
            self.counts[reason] += 1
        else:
            self.rejected[reason] += 1
        named = self.examples.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(short(session_key))

    def result(self, size: Size, seconds: float) -> Result:
        count, code = self.counts, {name: self.codes[value[0]] for name, value in _CODES.items()}
        carried = sum(code.values())
        seen = carried + count[NOT_MIGRATED] + count[OUTDATED] + sum(self.rejected.values())
        if seen != size.live or carried != count["anonymous"] + count["authenticated"]:
            raise MigrationError(f"sessions: {size.live} are live, but {seen} are accounted for; this is a fault of the program, report it")
        return Result(
            live=size.live,
            expired=size.expired,
            anonymous=count["anonymous"],
            authenticated=count["authenticated"],
            not_migrated=count[NOT_MIGRATED],
            outdated=count[OUTDATED],
            rejected=dict(sorted(self.rejected.items())),
            carried=carried,
            **code,
            removed=self.removed,
            indexed=self.indexed,
            backends=dict(sorted(self.backends.items())),
            examples={reason: list(named) for reason, named in sorted(self.examples.items())},
            seconds=round(seconds, 3),
        )


_CODES = {
    "unchanged": scripts.UNCHANGED,
    "written": scripts.WRITTEN,
    "updated": scripts.UPDATED,
    "service": scripts.SERVICE,
    "ended_in_service": scripts.ENDED,
}

_Row = tuple[str, str, int]


class _Rewriter:
    """Turn rows of django_session into items for the store."""

    def __init__(self, users: Users, ledger: Ledger, rules: Rules, tally: _Tally, *, write: bool) -> None:
        self._users, self._ledger, self._rules, self._tally, self._write = users, ledger, rules, tally, write
        self._decode = decoder(rules.secrets, rules.salt)
        service = rules.service_secret_key or rules.secret_key
        self._hashes = AuthHashes(rules.secrets, service)
        self._neutral = ledger.layout.engine == "neutral"
        # With one key for both, the hash stays what it is and the service judges it itself.
        self._renew = self._neutral or service != rules.secret_key or bool(rules.secret_key_fallbacks)

    def batch(self, rows: Sequence[_Row]) -> tuple[list[Item], list[str]]:
        """Return what to store and the keys of what is left out."""
        tally, decoded, dropped, numbers = self._tally, [], [], set()
        passwords = self._renew
        for session_key, data, expires in rows:
            try:
                session = self._decode(data)
                number = _number(session)
                if number is not None:
                    numbers.add(number)
                    # Django before 3.1 made the hash with SHA-1, which Django 4 no longer takes.
                    passwords = passwords or len(str(session.get(USER_HASH, ""))) != 64
                decoded.append((session_key, session, expires, number))
            except Rejected as exc:
                tally.leave(exc.reason, session_key)
                dropped.append(session_key)
        found = self._users.find(numbers, passwords=passwords)
        items = []
        for session_key, session, expires, number in decoded:
            user = ""
            if number is not None:
                known = found.get(number)
                reason = NOT_MIGRATED if known is None else self._rewrite(session, known.uuid, known.password)
                if known is None or reason is not None:
                    tally.leave(reason or NOT_MIGRATED, session_key)
                    dropped.append(session_key)
                    continue
                user = known.uuid.replace("-", "")
            tally.counts["anonymous" if number is None else "authenticated"] += 1
            value = self._ledger.layout.value(session, expires)
            items.append(Item(session_key, digest(value), expires, user, value if self._write else b""))
        return items, dropped

    def _rewrite(self, session: dict[str, Any], uuid: str, password: str | None) -> str | None:
        """Make a session the service's; return a reason when it cannot be."""
        rules = self._rules
        backend = str(session.get(USER_BACKEND, ""))
        backend = rules.backends.get(backend, backend)
        self._tally.backends[backend] += 1
        if rules.known_backends and backend not in rules.known_backends and not self._neutral:
            return BACKEND
        given = session.get(USER_HASH)
        if self._renew or len(str(given or "")) != 64:
            renewed = None if password is None else self._hashes.renew(given, password)
            if renewed is None:
                return OUTDATED
            session[USER_HASH] = renewed
        session[USER_ID] = uuid
        session[USER_BACKEND] = backend
        return None


def _number(session: Mapping[str, Any]) -> int | None:
    """Return the integer id of a session's user, None for an anonymous session."""
    value = session.get(USER_ID)
    if value is None:
        return None
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Rejected(NO_USER)
    return int(text)


def _batches(source: driver.Connection, table: str, size: int, place: str) -> Iterator[list[_Row]]:
    """Yield the live sessions through a server-side cursor, so that memory stays flat."""
    with driver.database_errors(place, "reading django_session"), source.cursor(name="sessions") as cursor:
        cursor.execute(
            "SELECT session_key, session_data, floor(extract(epoch FROM least(expire_date, timestamptz '9999-12-31')))::bigint"
            f" FROM {table} WHERE {_LIVE}"
        )
        while rows := cursor.fetchmany(size):
            yield rows


def _store_batch(ledger: Ledger, rules: Rules, tally: _Tally, items: list[Item], dropped: list[str], write: bool) -> None:
    if items:
        said = ledger.carry(items, write=write, restore=rules.restore)
        tally.codes.update(said)
        if rules.user_index:
            ours = scripts.UNCHANGED + scripts.WRITTEN + scripts.UPDATED
            _index(ledger, rules.user_index, tally, [item for item, code in zip(items, said, strict=True) if item.user and code in ours], write)
    if dropped:
        tally.removed += ledger.remove(dropped, write=write, forget=False).count(scripts.REMOVED)


def _sweep(source: driver.Connection, table: str, ledger: Ledger, rules: Rules, tally: _Tally, *, write: bool, place: str) -> None:
    """Remove what was carried and has ended in the monolith since."""
    for entries in ledger.entries():
        with driver.database_errors(place, "looking for ended sessions"):
            live = {
                key
                for (key,) in driver.rows(
                    source, f"SELECT session_key FROM {table} WHERE session_key = ANY(%s) AND {_LIVE}", ([entry.session_key for entry in entries],)
                )
            }
        ended = [entry for entry in entries if entry.session_key not in live]
        if not ended:
            continue
        said = ledger.remove([entry.session_key for entry in ended], write=write, forget=False)
        tally.removed += said.count(scripts.REMOVED)
        if rules.user_index and write:
            _unindex(
                ledger, rules.user_index, [(entry.user, entry.session_key) for entry, code in zip(ended, said, strict=True) if code == scripts.REMOVED[0]]
            )


def _index_key(prefix: str, user: str) -> bytes:
    return f"{prefix}{user[:8]}-{user[8:12]}-{user[12:16]}-{user[16:20]}-{user[20:]}".encode()


def _index(ledger: Ledger, prefix: str, tally: _Tally, items: Sequence[Item], write: bool) -> None:
    """Add sessions to the sets of their users; a set lasts as long as its longest session."""
    if not write:
        tally.indexed += ledger.store.each([("SISMEMBER", _index_key(prefix, item.user), item.session_key) for item in items]).count(0)
        return
    commands: list[tuple[Any, ...]] = []
    for item in items:
        key = _index_key(prefix, item.user)
        commands += [("SADD", key, item.session_key), ("EXPIREAT", key, item.expires, "NX"), ("EXPIREAT", key, item.expires, "GT")]
    tally.indexed += ledger.store.each(commands)[::3].count(1)


def _unindex(ledger: Ledger, prefix: str, pairs: Sequence[tuple[str, str]]) -> None:
    ledger.store.each([("SREM", _index_key(prefix, user), session_key) for user, session_key in pairs if user])
