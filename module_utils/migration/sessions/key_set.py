# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sessions the monolith still has: on disk, because there may be millions, and as digests, because a key is a cookie.

Digests are put into parts by the cluster slot of their key, the order in which the record in the store is read. So one part
is in memory at a time, and no key goes back to the source in a statement that its log would keep.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

from ..errors import MigrationError
from . import cache_layout
from .tally import Row

PARTS = 1024  # slots are 16384
_WIDTH = 16  # bytes of a digest: among a billion keys two agree with a chance of 1 in 10^20
_BLOCK = 256 * _WIDTH


class Seen:
    """Remember keys, 16 bytes on disk for each; leaving the block deletes them."""

    def __init__(self, key_prefix: str) -> None:
        self._key_prefix = key_prefix.encode()
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (closed on leaving the block)
        self._waiting = [bytearray() for _ in range(PARTS)]
        self._blocks: list[list[int]] = [[] for _ in range(PARTS)]  # where in the file
        self._current = -1
        self._digests: set[bytes] = set()

    def __enter__(self) -> Seen:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Forget everything."""
        self._file.close()

    def noting(self, batches: Iterable[Sequence[Row]]) -> Iterator[Sequence[Row]]:
        """Yield the batches, remembering their keys."""
        for batch in batches:
            for session_key, _, _ in batch:
                self._add(session_key)
            yield batch

    def has(self, session_key: str) -> bool:
        """Tell whether a key was noted; fast while keys come in the order of their slots."""
        part, digest = self._place(session_key)
        if part != self._current:
            self._current, self._digests = part, set(self._read(part))
        return digest in self._digests

    def _add(self, session_key: str) -> None:
        part, digest = self._place(session_key)
        waiting = self._waiting[part]
        waiting += digest
        if len(waiting) == _BLOCK:
            self._blocks[part].append(self._file.tell())
            try:
                written = self._file.write(waiting)
            except OSError:
                written = 0
            if written != _BLOCK:
                room = "is full: the keys of the sessions are noted there, 16 bytes each; make room, or set TMPDIR, and run playbooks/sessions.yml again"
                raise MigrationError(f"{tempfile.gettempdir()} on the runner {room}")
            waiting.clear()

    def _read(self, part: int) -> Iterator[bytes]:
        for block in (*map(self._block, self._blocks[part]), bytes(self._waiting[part])):
            for start in range(0, len(block), _WIDTH):
                yield block[start : start + _WIDTH]

    def _block(self, start: int) -> bytes:
        self._file.seek(start)
        return self._file.read(_BLOCK)

    def _place(self, session_key: str) -> tuple[int, bytes]:
        name = self._key_prefix + session_key.encode()
        return cache_layout.key_slot(name) * PARTS // cache_layout.SLOTS, hashlib.sha256(name).digest()[:_WIDTH]
