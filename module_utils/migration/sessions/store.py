# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that knows redis-py: one server, a Sentinel or a cluster, spoken to in pipelines of scripts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import tls
from ..errors import MigrationError

try:
    import redis
    import redis.backoff
    import redis.cluster
    import redis.exceptions
    import redis.retry
    import redis.sentinel

    IMPORT_ERROR: str | None = None
except ImportError as exc:  # a runner without redis-py gets a line that says how to get it
    IMPORT_ERROR = str(exc)

__all__ = ["MODES", "STORE_SPEC", "Address", "Call", "Room", "Store", "StoreOptions", "open_store"]

MODES = ("single", "sentinel", "cluster")
TIMEOUT = 30  # seconds without an answer
ATTEMPTS = 3  # a cluster moves slots, a promoted replica has no scripts
OLDEST = (6, 2)  # SET ... EXAT
OLDEST_INDEX = (7, 0)  # EXPIREAT ... GT

_FULL = "it is full; raise maxmemory and run playbooks/sessions.yml again"
_WRAPPED = {
    "unknown command `HELLO`": "it is too old; upgrade it to Redis 6.2 or newer",
    "-OOM ": _FULL,
    "-READONLY ": "give its primary, then run playbooks/sessions.yml again",
    "The user executing the script can't run": "docs/sessions.md lists what the ACL user needs",
}

_CODE = re.compile(r"-?([A-Z]{3,20})\b")  # WRONGTYPE, MISCONF, ...
_SAID = {
    "unknown command": "it does not know a command",
    "Connection refused": "connection refused",
    "certificate verify failed": "certificate verify failed",
    "doesn't match": "the certificate names another host",
    "not valid for": "the certificate names another host",
    "Name or service not known": "the host's name is not known",
    "not known": "the host's name is not known",
    "timed out": "no answer in time",
    "Timeout": "no answer in time",
    "No route to host": "no way leads to the host",
    "closed by server": "the server closed the connection",
    "Connection reset": "the server closed the connection",
    "SSL": "TLS failed",
    "No master found": "the sentinels know no primary of that name",
    "Redis is loading": "it is loading its data",
    "LOADING": "it is loading its data",
    "CLUSTERDOWN": "the cluster is down",
    "cluster mode is not enabled": "it is no cluster",
    "cluster support disabled": "it is no cluster",
    "cannot be connected": "no node of the cluster answers",
    "MISCONF": "it cannot write its own snapshot and refuses writes",
    "MASTERDOWN": "its primary is down",
    "-OOM": "its memory is full",
    "NOPERM": "the ACL user lacks a right",
    "can't run": "the ACL user lacks a right",
    "READONLY": "it is a replica and read-only",
    "max number of clients": "it has no connection free",
}

STORE_SPEC: dict[str, Any] = {
    "mode": {"type": "str", "default": "single", "choices": list(MODES)},
    "hosts": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {"host": {"type": "str", "required": True}, "port": {"type": "int", "default": 6379}},
    },
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "db": {"type": "int", "default": 0},
    "sentinel_name": {"type": "str", "default": "mymaster"},
    "sentinel_username": {"type": "str"},
    "sentinel_password": {"type": "str", "no_log": True},
    "tls": {"type": "bool"},
    "tls_ca": {"type": "path"},
    "tls_cert": {"type": "path"},
    "tls_key": {"type": "path", "no_log": False},
    "tls_verify_host": {"type": "bool", "default": True},
}


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return host:port."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class StoreOptions:
    """Where the store is and how to be let in. One that would be spoken to in clear unasked cannot be made; `tls` is None when nobody said."""

    hosts: tuple[Address, ...]
    mode: str = "single"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    sentinel_name: str = "mymaster"
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: bool | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify_host: bool = True

    def __post_init__(self) -> None:
        self.require_safe([address.host for address in self.hosts])

    def require_safe(self, hosts: Sequence[str]) -> None:
        """MigrationError when one of the hosts, which sentinels or a cluster may have named, must not be spoken to."""
        if refused := tls.store_refusal(list(hosts), self.tls):
            raise MigrationError(f"{self.place}: {refused[0]}, so nothing was sent to it; {refused[1]}")

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> StoreOptions:
        """Return what a module's options (STORE_SPEC) describe."""
        others = {name: params[name] for name in STORE_SPEC if name != "hosts" and params.get(name) is not None}
        return cls(hosts=tuple(Address(item["host"], int(item.get("port") or 6379)) for item in params["hosts"]), **others)

    @property
    def place(self) -> str:
        """Return where the store is, for messages."""
        named = ", ".join(map(str, self.hosts))
        what = {"single": "", "sentinel": f" (sentinels of {self.sentinel_name})", "cluster": " (cluster)"}[self.mode]
        return f"session store {named}{what}"


