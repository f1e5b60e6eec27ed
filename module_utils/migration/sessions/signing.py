# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and make what Django signs: the rows of django_session and the hash that ties a session to a password.

Sources: django/core/signing.py, django/contrib/sessions/backends/base.py and django/contrib/auth/base_user.py of Django
3.0 to 6.1. A payload is decoded only after its signature was found right, and nothing is ever unpickled. A right signature is no promise
of a small session (a kilobyte may unpack to a megabyte), so what is unpacked has a bound, and so has the text that is looked at.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

USER_ID = "_auth_user_id"
USER_BACKEND = "_auth_user_backend"
USER_HASH = "_auth_user_hash"
SESSION_SALT = "django.contrib.sessions.SessionStore"
STAMP = "1"  # the first second of 1970 in base62: no reader of sessions looks at it, and nobody else signs with it
MOST_DECODED = 1 << 20  # bytes of JSON
MOST_TEXT = 2 << 20  # characters of session_data: MOST_DECODED in base64 is a third more
_AUTH_SALT = "django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash"

_TO_URL, _FROM_URL = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")

FORGED = "forged"  # no key that we were given made this signature
UNDECODABLE = "undecodable"  # not the form of a session at all, or a right signature over something that is not one
TOO_LARGE = "too_large"  # more than MOST_DECODED, or its text more than MOST_TEXT; it is not unpacked further
PICKLED = "pickled"  # signed rightly, made by PickleSerializer


class Rejected(Exception):
    """A session that cannot be carried; `reason` is one of the constants above."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def derive(salt: str, secret: str, algorithm: str = "sha256") -> bytes:
    """Return the HMAC key of a salt and a secret (django.utils.crypto.salted_hmac)."""
    return hashlib.new(algorithm, salt.encode() + secret.encode()).digest()


def decoder(secrets: Sequence[str], salt: str = SESSION_SALT) -> Callable[[str | None], dict[str, Any]]:
    """Return the function that checks and decodes a session_data (None: one too large to be read); it raises Rejected."""
    unpack = unpacker(secrets, salt)
    return lambda data: load(unpack(data))


def unpacker(secrets: Sequence[str], salt: str = SESSION_SALT) -> Callable[[str | None], bytes]:
    """Return the function that checks a session_data (None: one too large to be read) and returns its JSON; it raises Rejected."""
    keys = [derive(salt + "signer", secret) for secret in secrets]
    old_keys = [derive(_legacy_salt(salt), secret, "sha1") for secret in secrets]

    def unpack(data: str | None) -> bytes:
        if data is None or len(data) > MOST_TEXT:
            raise Rejected(TOO_LARGE)
        signed, colon, signature = data.encode().rpartition(b":")
        if not colon:
            return _unpack_legacy(data, old_keys)
        for key in keys:
            made = binascii.b2a_base64(hmac.digest(key, signed, "sha256"), newline=False).translate(_TO_URL)
            if hmac.compare_digest(made[:43], signature):  # 32 bytes and one = of padding, which Django leaves out
                break
        else:
            raise Rejected(FORGED)
        payload = signed.rpartition(b":")[0]
        try:
            return _inflate(_unbase64(payload[1:])) if payload[:1] == b"." else _bounded(_unbase64(payload))
        except (binascii.Error, zlib.error, ValueError):
            raise Rejected(UNDECODABLE) from None

    return unpack


def encode(session: Mapping[str, Any], secret: str, *, stamp: str = STAMP, compress: bool = True, salt: str = SESSION_SALT) -> str:
    """Return a session as Django 3.1 and later write it; `stamp` is the time in base62."""
    raw = json.dumps(session, separators=(",", ":")).encode("latin-1")
    squeezed = zlib.compress(raw) if compress else raw
    payload = "." + _base64(squeezed) if compress and len(squeezed) < len(raw) - 1 else _base64(raw)
    signed = f"{payload}:{stamp}"
    return f"{signed}:{_base64(hmac.digest(derive(salt + 'signer', secret), signed.encode(), 'sha256'))}"


def encode_legacy(session: Mapping[str, Any], secret: str, *, salt: str = SESSION_SALT) -> str:
    """Return a session as Django wrote it before 3.1: base64(sha1-hmac:json)."""
    raw = json.dumps(session, separators=(",", ":")).encode("latin-1")
    made = hmac.digest(derive(_legacy_salt(salt), secret, "sha1"), raw, "sha1").hex().encode()
    return base64.b64encode(made + b":" + raw).decode()


def auth_hash(password: str, secret: str, algorithm: str = "sha256") -> str:
    """Return the `_auth_user_hash` of a password string as the database holds it."""
    return hmac.digest(derive(_AUTH_SALT, secret, algorithm), password.encode(), algorithm).hex()


class AuthHashes:
    """Check the hashes that the monolith made, and make the one that the service expects."""

    def __init__(self, secrets: Sequence[str], service_secret: str) -> None:
        self._old = [derive(_AUTH_SALT, secret) for secret in secrets]
        self._older = [derive(_AUTH_SALT, secret, "sha1") for secret in secrets]
        self._new = derive(_AUTH_SALT, service_secret)

    def renew(self, given: object, password: str) -> str | None:
        """Return the hash for the service, or None when the password has changed since the session began."""
        if not isinstance(given, str):
            return None
        encoded, offered = password.encode(), given.encode("utf-8", "surrogatepass")
        keys, algorithm = (self._older, "sha1") if len(given) == 40 else (self._old, "sha256")
        for key in keys:
            if hmac.compare_digest(hmac.digest(key, encoded, algorithm).hex().encode(), offered):
                return hmac.digest(self._new, encoded, "sha256").hex()
        return None


def _legacy_salt(salt: str) -> str:
    """Return what Django before 3.1 signed with: the name of the session engine's class, without a dot before it."""
    package, _, name = salt.rpartition(".")
    return package + name


def _inflate(packed: bytes) -> bytes:
    """Unpack what zlib packed, as far as MOST_DECODED."""
    stream = zlib.decompressobj()
    raw = _bounded(stream.decompress(packed, MOST_DECODED + 1))
    if not stream.eof:
        raise Rejected(UNDECODABLE)
    return raw


def _bounded(raw: bytes) -> bytes:
    if len(raw) > MOST_DECODED:
        raise Rejected(TOO_LARGE)
    return raw


def _unpack_legacy(data: str, keys: Sequence[bytes]) -> bytes:
    try:
        made, colon, raw = base64.b64decode(data, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        raise Rejected(UNDECODABLE) from None
    if not colon:
        raise Rejected(UNDECODABLE)
    if not any(hmac.compare_digest(hmac.digest(key, raw, "sha1").hex().encode(), made) for key in keys):
        raise Rejected(FORGED)
    return _bounded(raw)


def load(raw: bytes) -> dict[str, Any]:
    """Return the session that JSON describes; Rejected where it is none, is nested too deep, or has a number of too many digits."""
    try:
        session = json.loads(raw.decode())
    except (ValueError, RecursionError):
        raise Rejected(PICKLED if raw[:1] in (b"\x80", b"(") else UNDECODABLE) from None
    if not isinstance(session, dict):
        raise Rejected(UNDECODABLE)
    return session


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unbase64(text: bytes) -> bytes:
    return binascii.a2b_base64(text.translate(_FROM_URL) + b"==")
