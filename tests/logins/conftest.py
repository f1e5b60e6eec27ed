# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A monolith made by real Django, its users carried by the mappings, its sessions by the phase; a real service beside it.

LOGINS_PYTHON is the interpreter whose Django both run with; without it, this one's.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from ansible.module_utils.migration.contract.parse import parse_contract
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan.compiler import compile_plan
from ansible.module_utils.migration.plan.mapping_files import read_mappings
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.quote import ident
from ansible.module_utils.migration.sessions.cache_layout import Layout
from ansible.module_utils.migration.sessions.carry import Result, Rules, carry
from ansible.module_utils.migration.sessions.ledger import Ledger
from ansible.module_utils.migration.sessions.service_table import service_rows
from ansible.module_utils.migration.sessions.store import Address, StoreOptions, open_store
from ansible.module_utils.migration.sessions.users import MigratedUsers

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
SERVICES = ("auth_service", "user_service")
NAMESPACE = "the namespace of the login tests"
PLAN_TIME = "2026-01-02 03:04:05.678"
MONOLITH_SECRET = "the secret of the monolith, long enough"
OLD_BACKEND, BACKEND = "django.contrib.auth.backends.ModelBackend", "accounts.backends.ServiceBackend"
DATABASE = 5


@dataclass(frozen=True)
class Kind:
    """One way to set a service up."""

    name: str
    layout: Layout
    secret: str
    rotated: bool = False  # the monolith has a new key, this one, and keeps the old one as a fallback


CACHED_DB = Kind("cached_db, rotated secret", Layout("cached_db"), "the new secret of monolith and service, long enough", rotated=True)
KINDS = (
    Kind("pickle, same secret", Layout(), MONOLITH_SECRET),
    Kind("json, own secret, prefix", Layout("cache", "svc", 1, "json"), "the secret of the service, long enough too"),
)


@dataclass(frozen=True)
class Answer:
    """What the service answered."""

    status: int
    body: Any
    cookie: str | None


@dataclass(frozen=True)
class Service:
    """A running service, the store behind it and the way to fill it."""

    port: int
    kind: Kind
    redis: redis.Redis
    carry: Callable[[], Result]

    def ask(self, path: str, cookie: str | None = None, **form: str) -> Answer:
        """Ask as a browser does, with a session cookie; a form is posted."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            headers = {"Cookie": f"sessionid={cookie}"} if cookie else {}
            body = None
            if form:
                headers["Content-Type"] = "application/x-www-form-urlencoded"
                body = urllib.parse.urlencode(form)
            link.request("POST" if form else "GET", f"/{path}/", body, headers)
            response = link.getresponse()
            text = response.read()
            found = response.getheader("Set-Cookie") or ""
            given = found.partition("sessionid=")[2].partition(";")[0].strip('"') or None
            return Answer(response.status, json.loads(text) if text.startswith(b"{") else text.decode(), given)
        finally:
            link.close()

    def key(self, session_key: str) -> str:
        """Return the key of a session in the store."""
        return self.kind.layout.key_prefix + session_key


@dataclass(frozen=True)
class Migrated:
    """The three databases after the users were carried."""

    source: driver.Endpoint
    targets: dict[str, driver.Endpoint]
    plan: Plan


def interpreter() -> str:
    """Return the Python that runs the monolith and the service."""
    return os.environ.get("LOGINS_PYTHON", sys.executable)


def run_sql(endpoint: driver.Endpoint, statement: str) -> list[tuple[Any, ...]]:
    """Run SQL in autocommit."""
    with contextlib.closing(driver.connect(endpoint, application_name="tests", autocommit=True)) as connection:
        return driver.rows(connection, statement)


def environment(endpoint: driver.Endpoint) -> dict[str, str]:
    """Return libpq's environment for a database."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PG", "DJANGO", "PYTHON"))},
        "PGHOST": endpoint.host,
        "PGPORT": str(endpoint.port),
        "PGUSER": endpoint.user,
        "PGPASSWORD": endpoint.password or "",
        "PGDATABASE": endpoint.dbname,
        "DJANGO_SECRET_KEY": MONOLITH_SECRET,
    }


@pytest.fixture
def sql() -> Callable[[driver.Endpoint, str], list[tuple[Any, ...]]]:
    """Return run_sql."""
    return run_sql


@pytest.fixture(scope="session")
def migrated(postgres: Any) -> Iterator[Migrated]:
    """A monolith of real Django and the services' tables filled from it by the mappings' projections."""
    names = {name: f"logins_{name}" for name in ("monolith", *SERVICES)}
    for name in names.values():
        run_sql(postgres.endpoint(), f"CREATE DATABASE {ident(name)} TEMPLATE template0")
    source = postgres.endpoint(names["monolith"])
    targets = {service: postgres.endpoint(names[service]) for service in SERVICES}
    for command in (["migrate"], ["fill", "--users=80", "--sessions=80"]):
        subprocess.run(
            [interpreter(), "manage.py", *command], cwd=PROJECT / "tests" / "monolith", env=environment(source), check=True, capture_output=True
        )
    contracts = {service: parse_contract(service, PROJECT / "roles" / "schema" / "files" / service) for service in SERVICES}
    plan = compile_plan(read_mappings(PROJECT / "mappings", SERVICES), contracts, ids.fingerprint(NAMESPACE))
    for service, endpoint in targets.items():
        for path in sorted((PROJECT / "roles" / "schema" / "files" / service).glob("*-tables.sql")):
            run_sql(endpoint, path.read_text(encoding="utf-8"))
        run_sql(endpoint, "CREATE SCHEMA IF NOT EXISTS migration")
        run_sql(endpoint, "CREATE TABLE migration.id_map (entity text, source_key text, id uuid, PRIMARY KEY (entity, source_key))")
        _load(source, endpoint, plan, service)
    yield Migrated(source, targets, plan)
    for name in names.values():
        run_sql(postgres.endpoint(), f"DROP DATABASE {ident(name)} WITH (FORCE)")


