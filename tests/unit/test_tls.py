# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing leaves this machine in clear unless the inventory says so: a socket that records what arrives is asked, not the code."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.migration import tls
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.sessions.store import Address, StoreOptions, open_store
from ansible.modules import migration_preflight, migration_sessions, migration_snapshot

FAR = "0.0.0.0"  # leads to this machine, but is not written as this machine
SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # PostgreSQL manual, "SSLRequest": all that may be sent before TLS


class Listener:
    """A server that takes down what it is sent and answers that it has no TLS."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            with contextlib.suppress(ConnectionError), self._socket.accept()[0] as client:
                client.settimeout(10)
                while said := client.recv(65536):
                    if said == b"end":
                        return
                    self.heard.append(said)
                    if said != SSL_REQUEST:
                        break
                    client.sendall(b"N")

    def end(self) -> list[bytes]:
        """Return what was heard until now, after which nothing is listened to."""
        with socket.create_connection(("127.0.0.1", self.port)) as last:
            last.sendall(b"end")
        self._thread.join()
        self._socket.close()
        return self.heard


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    if made._thread.is_alive():
        made.end()


def database(port: int, mode: str | None, host: str = FAR) -> None:
    driver.connect(Endpoint("monolith", host, port, "db", "somebody", "secret", sslmode=mode), application_name="tests").close()


def store(port: int, said: bool | None, host: str = FAR) -> None:
    open_store(StoreOptions((Address(host, port),), password="secret", tls=said)).close()


@pytest.mark.parametrize("mode", [None, "", "allow", "prefer"])
def test_a_database_beyond_this_machine_needs_a_mode_that_says_what_it_does(listener: Listener, mode: str | None) -> None:
    with pytest.raises(MigrationError, match=r"is not this machine.*nothing was sent; set ssl_mode: verify-full and ca_cert .* in host_vars/monolith"):
        database(listener.port, mode)
    assert listener.end() == []


@pytest.mark.parametrize(("mode", "heard"), [("disable", b"somebody"), ("require", SSL_REQUEST), ("verify-full", SSL_REQUEST)])
def test_clear_text_is_spoken_when_it_is_meant_and_else_ends_before_the_first_name(listener: Listener, mode: str, heard: bytes) -> None:
    with pytest.raises(MigrationError, match="cannot connect to"):
        database(listener.port, mode)
    arrived = listener.end()
    assert heard in arrived[0]
    assert (b"somebody" in b"".join(arrived)) == (mode == "disable")


def test_a_session_store_beyond_this_machine_needs_a_word(listener: Listener) -> None:
    with pytest.raises(MigrationError, match=r"session_store_tls is not set, so nothing was sent to it; set session_store_tls: true"):
        store(listener.port, None)
    assert listener.heard == []
    with pytest.raises(MigrationError, match="connection failed"):
        store(listener.port, False)
    assert b"secret" in b"".join(listener.end())


def endpoint(name: str, port: int, host: str) -> dict[str, Any]:
    return {"name": name, "login_host": host, "login_port": port, "login_db": name, "login_user": "somebody", "login_password": "secret"}


STORE = {"mode": "single", "hosts": [{"host": FAR, "port": 1}], "password": "secret"}


@pytest.mark.parametrize(
    ("run", "given"),
    [
        (migration_snapshot.run, {"verify_server": endpoint("proof", 1, FAR)}),
        (migration_preflight.run, {"verify_server": endpoint("proof", 1, FAR), "store": None}),
        (migration_preflight.run, {"verify_server": None, "store": STORE}),
        (migration_sessions.run, {"store": STORE}),
    ],
)
def test_one_refused_connection_keeps_a_phase_from_making_any(listener: Listener, run: Callable[[Any], Any], given: dict[str, Any]) -> None:
    near = [endpoint(name, listener.port, "127.0.0.1") for name in ("monolith", "svc", "migration_control")]
    connections = {"source": near[0], "targets": [near[1]], "control": near[2], "namespace": "x" * 32}
    with pytest.raises(MigrationError, match="is not this machine"):
        run(SimpleNamespace(params={"plan": {}, "connections": connections, **given}, check_mode=False))
    assert listener.end() == []


@pytest.mark.parametrize("host", ["", "/run/postgresql", "@edulink", "localhost", "LOCALHOST", "127.8.9.1", "::1", "0:0:0:0:0:0:0:1", "/a,localhost"])
def test_this_machine_is_known_as_it_is_written(host: str) -> None:
    assert tls.is_local(host)


# The last ones lead to this machine or to another one: nobody can say it who only reads them.
@pytest.mark.parametrize(
    "host", ["db.example.org", "10.0.0.1", "localhost,10.0.0.1", "/run,db", "localhost.example.org", "127.0.0.1.nip.io", "::ffff:127.0.0.1", "127.1", "0.0.0.0"]
)
def test_what_is_not_written_as_this_machine_is_not(host: str) -> None:
    assert not tls.is_local(host)
