# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store as users have it: a cluster, a Sentinel, TLS, an ACL user; and what it says when it cannot be used."""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from ansible.module_utils.lab import valkey as lab_valkey
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.sessions.cache_layout import Layout, digest
from ansible.module_utils.migration.sessions.carry import remove
from ansible.module_utils.migration.sessions.ledger import Item, Ledger
from ansible.module_utils.migration.sessions.store import Address, StoreOptions, open_store

HOST = "127.0.0.1"
PASSWORD = secrets.token_urlsafe(12)
Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path, server_root: Path) -> Iterator[Start]:
    """Return `start(*configuration lines, sentinel=False)`: a server in a process of its own; its port."""
    program = lab_valkey.program(server_root, process.Account.for_servers())
    children: list[subprocess.Popen[bytes]] = []

    def begin(*lines: str, sentinel: bool = False) -> int:
        port = free_port()
        home = tmp_path / str(port)
        home.mkdir()
        config = home / "conf"
        persistence = [] if sentinel else ['save ""']
        config.write_text("\n".join([f"port {port}", f"bind {HOST}", f"dir {home}", *persistence, *lines, ""]))
        with (home / "log").open("wb") as log:
            children.append(subprocess.Popen([program, str(config), *(["--sentinel"] if sentinel else [])], stdout=log, stderr=log))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
                return port
            time.sleep(0.02)
        raise AssertionError((home / "log").read_text())

    yield begin
    for child in children:
        child.kill()
        child.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def items(count: int, value: bytes = b"value") -> list[Item]:
    ends = int(time.time()) + 3600
    return [Item(f"{number:032x}", digest(value + b"%d" % number), ends, "", value + b"%d" % number) for number in range(count)]


def write_and_take_back(options: StoreOptions, count: int = 400) -> None:
    """Write sessions, find them unchanged, and remove them."""
    with contextlib.closing(open_store(options)) as store:
        ledger = Ledger(store, Layout())
        some = items(count)
        assert not ledger.begun()
        ledger.begin()
        assert ledger.carry(some, write=True) == b"1" * count
        assert ledger.carry(some, write=True) == b"0" * count
        assert store.client.get(Layout().key_prefix + some[7].session_key) == b"value7"
        assert sum(map(len, ledger.entries())) == count
        assert remove(ledger)["removed"] == count
        assert not ledger.begun()


