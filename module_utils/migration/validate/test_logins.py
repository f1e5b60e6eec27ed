# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that accounts whose passwords are known can still log in, by Django's own hashers, and which hashes there are.

Only this reads password hashes; neither they nor the passwords leave this file. User names go to the server as a setting of the session,
like the namespace: a statement would stand in its log.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..context import Context
from ..plan.accounts import FILE, USERS, AccountTable
from ..plan.model import Target
from ..postgres import driver
from ..postgres.quote import ident

APPLICATION_NAME = "edulink-migration canaries"
NAMES = "migration.test_logins"  # the setting that tells the server the user names
NAMES_SIZE = 3000  # bytes of one setting: the server takes 10,000 bytes when a session begins
UNDECLARED = f"{FILE} in the folder of the mappings names no table of users with a password"
HASHERS = (
    "PBKDF2PasswordHasher",
    "PBKDF2SHA1PasswordHasher",
    "Argon2PasswordHasher",
    "BCryptSHA256PasswordHasher",
    "BCryptPasswordHasher",
    "ScryptPasswordHasher",
    "MD5PasswordHasher",
)
KNOWN = frozenset({"pbkdf2_sha256", "pbkdf2_sha1", "argon2", "bcrypt_sha256", "bcrypt", "scrypt", "md5", "unusable", "empty"})
# Django had hashers for these once.
PAST = ("sha1", "crypt", "unsalted_sha1", "unsalted_md5")
SHARED = 10  # users, from which on a name that nobody knows is one of an algorithm: of fewer it may be part of a password kept as it is
# Hashes by their algorithm: the text before the first '$'. Django writes '!' and forty letters for an unusable password.
_FORMATS = """
SELECT CASE WHEN head = ANY (%(names)s) OR (rows >= %(shared)s AND head ~ '^[a-z][a-z0-9_]{1,19}$') THEN head ELSE 'unknown' END,
       sum(rows)::int8
FROM (
    SELECT CASE WHEN password_hash = '' THEN 'empty' WHEN left(password_hash, 1) = '!' THEN 'unusable' WHEN strpos(password_hash, '$') BETWEEN 2 AND 21
                THEN left(password_hash, strpos(password_hash, '$') - 1) ELSE '?' END AS head, count(*) AS rows
    FROM (SELECT {password} AS password_hash FROM {users}) AS users GROUP BY 1
) AS each GROUP BY 1 ORDER BY 1
"""
# The user names of one session's setting with what is in the table; a name is compared as the type of its column compares (citext).
_HASHES = f"""
SELECT wanted.place::int, users.{{password}}, {{active}}
FROM json_array_elements_text(convert_from(decode(current_setting('{NAMES}'), 'base64'), 'UTF8')::json) WITH ORDINALITY AS wanted (name, place)
JOIN {{users}} AS users ON users.{{username}} = wanted.name::{{type}}
"""
_TYPE = """
SELECT format_type(coalesce(nullif(t.typbasetype, 0), t.oid), -1) FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
WHERE a.attrelid = %s::regclass AND a.attname = %s
"""


