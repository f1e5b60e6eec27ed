# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session means the same whatever defaults its role and database have, and a pooler in between is refused by name."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import clients, driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.postgres.quote import ident

from tests.conftest import execute
from tests.servers.cells import TWISTED

TRANSACTION_TIMEOUT = {"transaction_timeout": "'300ms'"}  # from PostgreSQL 17 on


@pytest.fixture
def twisted(databases: Callable[..., Endpoint], postgres: PostgresServer) -> Endpoint:
    """Return a database whose defaults, and those of its role, are as unusual as can be."""
    made = databases(role=True)
    for name, value in {**TWISTED, **TRANSACTION_TIMEOUT}.items():
        execute(postgres.endpoint(), *(f"ALTER {kind} {ident(made.dbname)} SET {name} TO {value}" for kind in ("ROLE", "DATABASE")))
    return made


def ask(endpoint: Endpoint, statement: str, **options: object) -> object:
    connection = driver.connect(endpoint, application_name="tests", **options)
    try:
        return driver.scalar(connection, statement)
    finally:
        connection.close()


def test_defaults_of_a_role_or_a_database_change_nothing(database: Endpoint, twisted: Endpoint) -> None:
    pinned = [*driver.PINNED, "client_encoding", "transaction_timeout", "search_path"]
    both = f"SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings WHERE name = ANY ('{{{','.join(pinned)}}}')"
    assert ask(twisted, both) == ask(database, both)


def test_a_session_outlives_the_timeouts_of_its_role(twisted: Endpoint) -> None:
    connection = driver.connect(twisted, application_name="tests")
    driver.rows(connection, "CREATE TABLE kept AS SELECT 1 AS n")
    assert driver.scalar(connection, "SELECT n FROM kept, pg_sleep(0.6)") == 1
    connection.commit()
    connection.close()


def test_a_role_that_reads_only_by_default_is_kept_to_it_where_reading_is_meant(twisted: Endpoint) -> None:
    with pytest.raises(Exception, match="read-only"):
        ask(twisted, "CREATE TABLE made (n integer)", readonly=True)


def test_rows_that_a_policy_hides_are_an_error_not_missing(database: Endpoint, databases: Callable[..., Endpoint]) -> None:
    reader = databases(role=True)
    execute(
        database,
        "CREATE TABLE seen (n integer)",
        "INSERT INTO seen VALUES (1), (2)",
        "ALTER TABLE seen ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY first_one ON seen USING (n = 1)",
        f"GRANT SELECT ON seen TO {ident(reader.user)}",
    )
    with pytest.raises(Exception, match="row-level security"):
        ask(replace(reader, dbname=database.dbname), "SELECT count(*) FROM seen")


@pytest.fixture
def pooler(postgres: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """Return a folder whose socket leads to the server, but loses one startup option, as a pooler that knows only some of them does."""
    folder = process.new_root("edulink-pool-")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / f".s.PGSQL.{postgres.port}"))
    listener.listen()
    thread = threading.Thread(target=serve, args=(listener, postgres.home / f".s.PGSQL.{postgres.port}", request.param))
    thread.start()
    yield str(folder)
    thread.join(10)
    listener.close()
    (folder / f".s.PGSQL.{postgres.port}").unlink()
    folder.rmdir()


def serve(listener: socket.socket, server: Path, dropped: str) -> None:
    """Pass one connection on, without one setting (or any) in the `options` of its first message (PostgreSQL manual, "StartupMessage")."""
    client, _ = listener.accept()
    with client, socket.socket(socket.AF_UNIX) as behind:
        behind.connect(str(server))
        length, protocol = struct.unpack("!II", client.recv(8, socket.MSG_WAITALL))
        words = client.recv(length - 8, socket.MSG_WAITALL).rstrip(b"\0").split(b"\0")
        given = dict(zip(words[::2], words[1::2], strict=True))
        given[b"options"] = re.sub(rf"-c {dropped}=(\\.|\S)*".encode(), b"", given[b"options"])
        pairs = list(given.items())
        text = b"".join(name + b"\0" + value + b"\0" for name, value in pairs) + b"\0"
        behind.sendall(struct.pack("!II", len(text) + 8, protocol) + text)
        back = threading.Thread(target=copy, args=(behind, client))
        back.start()
        copy(client, behind)
        back.join()


def copy(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes on until one side has no more."""
    while data := one.recv(65536):
        other.sendall(data)
    other.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("host", ["/nowhere", "127.0.0.1"])
def test_a_server_that_is_not_running_is_to_be_started_and_one_that_refuses_is_not(database: Endpoint, host: str) -> None:
    with pytest.raises(MigrationError, match=r"; start the server, or correct login_host and login_port in host_vars/test$"):
        driver.connect(replace(database, host=host, port=9), application_name="tests")
    with pytest.raises(MigrationError, match=r"does not exist; check login_\* and ssl_\* in host_vars/test$"):
        driver.connect(replace(database, dbname="nowhere"), application_name="tests")


# One setting of each way to ask: all, a pinned one, one in another unit than PostgreSQL shows, the role, a secret one.
@pytest.mark.parametrize(
    ("pooler", "named"),
    [
        (r"\S+", r"[^)]*IntervalStyle"),
        ("row_security", "row_security"),
        ("lock_timeout", "lock_timeout"),
        ("role", "role"),
        (r"migration\.id_x", "those for the ids"),
    ],
    indirect=["pooler"],
)
def test_a_pooler_that_drops_a_setting_is_refused(database: Endpoint, databases: Callable[..., Endpoint], pooler: str, named: str) -> None:
    settings = {"lock_timeout": "5000", "work_mem": "65536", "migration.id_x": "0a0b"}
    asked = replace(database, session_role=databases(role=True).user)
    driver.connect(asked, application_name="tests", settings=settings).close()
    with pytest.raises(MigrationError, match=rf"did not arrive at the server \({named}\b.*\); a pooler stands in between: name the server itself"):
        driver.connect(replace(asked, host=pooler), application_name="tests", settings=settings)


def test_the_environment_says_nothing_about_a_connection(database: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner's PGSERVICE, PGHOST, ... are somebody else's: of psycopg2 and of the client programs."""
    strange = {"PGSERVICE": "nowhere", "PGHOSTADDR": "192.0.2.1", "PGOPTIONS": "-c geqo=off", "PGTZ": "Asia/Tokyo", "PGSSLCERT": "/x", "PGPASSFILE": "/x"}
    for name, value in strange.items():
        monkeypatch.setenv(name, value)
    with clients.access(replace(database, password=None), "tests") as way:
        assert not {"PGSERVICE", "PGHOSTADDR", "PGTZ", "PGSSLCERT", "PGPASSFILE"} & set(way.env)
        assert "geqo" not in way.env["PGOPTIONS"]
    assert ask(database, "SELECT current_setting('geqo') || ' ' || current_setting('TimeZone')") == "on UTC"
