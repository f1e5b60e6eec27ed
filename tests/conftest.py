# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the project's modules importable, and lend tests real servers."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ansible.module_utils
import ansible.modules
import pytest

PROJECT = Path(__file__).resolve().parent.parent
sys.path.append(str(PROJECT / "tests" / "monolith"))  # for edulink.accounts
ansible.modules.__path__.append(str(PROJECT / "library"))
ansible.module_utils.__path__.append(str(PROJECT / "module_utils"))

# These exist only now that the paths above are known.
from ansible.module_utils.lab import valkey as lab_valkey  # noqa: E402
from ansible.module_utils.migration.embedded import process  # noqa: E402
from ansible.module_utils.migration.embedded import server as lab_postgres  # noqa: E402
from ansible.module_utils.migration.embedded.server import PostgresServer  # noqa: E402
from ansible.module_utils.migration.postgres.driver import Endpoint, connect  # noqa: E402
from ansible.module_utils.migration.postgres.quote import ident, literal  # noqa: E402


@dataclass(frozen=True)
class Valkey:
    """Where the throw-away session store listens."""

    host: str
    port: int
    password: str = field(repr=False)


@pytest.fixture(scope="session")
def server_root() -> Iterator[Path]:
    """A short folder for servers, deleted at the end."""
    root = process.new_root("edulink-test-")
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def postgres(server_root: Path) -> Iterator[PostgresServer]:
    """One throw-away PostgreSQL server; `postgres.endpoint(dbname)` reaches it as superuser."""
    account = process.Account.for_servers()
    server = PostgresServer(
        name="test",
        home=server_root / "pg",
        bin_dir=lab_postgres.binaries(server_root, account),
        password=secrets.token_urlsafe(18),
        settings=lab_postgres.THROW_AWAY,
        account=account,
    )
    lab_postgres.create(server)
    lab_postgres.start(server)
    yield server
    lab_postgres.stop(server)


def execute(endpoint: Endpoint, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    connection = connect(endpoint, application_name="tests", autocommit=True)
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


@pytest.fixture
def databases(postgres: PostgresServer) -> Iterator[Callable[..., Endpoint]]:
    """Return `make(name=None, *, role=False, encoding=None, template="template0")`: a fresh database, reached as superuser or as a role that owns it."""
    made: list[tuple[str, str | None]] = []

    def make(name: str | None = None, *, role: bool = False, encoding: str | None = None, template: str = "template0") -> Endpoint:
        chosen = f"{name or 'test'}_{secrets.token_hex(4)}"
        password = secrets.token_urlsafe(18)
        if role:
            execute(postgres.endpoint(), f"CREATE ROLE {ident(chosen)} LOGIN PASSWORD {literal(password)}")
        owner = f" OWNER {ident(chosen)}" if role else ""
        written = f" ENCODING {literal(encoding)} LOCALE_PROVIDER libc LOCALE 'C'" if encoding else ""
        execute(postgres.endpoint(), f"CREATE DATABASE {ident(chosen)}{owner} TEMPLATE {ident(template)}{written}")
        made.append((chosen, chosen if role else None))
        return postgres.endpoint(chosen, user=chosen, password=password) if role else postgres.endpoint(chosen)

    yield make
    for name, owner in made:
        execute(postgres.endpoint(), f"DROP DATABASE IF EXISTS {ident(name)} WITH (FORCE)")
        if owner:
            execute(postgres.endpoint(), f"DROP ROLE IF EXISTS {ident(owner)}")


@pytest.fixture
def database(databases: Callable[..., Endpoint]) -> Endpoint:
    """Return a fresh, empty database, reached as superuser; it is dropped after the test."""
    return databases()


@pytest.fixture(scope="session")
def valkey(server_root: Path) -> Iterator[Valkey]:
    """One throw-away Redis-compatible server; a test that writes to it uses keys of its own."""
    account = process.Account.for_servers()
    server = lab_valkey.ValkeyServer(
        name="test",
        home=server_root / "vk",
        program=lab_valkey.program(server_root, account),
        password=secrets.token_urlsafe(18),
        account=account,
    )
    lab_valkey.start(server)
    yield Valkey(lab_valkey.HOST, lab_valkey.port(server) or 0, server.password)
    lab_valkey.stop(server)
