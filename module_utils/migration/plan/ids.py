# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compute the UUIDs that replace integer keys.

An id is made, not remembered: the same namespace, entity and key give the same UUID on every machine and in every
run, in SQL, in Python and in any other language that has SHA-256.

    key32   = sha256(utf8(namespace))
    prefix  = sha256(key32 || utf8(entity))                        32 bytes, one constant per entity
    digest  = sha256(prefix || field || field ...)
    field   = int64 big endian                                     for an integer key (8 bytes)
            | int32 big endian length || utf8(text)                for a key of any other type
    id      = digest[0:16] with byte 6 set to 0x80 and byte 8 set to 0x80

Bytes 6 and 8 carry the version 8 and the variant 10 of RFC 9562, section 5.8; the remaining 112 bits are the digest's.
They are set whole, not masked, because one nested set_byte() call costs half of what masking does; the probability
of any collision among 10^9 ids of an entity is about 10^18 / 2^113, or 10^-16. A key that is NULL has the id NULL.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import uuid
from collections import Counter
from collections.abc import Sequence

from ..postgres.quote import literal

_SETTING = "migration.id_"
MINIMUM_SECRET = 32  # characters
MINIMUM_BITS = 90  # by the frequency of its characters; 32 random hex digits have about 115
# The fingerprints of the namespaces that everybody can read in this project: of the example inventories, and of docs/ids.md.
KNOWN = frozenset(("da2bcf7a8b37df57", "e5abb05e9ac1ae40", "997d2c66f2229c9e", "79ddb0b5127ace46"))


def prefix(namespace: str, entity: str) -> bytes:
    """Return the 32-byte constant that starts every digest of `entity`."""
    key = hashlib.sha256(namespace.encode()).digest()
    return hashlib.sha256(key + entity.encode()).digest()


def field(value: int | str) -> bytes:
    """Return one field of a key as it enters the digest."""
    if isinstance(value, int):
        return value.to_bytes(8, "big", signed=True)
    encoded = value.encode()
    return len(encoded).to_bytes(4, "big") + encoded


def compute(entity_prefix: bytes, key: Sequence[int | str]) -> uuid.UUID:
    """Return the UUIDv8 (RFC 9562) of a key under an entity's prefix."""
    digest = bytearray(hashlib.sha256(entity_prefix + b"".join(map(field, key))).digest()[:16])
    digest[6] = digest[8] = 0x80
    return uuid.UUID(bytes=bytes(digest))


def minted(value: str) -> bool:
    """Tell whether a UUID (as text) has the form that compute() gives: bytes 6 and 8 are 0x80."""
    raw = uuid.UUID(value).bytes
    return raw[6] == raw[8] == 0x80


def minted_sql(sql: str) -> str:
    """Return the SQL condition that a uuid, given by its SQL, has that form."""
    return f"(get_byte(uuid_send({sql}), 6) = 128 AND get_byte(uuid_send({sql}), 8) = 128)"


def fingerprint(namespace: str) -> str:
    """Return 16 hex digits that tell namespaces apart without giving one away."""
    key = hashlib.sha256(namespace.encode()).digest()
    return hmac.new(key, b"fingerprint", hashlib.sha256).hexdigest()[:16]


def weakness(namespace: str) -> str | None:
    """Return why a namespace is no secret, or None; the namespace itself is never repeated."""
    if fingerprint(namespace) in KNOWN:
        return "is an example of this project, which everybody can read"
    length = len(namespace)
    if length < MINIMUM_SECRET:
        return f"has {length} characters, {MINIMUM_SECRET} are the least"
    bits = -sum(count * math.log2(count / length) for count in Counter(namespace).values())
    if bits < MINIMUM_BITS or namespace in (namespace + namespace)[1:-1]:
        return "can be guessed: its characters repeat"
    return None


def setting(entity: str) -> str:
    """Return the name of the setting that carries an entity's prefix; it is the same wherever the entity is named.

    A setting's name holds no dots or dashes beyond its prefix, so the entity's name is written as hex.
    """
    return _SETTING + entity.encode().hex()


def settings(namespace: str, entities: Sequence[str]) -> dict[str, str]:
    """Return the startup settings that a connection to the source needs to compute ids of `entities`.

    They travel in the connection's startup packet: neither statement logs nor pg_stat_activity show them.
    """
    return {setting(entity): prefix(namespace, entity).hex() for entity in entities}


def expression(entity: str, fields: Sequence[str]) -> str:
    """Return the SQL expression (bytea, 16 bytes) for an id, given the SQL of its fields as made by the two below.

    The scalar subquery is evaluated once for a statement, not once for a row.
    """
    secret = f"(SELECT decode(current_setting({literal(setting(entity))}), 'hex'))"
    joined = " || ".join([secret, *fields])
    return f"set_byte(set_byte(substring(sha256({joined}) FROM 1 FOR 16), 6, 128), 8, 128)"


def integer_field(sql: str) -> str:
    """Return the SQL of a key field of an integer type."""
    return f"int8send(({sql})::int8)"


def text_field(sql: str) -> str:
    """Return the SQL of a key field of any other type, by its text."""
    encoded = f"convert_to(({sql})::text, 'UTF8')"
    return f"int4send(octet_length({encoded})) || {encoded}"
