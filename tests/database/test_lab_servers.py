# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's servers start, survive, stop and complain as they should."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible.module_utils.lab import valkey as vk
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded import server as pg
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres.driver import Endpoint, connect, rows, scalar


def ask(endpoint: Endpoint, statement: str) -> object:
    connection = connect(endpoint, application_name="tests", autocommit=True)
    try:
        found = rows(connection, statement)
        return found[0][0] if found else None
    finally:
        connection.close()


@pytest.fixture
def own_server(server_root: Path) -> Iterator[pg.PostgresServer]:
    account = process.Account.for_servers()
    server = pg.PostgresServer("own", server_root / "own", pg.binaries(server_root, account), "s3cret", pg.THROW_AWAY, account)
    yield server
    pg.stop(server)


@pytest.fixture
def own_valkey(server_root: Path) -> Iterator[vk.ValkeyServer]:
    account = process.Account.for_servers()
    server = vk.ValkeyServer("own", server_root / "ownvk", vk.program(server_root, account), "s3cret", account=account)
    yield server
    vk.stop(server)


def test_a_fresh_database_is_empty_and_decodes_logically(database: Endpoint) -> None:
    assert ask(database, "SHOW wal_level") == "logical"
    assert ask(database, "SHOW listen_addresses") == ""
    assert ask(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0


def test_a_wrong_password_is_refused(database: Endpoint) -> None:
    with pytest.raises(MigrationError, match="the password or the role is wrong; check login_user and login_password"):
        connect(dataclasses.replace(database, password="wrong"), application_name="tests")


def test_a_killed_server_is_started_again_with_its_data(own_server: pg.PostgresServer) -> None:
    assert pg.create(own_server) is True
    assert pg.start(own_server) is True
    assert pg.create(own_server) is False
    assert pg.start(own_server) is False
    ask(own_server.endpoint(), "CREATE TABLE kept AS SELECT 42 AS answer")
    ask(own_server.endpoint(), "CHECKPOINT")
    number = pg.pid(own_server)
    assert number is not None
    os.kill(number, signal.SIGKILL)
    while process.alive(number, str(own_server.data)):
        time.sleep(0.01)
    assert pg.start(own_server) is True
    assert ask(own_server.endpoint(), "SELECT answer FROM kept") == 42
    assert pg.stop(own_server) is True
    assert pg.stop(own_server) is False


def test_a_server_that_cannot_start_says_why(own_server: pg.PostgresServer) -> None:
    pg.create(own_server)
    wrong = dataclasses.replace(own_server, settings={"shared_buffers": "many"})
    with pytest.raises(MigrationError, match=r"own did not start:.*shared_buffers"):
        pg.start(wrong)


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="longer than 107 bytes"):
        pg.create(pg.PostgresServer("long", tmp_path / ("x" * 100), Path("/nowhere"), "s3cret"))


def test_root_copies_programs_that_its_servers_may_not_read(
    server_root: Path, own_server: pg.PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pg._runs
    monkeypatch.setattr(pg, "_runs", lambda program, account: tmp_path in program.parents and real(program, account))
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents:
        if parent.name.startswith(("pytest-", "popen-")):  # one folder more where the tests are shared out to processes
            parent.chmod(0o711)
    copied = pg.binaries(tmp_path, own_server.account)
    assert copied.is_relative_to(tmp_path)
    assert pg.binaries(tmp_path, own_server.account) == copied


def test_the_session_store_keeps_its_data_and_leaves_a_taken_port(own_valkey: vk.ValkeyServer) -> None:
    assert vk.start(own_valkey) is True
    assert vk.start(own_valkey) is False
    first = vk.port(own_valkey)
    with redis.Redis(port=first or 0, password="s3cret") as store:
        store.set("cart", "3 books")
    number = vk.pid(own_valkey)
    assert number is not None
    time.sleep(1.2)  # appendfsync everysec
    process.end(number, str(own_valkey.config), [(signal.SIGKILL, 5)])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((vk.HOST, first or 0))
        taken.listen()
        assert vk.start(own_valkey) is True
    assert vk.port(own_valkey) != first
    with redis.Redis(port=vk.port(own_valkey) or 0, password="s3cret") as store:
        assert store.get("cart") == b"3 books"


def test_a_password_is_in_no_command_line(own_valkey: vk.ValkeyServer, postgres: pg.PostgresServer, valkey: object) -> None:
    vk.start(own_valkey)
    for number, secret in [(vk.pid(own_valkey), own_valkey.password), (pg.pid(postgres), postgres.password)]:
        assert secret not in Path(f"/proc/{number}/cmdline").read_text()
    assert "s3cret" not in repr(own_valkey)


def test_scalar_reads_the_server_as_the_driver_pins_it(database: Endpoint) -> None:
    connection = connect(database, application_name="tests", readonly=True)
    try:
        assert scalar(connection, "SHOW TimeZone") == "UTC"
    finally:
        connection.close()
