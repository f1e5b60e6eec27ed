# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A monolith's sessions in PostgreSQL and an empty store, for the tests that carry them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.sessions import signing
from ansible.module_utils.migration.sessions.cache_layout import Layout
from ansible.module_utils.migration.sessions.carry import Result, Rules, carry, remove
from ansible.module_utils.migration.sessions.ledger import Ledger
from ansible.module_utils.migration.sessions.service_table import service_rows
from ansible.module_utils.migration.sessions.store import Address, StoreOptions, open_store
from ansible.module_utils.migration.sessions.users import User

SECRET, SERVICE = "the monolith's secret", "the service's secret"
DJANGO = Layout()
BACKEND = "django.contrib.auth.backends.ModelBackend"
UUID = "0192aa11-0000-8000-8000-00000000000{}"
PASSWORD = "pbkdf2_sha256$1$salt${}"
TABLE = "CREATE TABLE django_session (session_key varchar(40) PRIMARY KEY, session_data text NOT NULL, expire_date timestamptz NOT NULL)"


class KnownUsers:
    """Users 1 to 5 are in the target."""

    def find(self, numbers: Any, *, passwords: bool) -> Mapping[int, User]:
        return {n: User(UUID.format(n), PASSWORD.format(n) if passwords else None) for n in numbers if 1 <= n <= 5}

    def known(self, entity: str, keys: Any) -> Mapping[str, str]:
        return {key: f"{entity} {key}" for key in keys if 1 <= int(key) <= 5}


@dataclass
class World:
    """A monolith's sessions and an empty store."""

    source: driver.Endpoint
    options: StoreOptions
    redis: redis.Redis

    def execute(self, statement: str, *arguments: Any) -> None:
        connection = driver.connect(self.source, application_name="tests", autocommit=True)
        with connection.cursor() as cursor:
            cursor.execute(statement, arguments)
        connection.close()

    def add(self, name: str, session: Mapping[str, Any], *, secret: str = SECRET, seconds: float = 3600, data: str | None = None) -> None:
        self.execute(
            "INSERT INTO django_session VALUES (%s, %s, now() + %s * interval '1 second')"
            " ON CONFLICT (session_key) DO UPDATE SET session_data = excluded.session_data, expire_date = excluded.expire_date",
            name,
            signing.encode(session, secret) if data is None else data,
            seconds,
        )

    def carry(self, *, write: bool = True, layout: Layout = DJANGO, table: str = "no_such_table", **rules: Any) -> Result:
        @contextlib.contextmanager
        def crew() -> Iterator[tuple[KnownUsers, Ledger]]:
            with contextlib.closing(open_store(self.options)) as store, service_rows(self.source, table, "tests") as rows:
                yield KnownUsers(), Ledger(store, layout, rows=rows)

        with contextlib.closing(driver.connect(self.source, application_name="tests", readonly=True)) as source, crew() as (users, ledger):
            return carry(source, "public", users, ledger, Rules(SECRET, **rules), write=write, crew=crew)

    def remove(self, layout: Layout = DJANGO, table: str = "no_such_table", **options: Any) -> Mapping[str, int]:
        with contextlib.closing(open_store(self.options)) as store, service_rows(self.source, table, "tests") as rows:
            return remove(Ledger(store, layout, rows=rows), **options)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(driver.connect(self.source, application_name="tests", autocommit=True)) as connection:
            return driver.rows(connection, statement)

    def key(self, name: str) -> str:
        return f":1:django.contrib.sessions.cache{name}"

    def dump(self) -> dict[bytes, Any]:
        return {key: (self.redis.dump(key), self.redis.pttl(key) < 0) for key in self.redis.keys("*")}


def logged_in(number: int | str, secret: str = SECRET, **more: Any) -> dict[str, Any]:
    known = PASSWORD.format(number)
    return {"_auth_user_id": str(number), "_auth_user_backend": BACKEND, "_auth_user_hash": signing.auth_hash(known, secret), **more}


@contextlib.contextmanager
def sessions_world(databases: Callable[..., driver.Endpoint], valkey: Any) -> Iterator[World]:
    """Make an empty django_session and empty the store's database."""
    with contextlib.closing(redis.Redis(valkey.host, valkey.port, password=valkey.password, db=7)) as client:
        client.flushdb()
        made = World(databases(), StoreOptions((Address(valkey.host, valkey.port),), password=valkey.password, db=7), client)
        made.execute(TABLE)
        yield made