def cluster(start: Start) -> tuple[list[int], list[redis.Redis]]:
    """Start three nodes that share the slots; return their ports and clients."""
    lines = ("cluster-enabled yes", "cluster-config-file nodes.conf", f"requirepass {PASSWORD}", f"primaryauth {PASSWORD}")
    ports = [start(*lines, f"cluster-port {free_port()}") for _ in range(3)]
    clients = [redis.Redis(HOST, port, password=PASSWORD) for port in ports]
    for index, client in enumerate(clients):
        client.execute_command("CLUSTER ADDSLOTSRANGE", 16384 * index // 3, 16384 * (index + 1) // 3 - 1)
        client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
    for client, port in zip(clients[1:], ports[1:], strict=True):
        bus = int(client.config_get("cluster-port")["cluster-port"])
        clients[0].execute_command("CLUSTER MEET", HOST, port, bus)
    deadline = time.monotonic() + 20
    while not all(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok" for client in clients):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return ports, clients


def test_a_cluster_holds_sessions_on_every_node(start: Start) -> None:
    ports, clients = cluster(start)
    options = StoreOptions((Address(HOST, ports[1]),), mode="cluster", password=PASSWORD)
    with contextlib.closing(open_store(options)) as store:
        Ledger(store, Layout()).carry(items(300), write=True)
        assert len(store.rooms()) == 3
    assert all(client.dbsize() > 100 for client in clients)
    for client in clients:
        client.flushdb()
    write_and_take_back(options)
    assert [client.dbsize() for client in clients] == [0, 0, 0]
    with pytest.raises(MigrationError, match="database 0 only"):
        open_store(StoreOptions((Address(HOST, ports[0]),), mode="cluster", password=PASSWORD, db=1))
    for client in clients:
        client.close()


def test_a_sentinel_leads_to_the_primary(start: Start) -> None:
    primary = start(f"requirepass {PASSWORD}")
    lines = (f"sentinel monitor store {HOST} {primary} 1", f"sentinel auth-pass store {PASSWORD}", "requirepass watch")
    sentinels = tuple(Address(HOST, start(*lines, sentinel=True)) for _ in range(2))
    options = StoreOptions(sentinels, mode="sentinel", password=PASSWORD, sentinel_name="store", sentinel_password="watch", db=3)
    write_and_take_back(options)
    with pytest.raises(MigrationError, match="session store"):
        open_store(StoreOptions(sentinels, mode="sentinel", password=PASSWORD, sentinel_name="other", sentinel_password="watch"))


def test_servers_that_a_local_one_names_are_not_spoken_to_in_clear_unasked(start: Start) -> None:
    """The first address is this machine's; the password would go to those that sentinels and nodes tell of."""
    sentinel = start("sentinel monitor store 192.0.2.1 6379 1", sentinel=True)
    options = StoreOptions((Address(HOST, sentinel),), mode="sentinel", password=PASSWORD, sentinel_name="store")
    with pytest.raises(MigrationError, match=r"192\.0\.2\.1 is not this machine and session_store_tls is not set"):
        open_store(options)
    node = start("cluster-enabled yes", "cluster-announce-ip 192.0.2.1")
    with contextlib.closing(redis.Redis(HOST, node)) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
    with pytest.raises(MigrationError, match=r"192\.0\.2\.1 is not this machine and session_store_tls is not set"):
        open_store(StoreOptions((Address(HOST, node),), mode="cluster"))


def test_a_new_primary_takes_over_and_the_next_run_completes(start: Start) -> None:
    lines = (f"requirepass {PASSWORD}", f"primaryauth {PASSWORD}")
    primary = start(*lines)
    replica = redis.Redis(HOST, start(*lines, f"replicaof {HOST} {primary}"), password=PASSWORD)
    watch = ("down-after-milliseconds store 300", "failover-timeout store 3000", f"auth-pass store {PASSWORD}")
    sentinel = start(f"sentinel monitor store {HOST} {primary} 1", *(f"sentinel {line}" for line in watch), sentinel=True)
    options = StoreOptions((Address(HOST, sentinel),), mode="sentinel", password=PASSWORD, sentinel_name="store")
    some = items(20_000)
    wait_until(lambda: replica.info("replication")["master_link_status"] == "up")
    wait_until(lambda: redis.Redis(HOST, sentinel).sentinel_slaves("store"))
    with contextlib.closing(open_store(options)) as store, redis.Redis(HOST, primary, password=PASSWORD) as dying:
        thread = threading.Thread(target=lambda: (wait_until(lambda: replica.dbsize() > 2000), dying.shutdown(nosave=True, now=True, force=True)))
        thread.start()
        with pytest.raises(MigrationError, match=r"run playbooks/sessions\.yml again"):
            write_all(Ledger(store, Layout()), some)
        thread.join()
    wait_until(lambda: replica.info("replication")["role"] == "master")
    wait_until(lambda: redis.Redis(HOST, sentinel).sentinel_get_master_addr_by_name("store")[1] != primary)
    with contextlib.closing(open_store(options)) as again:
        ledger = Ledger(again, Layout())
        ledger.begin()
        assert set(ledger.carry(some, write=True)) == set(b"01")
        assert ledger.carry(some, write=True) == b"0" * len(some)
        assert remove(ledger)["removed"] == len(some)
    assert replica.dbsize() == 0
    replica.close()


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for a condition; what is not there yet counts as not met."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.exceptions.RedisError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_acl_user_needs_no_more_than_is_documented(start: Start) -> None:
    documented = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text(encoding="utf-8")
    rights = next(line for line in documented.splitlines() if line.startswith("ACL SETUSER")).partition(" on ")[2].replace(">PASSWORD", f">{PASSWORD}")
    port = start(f"user carrier on {rights}", "user default off")
    write_and_take_back(StoreOptions((Address(HOST, port),), username="carrier", password=PASSWORD))
    index = "~of:* +sadd +srem +sismember +expireat"  # as documented for an index
    both = start(f"user carrier on {rights} {index}", "user default off")
    with contextlib.closing(open_store(StoreOptions((Address(HOST, both),), username="carrier", password=PASSWORD))) as store:
        assert store.each([("SADD", b"of:user", "key"), ("EXPIREAT", b"of:user", int(time.time()) + 9, "NX"), ("SISMEMBER", b"of:user", "key")]) == [1, 1, 1]
        assert store.each([("SREM", b"of:user", "key")]) == [1]
    with pytest.raises(MigrationError, match="refuses our login"):
        open_store(StoreOptions((Address(HOST, port),), username="carrier", password="wrong"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a certificate for localhost and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:localhost")


def make_certificate(folder: Path, names: str) -> tuple[Path, Path]:
    """Make a certificate for names; return it and its key."""
    paths = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", f"subjectAltName={names}", "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


def test_tls_is_verified(start: Start, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    port = tls_front(start(f"requirepass {PASSWORD}"), certificate)
    good = StoreOptions((Address("localhost", port),), password=PASSWORD, tls=True, tls_ca=str(certificate[0]))
    write_and_take_back(good, 50)
    with pytest.raises(MigrationError, match=r"(?i)certificate"):
        open_store(StoreOptions((Address("localhost", port),), password=PASSWORD, tls=True))
    with pytest.raises(MigrationError, match=r"(?i)certificate"):
        open_store(StoreOptions((Address(HOST, port),), password=PASSWORD, tls=True, tls_ca=str(certificate[0])))


def test_a_client_certificate_is_shown(start: Start, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    own = make_certificate(tmp_path, "DNS:carrier")
    port = tls_front(start(f"requirepass {PASSWORD}"), certificate, client=own[0])
    options = {"password": PASSWORD, "tls": True, "tls_ca": str(certificate[0])}
    write_and_take_back(StoreOptions((Address("localhost", port),), tls_cert=str(own[0]), tls_key=str(own[1]), **options), 50)
    with pytest.raises(MigrationError, match="connection failed"):
        open_store(StoreOptions((Address("localhost", port),), **options))


def test_tls_reaches_every_node_of_a_cluster(start: Start, tmp_path: Path) -> None:
    ports, clients = cluster(start)
    certificate = make_certificate(tmp_path, f"IP:{HOST}")
    fronts = [tls_front(port, certificate) for port in ports]
    for client, front in zip(clients, fronts, strict=True):
        client.config_set("cluster-announce-port", front)
    told = redis.Redis(HOST, ports[0], password=PASSWORD)
    wait_until(lambda: {int(node[2]) for found in told.execute_command("CLUSTER SLOTS") for node in [(0, *found[2][:2])]} == set(fronts))
    options = StoreOptions((Address(HOST, fronts[0]),), mode="cluster", password=PASSWORD, tls=True, tls_ca=str(certificate[0]))
    write_and_take_back(options)
    with pytest.raises(MigrationError, match=r"(?i)certificate"):
        open_store(StoreOptions((Address(HOST, fronts[0]),), mode="cluster", password=PASSWORD, tls=True))
    told.close()
    for client in clients:
        client.close()


def test_tls_reaches_the_sentinel_and_the_primary(start: Start, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, f"IP:{HOST}")
    primary = tls_front(start(f"requirepass {PASSWORD}"), certificate)
    watching = start(f"sentinel monitor store {HOST} {primary} 1", f"sentinel auth-pass store {PASSWORD}", sentinel=True)
    sentinels = (Address(HOST, tls_front(watching, certificate)),)
    options = StoreOptions(sentinels, mode="sentinel", password=PASSWORD, sentinel_name="store", tls=True, tls_ca=str(certificate[0]))
    write_and_take_back(options)
    with pytest.raises(MigrationError, match="session store"):
        open_store(StoreOptions(sentinels, mode="sentinel", password=PASSWORD, sentinel_name="store", tls=True))


def tls_front(port: int, certificate: tuple[Path, Path], client: Path | None = None) -> int:
    """Put TLS in front of a server, because the wheel's is built without; return the port. Servers among themselves speak to it without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if client is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client)
    listener = socket.create_server((HOST, 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.close()

    def serve() -> None:
        while True:
            plain, _ = listener.accept()
            threading.Thread(target=connect, args=(plain,), daemon=True).start()

    def connect(plain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            hello = plain.recv(1, socket.MSG_PEEK) == b"\x16"  # a handshake of TLS; no command begins so
            inner = context.wrap_socket(plain, server_side=True) if hello else plain
            outer = socket.create_connection((HOST, port))
            for pair in ((inner, outer), (outer, inner)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def write_all(ledger: Ledger, some: list[Item]) -> None:
    for begin in range(0, len(some), 500):
        ledger.carry(some[begin : begin + 500], write=True)


def test_a_lost_connection_is_told_and_the_next_run_completes(start: Start) -> None:
    port = start(f"requirepass {PASSWORD}", "appendonly yes")
    options = StoreOptions((Address(HOST, port),), password=PASSWORD)
    some = items(30_000)
    store = open_store(options)
    ledger = Ledger(store, Layout())
    ledger.begin()
    killer = redis.Redis(HOST, port, password=PASSWORD)

    def cut() -> None:
        while killer.dbsize() < 3000:
            time.sleep(0.005)
        while not told.wait(0.001):  # a connection that is cut between two commands is only made again
            killer.client_kill_filter(_type="normal", skipme=True)

    told = threading.Event()
    thread = threading.Thread(target=cut)
    thread.start()
    try:
        with pytest.raises(MigrationError, match=r"run playbooks/sessions\.yml again"):
            write_all(ledger, some)
    finally:
        told.set()
        thread.join()
    with contextlib.closing(open_store(options)) as again:
        said = Ledger(again, Layout()).carry(some, write=True)
        assert set(said) == set(b"01")
        assert Ledger(again, Layout()).carry(some, write=True) == b"0" * len(some)
        assert remove(Ledger(again, Layout()))["removed"] == len(some)
    assert killer.dbsize() == 0
    killer.close()


def test_a_full_store_is_told(start: Start) -> None:
    port = start("maxmemory 8mb", "maxmemory-policy noeviction")
    with contextlib.closing(open_store(StoreOptions((Address(HOST, port),)))) as store, pytest.raises(MigrationError, match="raise maxmemory"):
        Ledger(store, Layout()).carry(items(3000, b"x" * 5000), write=True)


def test_a_store_that_is_not_there_is_told_in_one_line() -> None:
    with pytest.raises(MigrationError) as caught:
        open_store(StoreOptions((Address(HOST, 1),), password=PASSWORD))
    assert "session store 127.0.0.1:1" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_scripts_that_were_forgotten_are_loaded_again(start: Start) -> None:
    port = start()
    with contextlib.closing(open_store(StoreOptions((Address(HOST, port),)))) as store:
        ledger = Ledger(store, Layout())
        assert ledger.carry(items(10), write=True) == b"1" * 10
        store.client.script_flush()
        assert ledger.carry(items(20), write=True) == b"0" * 10 + b"1" * 10


def test_an_error_of_the_store_names_no_session(start: Start) -> None:
    port = start(f"user carrier on >{PASSWORD} ~* -@all +ping +client|setinfo +info +get +set")
    with contextlib.closing(open_store(StoreOptions((Address(HOST, port),), username="carrier", password=PASSWORD))) as store:
        for command in ("SADD", "SISMEMBER"):
            with pytest.raises(MigrationError, match="ACL") as caught:
                store.each([(command, b"of:a user", "a session key")])
            assert "a session key" not in str(caught.value)