@dataclass(frozen=True)
class Call:
    """One call of a script, all of whose keys lie in `slot`."""

    slot: int
    script: str
    keys: Sequence[bytes]
    arguments: Sequence[bytes | str | int]


@dataclass(frozen=True)
class Room:
    """What one server is and can take; `maximum` 0 is no limit, None means that we may not ask; `clock` is in seconds since 1970."""

    address: str
    used: int | None
    maximum: int | None
    policy: str | None
    version: str | None = None
    replica: bool = False
    clock: float | None = None
    evicted: int = 0  # keys of any kind, since it started

    def unfit(self, *, indexed: bool = False) -> tuple[str, str] | None:
        """Return why no session can be kept here and what to do, or None; `indexed` asks for what a user's index needs."""
        version = tuple(int(part) for part in (self.version or "").split(".")[:2] if part.isdigit())
        if version and version < OLDEST:
            return f"version {self.version} cannot keep a session's exact end (SET ... EXAT)", "upgrade it to Redis 6.2 or newer"
        if version and indexed and version < OLDEST_INDEX:
            return f"version {self.version} cannot keep the users' index (EXPIREAT ... GT)", "upgrade it to Redis 7, or leave sessions_user_index empty"
        if self.replica:
            return "it is a replica and read-only", "give the primary as session_store_hosts, or session_store_mode: sentinel or cluster"
        return None


