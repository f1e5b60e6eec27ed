# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked for, and what became of every session."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import MigrationError
from . import lua
from .cache_layout import short
from .signing import SESSION_SALT

OUTDATED = "outdated"  # the password has changed since: the monolith would end this session at its next request
NOT_MIGRATED = "not_migrated"
NO_USER = "no_such_user_id"  # `_auth_user_id` is no integer
BACKEND = "unknown_backend"
UNWRITABLE = "unwritable"  # nested deeper than a serializer goes, or a number that neutral JSON does not have (NaN, Infinity)
BACKENDS, BACKEND_LENGTH, OTHERS = 100, 200, "(others)"  # named with their counts, each up to so many characters; sessions may say anything
NAMED = 20  # short hashes reported for each reason

Row = tuple[str, str | None, int]  # session_key, session_data (None: too large to be read), the second of its end

_CODES = {
    "unchanged": lua.UNCHANGED,
    "written": lua.WRITTEN,
    "updated": lua.UPDATED,
    "service": lua.SERVICE,
    "ended_in_service": lua.ENDED,
}


@dataclass(frozen=True)
class Rules:
    """How sessions are rewritten; the secrets never leave this object."""

    secret_key: str = field(repr=False)
    secret_key_fallbacks: tuple[str, ...] = field(default=(), repr=False)
    service_secret_key: str | None = field(default=None, repr=False)
    salt: str = SESSION_SALT
    backends: Mapping[str, str] = field(default_factory=dict)
    known_backends: tuple[str, ...] = ()
    ids: Mapping[str, str] = field(default_factory=dict)  # keys of a session and the entities whose ids they hold
    user_index: str | None = None
    restore: bool = False
    ended: str = "remove"
    eviction_allowed: bool = False
    forged_limit: int = 50  # percent; more forged than that and the key is taken for a wrong one
    batch: int = 2000
    workers: int = 2

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
    service_rows: int
    backends: Mapping[str, int]
    examples: Mapping[str, Sequence[str]]
    seconds: float
    dropped_keys: int = 0

    @property
    def changed(self) -> bool:
        """Tell whether the store changed, or would."""
        return bool(self.written or self.updated or self.removed or self.indexed or self.service_rows)

    @property
    def remark(self) -> str:
        """Return what the report says beside the phase."""
        rejected = sum(self.rejected.values())
        return (
            f"{self.carried:,} of {self.live:,} live sessions carried, {self.authenticated:,} of users; left behind: {self.not_migrated:,} of users that"
            f" the service does not have, {self.outdated:,} outdated, {rejected:,} rejected"
        )

    def line(self, *, wrote: bool) -> str:
        """Return an operator's line; without `wrote` it tells what would be done."""
        rejected = sum(self.rejected.values())
        to = "" if wrote else "to be "
        dropped = f" {self.dropped_keys} keys left out of them, whose ids the service does not have;" if self.dropped_keys else ""
        return (
            f"sessions: {self.live} live ({self.authenticated} of users, {self.anonymous} anonymous) = {self.carried} carried"
            f" + {self.not_migrated} of users that the service does not have + {self.outdated} outdated + {rejected} rejected; {self.expired} expired."
            f" {self.written} {to}written, {self.updated} {to}updated, {self.unchanged} unchanged, {self.service} changed and"
            f" {self.ended_in_service} ended by the service, {self.removed} {to}removed;{dropped} {self.seconds:.1f} s"
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


class Tally:
    """Counts of one run; the decoding and the writing thread each add to names of their own."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.codes: collections.Counter[int] = collections.Counter()
        self.rejected: collections.Counter[str] = collections.Counter()
        self.backends: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, list[str]] = {}
        self.removed = 0
        self.indexed = 0
        self.service_rows = 0

    def leave(self, reason: str, session_key: str) -> None:
        """Count a session that is not carried."""
        if reason in (OUTDATED, NOT_MIGRATED):
            self.counts[reason] += 1
        else:
            self.rejected[reason] += 1
        named = self.examples.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(short(session_key))

    def count_backend(self, backend: str) -> None:
        """Count a session's backend."""
        name = backend[:BACKEND_LENGTH]
        self.backends[name if name in self.backends or len(self.backends) < BACKENDS else OTHERS] += 1

    def add(self, other: Tally) -> None:
        """Add what another process counted."""
        self.codes.update(other.codes)
        for mine, theirs in ((self.counts, other.counts), (self.rejected, other.rejected), (self.backends, other.backends)):
            mine.update(theirs)
        for reason, named in other.examples.items():
            self.examples[reason] = (self.examples.get(reason, []) + named)[:NAMED]
        self.removed += other.removed
        self.indexed += other.indexed
        self.service_rows += other.service_rows

    def result(self, size: Size, seconds: float) -> Result:
        """Return the sum; MigrationError when a session is unaccounted for."""
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
            service_rows=self.service_rows,
            backends=dict(sorted(self.backends.items())),
            examples={reason: list(named) for reason, named in sorted(self.examples.items())},
            seconds=round(seconds, 3),
            dropped_keys=count["dropped_keys"],
        )
