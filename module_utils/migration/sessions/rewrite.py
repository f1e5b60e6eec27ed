# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a row of the monolith's to a session of the service's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .cache_layout import Layout, digest
from .ledger import Item
from .session_ids import Translator
from .signing import USER_BACKEND, USER_HASH, USER_ID, AuthHashes, Rejected, encode, load, unpacker
from .tally import BACKEND, NO_USER, NOT_MIGRATED, OUTDATED, UNWRITABLE, Row, Rules, Tally
from .users import Users

UNPACKED_BYTES = 4 << 20  # of JSON held at a time, which may be twenty times as much in objects; ordinary sessions never come near


class Rewriter:
    """Turn rows of django_session into items for the store."""

    def __init__(self, users: Users, layout: Layout, rules: Rules, tally: Tally, *, write: bool, rows: bool = False) -> None:
        self._users, self._layout, self._rules, self._tally, self._write = users, layout, rules, tally, write
        self._rows = rows
        self._ids = Translator(rules.ids, users) if rules.ids else None
        self._unpack = unpacker(rules.secrets, rules.salt)
        service = self._service = rules.service_secret_key or rules.secret_key
        self._hashes = AuthHashes(rules.secrets, service)
        self._neutral = layout.engine == "neutral"
        # With one key for both, the hash stays what it is and the service judges it itself.
        self._renew = self._neutral or service != rules.secret_key or bool(rules.secret_key_fallbacks)

    def batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[Item], list[str]]]:
        """Yield what to store and the keys of what is left out: all at once, or in parts where the sessions unpack to much."""
        opened: list[tuple[str, bytes, int]] = []
        dropped: list[str] = []
        held = 0
        for session_key, data, expires in rows:
            try:
                opened.append((session_key, raw := self._unpack(data), expires))
            except Rejected as exc:
                self._tally.leave(exc.reason, session_key)
                dropped.append(session_key)
                continue
            held += len(raw)
            if held > UNPACKED_BYTES:
                yield self._batch(opened, dropped)
                opened, dropped, held = [], [], 0
        if opened or dropped:
            yield self._batch(opened, dropped)

    def _batch(self, opened: Sequence[tuple[str, bytes, int]], dropped: list[str]) -> tuple[list[Item], list[str]]:
        tally, decoded, numbers = self._tally, [], set()
        passwords = self._renew
        for session_key, raw, expires in opened:
            try:
                session = load(raw)
                number = _number(session)
                if number is not None:
                    numbers.add(number)
                    # Django before 3.1 made the hash with SHA-1, which Django 4 no longer takes.
                    passwords = passwords or len(_text(session.get(USER_HASH))) != 64
                decoded.append((session_key, session, expires, number))
            except Rejected as exc:
                tally.leave(exc.reason, session_key)
                dropped.append(session_key)
        if self._ids is not None:
            tally.counts["dropped_keys"] += self._ids.batch([session for _, session, _, _ in decoded])
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
            try:
                value = self._layout.value(session, expires)
                row = encode(session, self._service) if self._rows else ""
            except (ValueError, RecursionError):
                tally.leave(UNWRITABLE, session_key)
                dropped.append(session_key)
                continue
            tally.counts["anonymous" if number is None else "authenticated"] += 1
            items.append(Item(session_key, digest(value), expires, user, value if self._write else b"", row))
        return items, dropped

    def _rewrite(self, session: dict[str, Any], uuid: str, password: str | None) -> str | None:
        """Make a session the service's; return a reason when it cannot be."""
        rules = self._rules
        backend = _text(session.get(USER_BACKEND))
        backend = rules.backends.get(backend, backend)
        self._tally.count_backend(backend)
        if rules.known_backends and backend not in rules.known_backends and not self._neutral:
            return BACKEND
        given = session.get(USER_HASH)
        if self._renew or len(_text(given)) != 64:
            renewed = None if password is None else self._hashes.renew(given, password)
            if renewed is None:
                return OUTDATED
            session[USER_HASH] = renewed
        session[USER_ID] = uuid
        session[USER_BACKEND] = backend
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(session: Mapping[str, Any]) -> int | None:
    """Return the integer id of a session's user, None for an anonymous session."""
    value = session.get(USER_ID)
    if value is None:
        return None
    text = str(value) if isinstance(value, int | str) else ""  # a list may be nested as deep as writing it out fails
    digits = text.removeprefix("-")
    if isinstance(value, bool) or not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise Rejected(NO_USER)
    return int(text)
