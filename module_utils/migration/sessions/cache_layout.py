# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session looks like in the store: its key, its value, and the ledger of what was written.

Django's own Redis cache (django.core.cache.backends.redis, django.contrib.sessions.backends.cache and cached_db) stores
the session as an unsigned dict under `<KEY_PREFIX>:<VERSION>:<cache_key_prefix><session_key>`. The profile `neutral` is for
services that are not written in Django.
"""

from __future__ import annotations

import binascii
import functools
import hashlib
import io
import itertools
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..errors import MigrationError
from .signing import USER_BACKEND, USER_HASH, USER_ID

ENGINES = ("cache", "cached_db", "neutral")
SERIALIZERS = ("pickle", "json")
SLOTS = 16384
_TAG = (b"ab", b"01234567", b"01234567", b"01234567", b"01", b"01234567")  # found by trying: CRC16 is linear, these give each slot once
_PICKLE_PROTOCOL = 4  # every Python since 3.4 reads it


@dataclass(frozen=True)
class Layout:
    """How the service's session engine names and serializes a session."""

    engine: str = "cache"
    prefix: str = ""
    version: int = 1
    serializer: str = "pickle"

    def __post_init__(self) -> None:
        """Refuse what no engine has."""
        for name, value, known in (("engine", self.engine, ENGINES), ("serializer", self.serializer, SERIALIZERS)):
            if value not in known:
                raise MigrationError(f"sessions: no {name} named {value!r}; choose one of {', '.join(known)}")

    @property
    def key_prefix(self) -> str:
        """Return what stands before the session key."""
        if self.engine == "neutral":
            return f"{self.prefix}session:"
        return f"{self.prefix}:{self.version}:django.contrib.sessions.{self.engine}"

    @property
    def text(self) -> str:
        """Return the layout in one line, to tell two layouts apart."""
        return f"{self.key_prefix} {'json' if self.engine == 'neutral' else self.serializer}"

    def value(self, session: Mapping[str, Any], expires: int) -> bytes:
        """Return the stored form of a session that ends at `expires` (seconds since 1970)."""
        if self.engine == "neutral":
            return _json(neutral(session, expires), strict=True)
        return _json(session) if self.serializer == "json" else _pickle(session)


def neutral(session: Mapping[str, Any], expires: int) -> dict[str, Any]:
    """Return a session without Django's names: user_id (a UUID or null), expires_at (RFC 3339, UTC) and data."""
    ends = datetime.fromtimestamp(expires, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    data = {name: value for name, value in session.items() if name not in (USER_ID, USER_BACKEND, USER_HASH)}
    return {"version": 1, "user_id": session.get(USER_ID), "expires_at": ends, "data": data}


def digest(value: bytes) -> str:
    """Return what the ledger keeps of a value: 64 bits that the store can compute too (redis.sha1hex)."""
    return hashlib.sha1(value, usedforsecurity=False).hexdigest()[:16]


def short(session_key: str) -> str:
    """Return the short hash under which a session may be named in reports."""
    return hashlib.sha256(session_key.encode()).hexdigest()[:12]


def slot(key: bytes) -> int:
    """Return the cluster slot of a key without a hash tag (CRC16/XMODEM, Redis cluster specification)."""
    return binascii.crc_hqx(key, 0) % SLOTS


def key_slot(key: bytes) -> int:
    """Return the cluster slot of any key: what stands between its first { and the next } decides, when it is not empty."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            return slot(key[start + 1 : end])
    return slot(key)


@functools.lru_cache(maxsize=1)
def tags() -> tuple[bytes, ...]:
    """Return for each slot the hash tag that lies in it, so that a ledger shares the slot of its sessions."""
    found = {slot(bytes(name)): bytes(name) for name in itertools.product(*_TAG)}
    return tuple(found[index] for index in range(SLOTS))


def _json(value: Mapping[str, Any], *, strict: bool = False) -> bytes:
    """Return JSON; `strict` raises ValueError for NaN and Infinity, which Python reads and nobody else does."""
    return json.dumps(value, separators=(",", ":"), allow_nan=not strict).encode("ascii")


def _pickle(value: Mapping[str, Any]) -> bytes:
    """Pickle without back references: the same session gives the same bytes in every Python."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, _PICKLE_PROTOCOL)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()