class Store:
    """An open session store. Every error is a MigrationError in one line."""

    def __init__(self, options: StoreOptions, client: Any) -> None:
        self.options = options
        self.client = client
        self.clustered = options.mode == "cluster"
        self._shas: dict[str, str] = {}

    def close(self) -> None:
        """Close every connection."""
        with self.errors("closing"):
            self.client.close()

    def run(self, calls: Sequence[Call]) -> list[bytes]:
        """Run scripts in one pipeline for each server; return their answers in the order of the calls."""
        answers: list[Any] = [None] * len(calls)
        waiting = list(range(len(calls)))
        for attempt in range(ATTEMPTS):
            fault: Exception | None = None
            for node, indexes in self._by_node(calls, waiting):
                with self.errors("writing sessions"):
                    shas = self._load(node, {calls[index].script for index in indexes}, anew=attempt > 0)
                    pipe = node.pipeline(transaction=False)
                    for index in indexes:
                        call = calls[index]
                        pipe.execute_command("EVALSHA", shas[call.script], len(call.keys), *call.keys, *call.arguments)
                    for index, answer in zip(indexes, pipe.execute(raise_on_error=False), strict=True):
                        if isinstance(answer, Exception):
                            self._transient(answer)
                            fault = answer
                        answers[index] = answer
            waiting = [index for index in waiting if isinstance(answers[index], Exception)]
            if not waiting:
                return answers
            if self.clustered:
                with self.errors("asking the cluster for its slots"):
                    self.client.nodes_manager.initialize()
        raise MigrationError(f"{self.options.place}: {_line(fault)}; run playbooks/sessions.yml again")

    def each(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run plain commands, whose key is their second word, in one pipeline for each server; return the answers."""
        answers: list[Any] = [None] * len(commands)
        slots = [Call(self.slot(command[1]), "", (), ()) for command in commands]
        for node, indexes in self._by_node(slots, range(len(commands))):
            with self.errors("reading its own record"):
                pipe = node.pipeline(transaction=False)
                for index in indexes:
                    pipe.execute_command(*commands[index])
                # Not left to redis-py to raise: its message would quote the command, and with it a session key.
                for index, answer in zip(indexes, pipe.execute(raise_on_error=False), strict=True):
                    if isinstance(answer, Exception):
                        raise answer
                    answers[index] = answer
        return answers

    def slot(self, key: bytes) -> int:
        """Return the slot of a key; all are one without a cluster."""
        return int(self.client.keyslot(key)) if self.clustered else 0

    def rooms(self) -> list[Room]:
        """Return what each writable server is, the memory that it uses and may use, and its clock."""
        found = []
        with self.errors("asking what it is"):
            nodes = [(self._address(), self.client)]
            if self.clustered:
                nodes = [(str(node.name), self.client.get_redis_connection(node)) for node in self.client.get_primaries()]
            for address, node in nodes:
                seconds, micros = node.time()
                try:
                    info = {**node.info("server"), **node.info("memory"), **node.info("replication"), **node.info("stats")}
                except redis.exceptions.NoPermissionError:
                    info = {}
                limits = (info.get("used_memory"), info.get("maxmemory"), info.get("maxmemory_policy"))
                version, replica, evicted = info.get("redis_version"), info.get("role") == "slave", int(info.get("evicted_keys", 0))
                found.append(Room(address, *limits, version, replica, seconds + micros / 1e6, evicted))
        return found

    def _address(self) -> str:
        """Return where the one writable server listens, which a Sentinel knows."""
        if self.options.mode == "sentinel":
            host, port = self.client.connection_pool.get_master_address()
            return f"{host}:{port}"
        return str(self.options.hosts[0])

    @contextlib.contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn an error of the store into a MigrationError."""
        place = self.options.place
        try:
            yield
        except redis.exceptions.AuthenticationError as exc:
            raise MigrationError(f"{place}: it refuses our login; check session_store_username and session_store_password") from exc
        except redis.exceptions.NoPermissionError as exc:
            raise MigrationError(f"{place}: {doing}: the ACL user lacks a right; docs/sessions.md lists what the ACL user needs") from exc
        except redis.exceptions.OutOfMemoryError as exc:
            raise MigrationError(f"{place}: {doing}: {_FULL}") from exc
        except redis.exceptions.ReadOnlyError as exc:
            raise MigrationError(f"{place}: {doing}: it is a replica and read-only; give its primary, then run playbooks/sessions.yml again") from exc
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as exc:
            raise MigrationError(f"{place}: {doing}: connection failed ({_line(exc)}); run playbooks/sessions.yml again when it is back") from exc
        except redis.exceptions.RedisClusterException as exc:  # is no RedisError: no node answered, or they disagree
            raise MigrationError(f"{place}: {doing}: {_line(exc)}; check session_store_hosts and session_store_tls*") from exc
        except redis.exceptions.RedisError as exc:
            # Redis 6.2 wraps what a script was told, and one older than 6 knows no HELLO.
            step = next((f"; {step}" for sign, step in _WRAPPED.items() if sign in str(exc)), "; run playbooks/sessions.yml again")
            raise MigrationError(f"{place}: {doing}: {_line(exc)}{step}") from exc

    def _by_node(self, calls: Sequence[Call], indexes: Sequence[int]) -> list[tuple[Any, list[int]]]:
        if not self.clustered:
            return [(self.client, list(indexes))]
        grouped: dict[str, tuple[Any, list[int]]] = {}
        with self.errors("finding a slot's server"):
            for index in indexes:
                node = self.client.nodes_manager.get_node_from_slot(calls[index].slot)
                if node.redis_connection is None:
                    self.client.get_redis_connection(node)
                grouped.setdefault(node.name, (node.redis_connection, []))[1].append(index)
        return list(grouped.values())

    def _load(self, node: Any, wanted: set[str], *, anew: bool) -> dict[str, str]:
        shas = {}
        for script in wanted:
            name = f"{id(node)} {script}"
            if anew or name not in self._shas:
                self._shas[name] = node.execute_command("SCRIPT LOAD", script)
            shas[script] = self._shas[name]
        return shas

    def _transient(self, answer: Exception) -> None:
        """Raise what another try cannot mend."""
        passing = (
            redis.exceptions.NoScriptError,
            redis.exceptions.MovedError,
            redis.exceptions.AskError,
            redis.exceptions.TryAgainError,
            redis.exceptions.ClusterDownError,
        )
        if not isinstance(answer, passing):
            raise answer


def open_store(options: StoreOptions) -> Store:
    """Open the store and ask it once; raise MigrationError when it cannot be reached or its options contradict."""
    if IMPORT_ERROR is not None:
        raise MigrationError(f"redis is missing on this runner ({IMPORT_ERROR}); install the Python package redis there (pip) or python3-redis (Debian)")
    if not options.hosts:
        raise MigrationError("session_store_hosts is empty; give at least one {host, port}")
    if options.mode == "cluster" and options.db:
        raise MigrationError(f"session_store_db is {options.db}, but a cluster has database 0 only; set session_store_db: 0")
    store = Store(options, None)
    with store.errors("connecting"):
        client = _client(options)
        store.client = client
        client.ping()
    return store


def _client(options: StoreOptions) -> Any:
    common: dict[str, Any] = {
        "username": options.username,
        "password": options.password,
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": 10,
    }
    if options.tls:
        common |= {
            "ssl": True,
            "ssl_cert_reqs": "required",
            "ssl_ca_certs": options.tls_ca,
            "ssl_certfile": options.tls_cert,
            "ssl_keyfile": options.tls_key,
            "ssl_check_hostname": options.tls_verify_host,
        }
    if options.mode == "cluster":
        nodes = [redis.cluster.ClusterNode(address.host, address.port) for address in options.hosts]

        def named(address: tuple[str, int]) -> tuple[str, int]:
            """Let the nodes that the first ones name, now or later, be spoken to, or not."""
            options.require_safe([address[0]])
            return address

        return redis.cluster.RedisCluster(startup_nodes=nodes, address_remap=named, **common)
    # A silent second try would count what the first one wrote as found: the operator runs the playbook again instead.
    common |= {"db": options.db, "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0)}
    if options.mode == "sentinel":
        to_sentinel = {**common, "db": 0, "username": options.sentinel_username, "password": options.sentinel_password}
        sentinels = [(address.host, address.port) for address in options.hosts]
        return _sentinel(options, sentinels, to_sentinel, common).master_for(options.sentinel_name)
    return redis.Redis(host=options.hosts[0].host, port=options.hosts[0].port, **common)


def _sentinel(options: StoreOptions, sentinels: list[tuple[str, int]], to_sentinel: dict[str, Any], common: dict[str, Any]) -> Any:
    """Return the sentinels; each primary that they name, now or later, must be one that may be spoken to."""

    class Watched(redis.sentinel.Sentinel):  # type: ignore[misc]  # redis may be absent
        def discover_master(self, service_name: str) -> Any:
            address = super().discover_master(service_name)
            options.require_safe([address[0]])
            return address

    return Watched(sentinels, sentinel_kwargs=to_sentinel, **common)


def _line(exc: BaseException | None) -> str:
    """Return what an error of the store may say: words of this file and the server's error code, for its text quotes what it was sent."""
    text = str(exc)
    if said := next((words for sign, words in _SAID.items() if sign.lower() in text.lower()), ""):
        return said
    code = _CODE.match(text)
    return f"{type(exc).__name__}, code {code[1]} (its text is not shown)" if code else f"{type(exc).__name__} (its text is not shown)"