def _load(source: driver.Endpoint, target: driver.Endpoint, plan: Plan, service: str) -> None:
    reading = driver.connect(source, application_name="tests", readonly=True, settings=plan.settings(NAMESPACE, PLAN_TIME))
    writing = driver.connect(target, application_name="tests")
    with contextlib.closing(reading), contextlib.closing(writing), reading.cursor() as taken, writing.cursor() as given:
        given.execute("SET session_replication_role = replica")  # the order of the tables does not matter here
        for table in plan.of(service):
            if table.bookkeeping and table.table != "id_map":
                continue  # groups: no session needs them
            for part in table.parts:
                columns = ", ".join(ident(cell.name) for cell in part.cells)
                _pipe(taken, given, part.select("public"), f"{table.qualified} ({columns})")
        writing.commit()


def _pipe(taken: Any, given: Any, query: str, into: str) -> None:
    buffer = io.BytesIO()
    taken.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT binary)", buffer)
    buffer.seek(0)
    given.copy_expert(f"COPY {into} FROM STDIN (FORMAT binary)", buffer)


@contextlib.contextmanager
def serving(kind: Kind, migrated: Migrated, valkey: Any) -> Iterator[Service]:
    """Serve a service of a kind over HTTP by a process of its own."""
    options = StoreOptions((Address(valkey.host, valkey.port),), password=valkey.password, db=DATABASE)

    def carried() -> Result:
        store = open_store(options)
        source = driver.connect(migrated.source, application_name="tests", readonly=True)
        target = driver.connect(migrated.targets["auth_service"], application_name="tests", readonly=True, autocommit=True)
        own = service_rows(migrated.targets["auth_service"], "auth_service.django_session", "tests")
        with contextlib.closing(store), contextlib.closing(source), contextlib.closing(target), own as rows:
            secret, fallbacks = (kind.secret, (MONOLITH_SECRET,)) if kind.rotated else (MONOLITH_SECRET, ())
            rules = Rules(secret, fallbacks, kind.secret, backends={OLD_BACKEND: BACKEND}, known_backends=(BACKEND,))
            ledger = Ledger(store, kind.layout, rows=rows if kind.layout.engine == "cached_db" else None)
            return carry(source, "public", MigratedUsers(target, migrated.plan, NAMESPACE), ledger, rules, write=True)

    settings = {
        **environment(migrated.targets["auth_service"]),
        **{f"DATABASE_{name.upper()}": endpoint.dbname for name, endpoint in migrated.targets.items()},
        "SERVICE_SECRET_KEY": kind.secret,
        "SESSION_ENGINE": f"django.contrib.sessions.backends.{kind.layout.engine}",
        "REDIS_URL": f"redis://:{valkey.password}@{valkey.host}:{valkey.port}/{DATABASE}",
        "CACHE_KEY_PREFIX": kind.layout.prefix,
        "CACHE_SERIALIZER": kind.layout.serializer,
    }
    if kind.layout.engine == "cached_db":
        made = [interpreter(), "-m", "django", "migrate", "--settings=settings", "sessions"]
        subprocess.run(made, cwd=HERE / "service", env=settings, check=True, capture_output=True)
    client = redis.Redis(valkey.host, valkey.port, password=valkey.password, db=DATABASE)
    with subprocess.Popen([interpreter(), "serve.py"], cwd=HERE / "service", env=settings, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Service(int(process.stdout.readline()), kind, client, carried)
        process.terminate()
    client.close()


@pytest.fixture(scope="session", params=KINDS, ids=lambda kind: kind.name)
def running(request: pytest.FixtureRequest, migrated: Migrated, valkey: Any) -> Iterator[Service]:
    """A running service of each kind."""
    with serving(request.param, migrated, valkey) as made:
        yield made


@pytest.fixture(scope="session")
def cached_db(migrated: Migrated, valkey: Any) -> Iterator[Service]:
    """A running service that keeps its sessions in the store and in a table of its own."""
    with serving(CACHED_DB, migrated, valkey) as made:
        yield made


@pytest.fixture
def service(running: Service, migrated: Migrated) -> Service:
    """The service on the day of the migration: sessions just carried, passwords as they were."""
    running.redis.flushdb()
    passwords = run_sql(migrated.source, "SELECT username, password FROM auth_user WHERE id < 100")
    with contextlib.closing(driver.connect(migrated.targets["auth_service"], application_name="tests")) as connection:
        with connection.cursor() as cursor:
            for username, password in passwords:
                cursor.execute(
                    "UPDATE auth_service.users SET password_hash = %s WHERE username = %s AND password_hash <> %s", (password, username, password)
                )
        connection.commit()
    running.carry()
    return running