@dataclass(frozen=True)
class Canaries:
    """How many canaries can log in, and how many users have each format of hash; `failed` are places in the given list."""

    checked: int
    failed: tuple[tuple[int, str], ...]
    formats: tuple[tuple[str, int], ...] = ()
    unavailable: str = ""
    declared: bool = True

    @property
    def passed(self) -> bool:
        """Tell whether every canary can log in."""
        return not self.failed and not self.unavailable

    @property
    def unknown(self) -> tuple[str, ...]:
        """Return the formats that Django has no hasher for."""
        return tuple(f"{name} ({count})" for name, count in self.formats if name not in KNOWN)

    @property
    def verdict(self) -> str:
        """Return one line."""
        if self.unavailable:
            return self.unavailable
        formats = f"hash formats that Django does not know: {', '.join(self.unknown)}" if self.unknown else "Django knows the format of every password hash"
        canaries = f"{self.checked - len(self.failed)} of {self.checked} canary accounts can log in; " if self.checked else ""
        if not self.declared:
            return f"password hashes: not declared; {UNDECLARED}"
        return canaries + (formats if self.formats else "there are no password hashes")

    @property
    def lines(self) -> tuple[str, ...]:
        """Return a line for each canary that cannot log in, by its place in the list: user names stay out of output."""
        return tuple(f"canary {place}: {why}" for place, why in self.failed) or ((self.unavailable,) if self.unavailable else ())

    def to_dict(self) -> dict[str, Any]:
        """Return what validation.json keeps."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "checked": self.checked,
            "failed": [{"place": place, "why": why} for place, why in self.failed],
            "formats": dict(self.formats),
            "unknown_formats": list(self.unknown),
        }


def check(context: Context, accounts: Sequence[tuple[str, str]]) -> Canaries:
    """Check accounts (user name, password) against the target's password hashes, and count the formats of all; without accounts Django is not needed."""
    hashers = django_hashers() if accounts else None
    if accounts and hashers is None:
        return Canaries(
            len(accounts), (), unavailable="canaries not checked: Django is missing on this runner;"
            " install requirements-runner.txt there, or empty validate_canaries"
        )
    found = context.plan.account(USERS)
    password = found[0].column("password") if found else None
    if found is None or password is None:
        return Canaries(len(accounts), (), unavailable=f"canaries not checked: {UNDECLARED}" if accounts else "", declared=False)
    table, users = found
    failed: list[tuple[int, str]] = []
    for batch in _batches([username for username, _ in accounts]):
        held = _hashes(context, users, table, password, [accounts[place][0] for place in batch])
        for number, place in enumerate(batch, 1):
            why = _refusal(hashers, held.get(number), accounts[place][1])
            if why:
                failed.append((place + 1, why))
    with _reading(context, users.service, {}) as connection:
        counting, names = _formats(users.qualified, password), {"names": sorted({*KNOWN, *PAST}), "shared": SHARED}
        formats = tuple((str(name), int(count)) for name, count in driver.rows(connection, counting, names))
    return Canaries(len(accounts), tuple(failed), formats)


@contextlib.contextmanager
def _reading(context: Context, service: str, settings: dict[str, str]) -> Iterator[driver.Connection]:
    with (
        contextlib.closing(context.connect_target(service, APPLICATION_NAME, readonly=True, settings=settings, autocommit=True)) as connection,
        driver.database_errors(context.targets[service].place, "reading canaries' password hashes"),
    ):
        yield connection


def _packed(names: Sequence[str]) -> str:
    return base64.b64encode(json.dumps(list(names), ensure_ascii=False).encode()).decode()


def _batches(names: Sequence[str]) -> Iterator[list[int]]:
    """Yield the places of as many user names as one setting holds; one that is longer than that comes alone."""
    batch: list[int] = []
    for place in range(len(names)):
        if batch and len(_packed([names[one] for one in [*batch, place]])) > NAMES_SIZE:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _hashes(context: Context, users: Target, table: AccountTable, password: str, names: Sequence[str]) -> dict[int, list[Any]]:
    """Return the hash and whether the user is active, by the name's number from 1; a name that no setting holds is not looked up."""
    packed, username, active = _packed(names), str(table.column("username")), table.column("active")
    if len(packed) > NAMES_SIZE:
        return {}
    with _reading(context, users.service, {NAMES: packed}) as connection:
        select = _HASHES.format(
            users=users.qualified,
            username=ident(username),
            password=ident(password),
            active=f"users.{ident(str(active))}" if active else "true",
            type=driver.scalar(connection, _TYPE, (users.qualified, username)),
        )
        return {place: found for place, *found in reversed(driver.rows(connection, select))}


def _formats(users: str, password: str) -> str:
    return _FORMATS.replace("{users}", users.replace("%", "%%")).replace("{password}", ident(password).replace("%", "%%"))


def django_hashers() -> Any:
    """Return Django's module of hashers, configured to know them all, or None where there is no Django."""
    try:
        from django.conf import settings
        from django.contrib.auth import hashers
    except ImportError:
        return None
    if not settings.configured:
        settings.configure(PASSWORD_HASHERS=[f"django.contrib.auth.hashers.{name}" for name in HASHERS])
    return hashers


def _refusal(hashers: Any, found: Sequence[Any] | None, password: str) -> str:
    """Return why an account could not log in, or ''."""
    if not found:
        return "no such user in the target"
    encoded, active = found
    if not active:
        return "the user is not active"
    if not encoded:
        return "the user has no password hash"
    if not hashers.is_password_usable(encoded):
        return "the user has no usable password"
    try:
        hashers.identify_hasher(encoded)
    except ValueError:
        return "Django does not know the format of the hash"
    try:
        return "" if hashers.check_password(password, encoded) else "the password does not match"
    except Exception as exc:  # a hasher's own library may be missing, or the hash be cut
        return f"the hash could not be checked ({type(exc).__name__})"
