# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record, kept in the store beside the sessions, of exactly what the migration wrote there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import MigrationError
from . import cache_layout as layouts
from . import lua
from .cache_layout import Layout
from .service_table import ServiceRows
from .store import Call, Store

PREFIX = "migration:sessions"
PARTS = 1024  # hashes of the record without a cluster
_PER_CALL = 100  # sessions for each run of a script: other clients of the store wait that long
_PER_LOOK, _MOST = 16, 2048  # hashes of the record read at once, at first and at most
_PORTION = 3000  # entries that are wanted at once


class Item(NamedTuple):
    """One session as it should be in the store; `value` is empty when nothing will be written. There are millions: a tuple."""

    session_key: str
    digest: str
    expires: int
    user: str  # 32 hex digits, or nothing
    value: bytes
    row: str = ""  # what the service's own table should have, where it has one


@dataclass(frozen=True)
class Entry:
    """One session that was written: its key and its user's UUID (32 hex digits, or nothing)."""

    session_key: str
    user: str


class Ledger:
    """Write and remove sessions, each together with its entry."""

    def __init__(self, store: Store, layout: Layout, *, prefix: str = PREFIX, rows: ServiceRows | None = None) -> None:
        self.store = store
        self.rows = rows
        self.layout = layout
        self._layout_key = prefix.encode() + b":layout"
        # In a cluster one for each slot, that of its sessions; else fewer, which are read sooner.
        self._slots_each = 1 if store.clustered else layouts.SLOTS // PARTS
        self._hashes = tuple(b"%s:{%s}" % (prefix.encode(), tag) for tag in layouts.tags()[:: self._slots_each])
        self._text = f"{layout.text} in {len(self._hashes)} parts"
        self._key_prefix = layout.key_prefix.encode()

    def begun(self) -> bool:
        """Tell whether sessions were written before; MigrationError when they were written in another layout."""
        (found,) = self.store.each([("GET", self._layout_key)])
        if found is None:
            return False
        if found.decode() != self._text:
            raise MigrationError(
                f"{self.store.options.place}: sessions were written as '{found.decode()}', now session_store_mode, sessions_engine,"
                f" sessions_key_prefix, sessions_key_version and sessions_serializer say '{self._text}'; remove them first with -e sessions_state=absent"
            )
        return True

    def begin(self) -> None:
        """Note the layout, before the first session."""
        self.store.each([("SET", self._layout_key, self._text)])

    def end(self) -> None:
        """Forget the layout, after the last session was removed."""
        self.store.each([("DEL", self._layout_key)])

    def carry(self, items: Sequence[Item], *, write: bool, restore: bool = False) -> bytes:
        """Write what is missing or changed (only tell, without `write`); return a character of scripts.py for each item."""
        entries = [f"{item.digest}:{item.expires}:{item.user}".encode() for item in items]
        values = [item.value if write else b"" for item in items]
        return self._call(lua.CARRY, [item.session_key for item in items], (write, restore), entries, values)

    def remove(self, session_keys: Sequence[str], *, write: bool, forget: bool) -> bytes:
        """Delete sessions that are as they were written, `forget` also the entries of the others; return their characters."""
        if write and self.rows is not None:
            self.rows.delete(session_keys)  # first: a row that is left would bring the session back
        return self._call(lua.REMOVE, session_keys, (write, forget))

    def entries(self) -> Iterator[list[Entry]]:
        """Yield everything recorded in the order of the slots, in portions of a few thousand however much there is."""
        start, width = 0, _PER_LOOK
        while start < len(self._hashes):
            names = self._hashes[start : start + width]
            found: list[Entry] = []
            for answer in self.store.each([("HGETALL", name) for name in names]):
                pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
                found += [Entry(key.decode(), entry.rpartition(b":")[2].decode()) for key, entry in pairs]
            if found:
                yield found
            start += width
            width = max(1, min(width * 2, width * _PORTION // max(1, len(found)), _MOST))

    def owners(self, session_keys: Sequence[str]) -> list[str]:
        """Return the user (32 hex digits) of each session in the record; nothing for those without one."""
        return [entry.rpartition(b":")[2].decode() if entry else "" for entry in self._found(session_keys)]

    def recorded(self, session_keys: Sequence[str]) -> list[bool]:
        """Tell for each session whether it is in the record."""
        return [entry is not None for entry in self._found(session_keys)]

    def _found(self, session_keys: Sequence[str]) -> list[Any]:
        places = [self._hashes[layouts.key_slot(self._key_prefix + key.encode()) // self._slots_each] for key in session_keys]
        return self.store.each([("HGET", place, key) for place, key in zip(places, session_keys, strict=True)])

    def _call(self, script: str, session_keys: Sequence[str], flags: tuple[bool, bool], *columns: Sequence[bytes]) -> bytes:
        """Run a script over sessions, cut into calls whose keys share a slot where there are slots."""
        names = [self._key_prefix + session_key.encode() for session_key in session_keys]
        slots = list(map(layouts.key_slot, names))
        groups: Iterable[Sequence[int]]
        if self.store.clustered:
            by_slot: dict[int, list[int]] = {}
            for index, slot in enumerate(slots):
                by_slot.setdefault(slot, []).append(index)
            groups = by_slot.values()
        else:
            groups = [range(start, min(start + _PER_CALL, len(names))) for start in range(0, len(names), _PER_CALL)]
        head = [b"%d" % len(self._key_prefix), *(b"1" if flag else b"0" for flag in flags)]
        calls, order = [], []
        for group in groups:
            keys: list[bytes] = []
            arguments = list(head)
            for index in group:
                keys += (names[index], self._hashes[slots[index] // self._slots_each])
                arguments += [column[index] for column in columns]
            calls.append(Call(slots[group[0]], script, keys, arguments))
            order.append(group)
        said = bytearray(len(names))
        for group, answer in zip(order, self.store.run(calls), strict=True):
            for index, character in zip(group, answer, strict=True):
                said[index] = character
        return bytes(said)
