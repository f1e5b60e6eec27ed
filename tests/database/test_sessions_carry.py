# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every session is accounted for, and what the service does is never undone: on real PostgreSQL and a real store."""

from __future__ import annotations

import base64
import contextlib
import hmac
import multiprocessing
import os
import pickle
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.sessions import signing
from ansible.module_utils.migration.sessions.carry import Rules, carry
from ansible.module_utils.migration.sessions.ledger import Ledger
from ansible.module_utils.migration.sessions.store import open_store
from ansible.module_utils.migration.sessions.users import User

from tests.sessions_world import BACKEND, DJANGO, PASSWORD, SECRET, SERVICE, UUID, KnownUsers, World, logged_in, sessions_world


@pytest.fixture
def world(databases: Callable[..., driver.Endpoint], valkey: Any) -> Iterator[World]:
    with sessions_world(databases, valkey) as made:
        yield made


def fill(world: World) -> None:
    """Add a session of every kind."""
    world.add("user1", logged_in(1, cart=[1, "é"]))
    world.add("user2", logged_in(2))
    world.add("anonymous", {"cart": {"book": 2}})
    world.add("empty", {})
    world.add("expired", logged_in(1), seconds=-10)
    world.add("forged", logged_in(1), secret="another")
    world.add("garbage", {}, data="garbage")
    world.add("stranger", logged_in(99))
    world.add("text", {**logged_in(1), "_auth_user_id": "admin"})
    world.add("legacy", {}, data=signing.encode_legacy({**logged_in(3), "_auth_user_hash": signing.auth_hash(PASSWORD.format(3), SECRET, "sha1")}, SECRET))


class Bomb:
    """What must never be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a session was unpickled",))


def pickled(salt: str, algorithm: str, *, pack: bool = False) -> str:
    """Return a session as PickleSerializer left it, signed rightly, in today's form or (sha1) in the one before 3.1."""
    raw = pickle.dumps({"_auth_user_id": "1", "cart": Bomb()})
    key = signing.derive(salt, SECRET, algorithm)
    if algorithm == "sha1":
        return base64.b64encode(hmac.digest(key, raw, "sha1").hex().encode() + b":" + raw).decode()
    payload = ("." + signing._base64(zlib.compress(raw)) if pack else signing._base64(raw)) + ":1tR0Q0"
    return f"{payload}:{signing._base64(hmac.digest(key, payload.encode(), 'sha256'))}"


def test_every_kind_of_session_is_accounted_for(world: World) -> None:
    fill(world)
    world.add("pickled", {}, data=pickled(signing.SESSION_SALT + "signer", "sha256"))
    world.add("long pickled", {}, data=pickled(signing.SESSION_SALT + "signer", "sha256", pack=True))
    world.add("old pickled", {}, data=pickled("django.contrib.sessionsSessionStore", "sha1"))
    result = world.carry()
    assert (result.live, result.expired) == (12, 1)
    assert (result.anonymous, result.authenticated, result.not_migrated) == (2, 3, 1)
    assert all("1 of users that the service does not have" in said for said in (result.line(wrote=True), result.remark))
    assert result.rejected == {"forged": 1, "no_such_user_id": 1, "pickled": 3, "undecodable": 1}
    assert result.carried == result.written == 5
    assert result.examples["forged"]
    assert "forged" not in result.examples["forged"]
    session = pickle.loads(world.redis.get(world.key("user1")))
    assert session == logged_in(1, cart=[1, "é"], _auth_user_id=UUID.format(1))
    assert pickle.loads(world.redis.get(world.key("anonymous"))) == {"cart": {"book": 2}}
    assert pickle.loads(world.redis.get(world.key("legacy")))["_auth_user_hash"] == signing.auth_hash(PASSWORD.format(3), SECRET)
    for name in ("expired", "forged", "garbage", "stranger", "text"):
        assert not world.redis.exists(world.key(name)), name


def test_a_session_ends_at_the_same_second(world: World) -> None:
    world.add("user1", logged_in(1))
    world.execute("UPDATE django_session SET expire_date = timestamptz '2031-02-03 04:05:06.9Z'")
    world.add("forever", {})
    world.execute("UPDATE django_session SET expire_date = 'infinity' WHERE session_key = 'forever'")
    world.carry()
    assert world.redis.execute_command("EXPIRETIME", world.key("user1")) == int(datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp())
    assert world.redis.execute_command("EXPIRETIME", world.key("forever")) > 253402200000


def test_a_second_run_changes_nothing(world: World) -> None:
    fill(world)
    world.carry()
    before = world.dump()
    result = world.carry()
    assert not result.changed
    assert result.unchanged == 5
    assert world.dump() == before


def test_a_check_tells_the_numbers_and_writes_nothing(world: World) -> None:
    fill(world)
    foreseen = world.carry(write=False)
    assert world.redis.dbsize() == 0
    done = world.carry()
    assert replace(foreseen, seconds=0) == replace(done, seconds=0)
    world.add("user1", logged_in(1, cart=[2]))
    world.add("new", logged_in(2))
    world.execute("DELETE FROM django_session WHERE session_key = 'anonymous'")
    before = world.dump()
    foreseen = world.carry(write=False)
    assert (foreseen.written, foreseen.updated, foreseen.removed) == (1, 1, 1)
    assert world.dump() == before
    assert replace(foreseen, seconds=0) == replace(world.carry(), seconds=0)


def test_a_rerun_follows_the_monolith(world: World) -> None:
    fill(world)
    world.carry()
    world.add("user1", logged_in(1, cart=[2]))  # changed
    world.add("user2", logged_in(2), seconds=7200)  # prolonged
    world.execute("DELETE FROM django_session WHERE session_key = 'anonymous'")  # logged out
    world.execute("UPDATE django_session SET expire_date = now() - interval '1 hour' WHERE session_key = 'empty'")  # ended early
    world.add("legacy", logged_in(3), secret="another")  # carried before, forged now
    result = world.carry()
    assert (result.updated, result.removed, result.written) == (2, 3, 0)
    assert pickle.loads(world.redis.get(world.key("user1")))["cart"] == [2]
    assert 7100 < world.redis.ttl(world.key("user2")) <= 7200
    assert not world.redis.exists(world.key("anonymous"), world.key("empty"), world.key("legacy"))
    assert not world.carry().changed


def test_what_the_service_did_is_never_undone(world: World) -> None:
    for name in ("changed", "longer", "logout", "own", "ended", "list"):
        if name not in ("own", "list"):
            world.add(name, logged_in(1))
    world.carry()
    world.redis.set(world.key("changed"), b"the service's", keepttl=True)
    world.redis.expire(world.key("longer"), 99999)
    world.redis.delete(world.key("logout"))
    world.redis.set(world.key("own"), b"its own")
    world.redis.rpush(world.key("list"), b"not even a string")
    world.redis.set(world.key("ended"), b"the service's too", keepttl=True)
    for name in ("changed", "longer", "logout", "own", "list"):
        world.add(name, logged_in(1, cart=["the monolith's"]))
    world.execute("DELETE FROM django_session WHERE session_key = 'ended'")
    before = world.dump()
    result = world.carry()
    assert not result.changed
    assert (result.service, result.ended_in_service) == (4, 1)
    settled = world.dump()  # the record has noted the logout, and that is all
    assert set(settled) == set(before)
    assert {key: found for key, found in settled.items() if found != before[key]}.keys() == {
        key for key in before if key.startswith(b"migration:") and world.redis.type(key) == b"hash" and world.redis.hexists(key, "logout")
    }
    assert not world.carry().changed
    assert world.dump() == settled
    assert world.carry(restore=True).written == 1
    assert world.redis.exists(world.key("logout"))


def test_removal_takes_exactly_what_was_written(world: World) -> None:
    world.redis.set("somebody else's", b"x")
    world.redis.set(world.key("own"), b"its own")
    for name in ("a", "b", "changed", "longer", "logout"):
        world.add(name, logged_in(1))
    world.carry()
    world.redis.set(world.key("changed"), b"the service's", keepttl=True)
    world.redis.expire(world.key("longer"), 99999)
    world.redis.delete(world.key("logout"))
    before = world.dump()
    expected = {"removed": 2, "service": 2, "gone": 1}
    assert world.remove(write=False) == expected
    assert world.dump() == before
    assert world.remove() == expected
    assert set(map(bytes.decode, world.redis.keys("*"))) == {"somebody else's", *map(world.key, ("own", "changed", "longer"))}
    assert world.remove() == {"removed": 0, "service": 0, "gone": 0}


def test_another_secret_of_the_service_renews_the_hash(world: World) -> None:
    world.add("user1", logged_in(1))
    world.add("older", logged_in(2, secret="older"), secret="older")
    world.add("outdated", {**logged_in(3), "_auth_user_hash": signing.auth_hash("an earlier password", SECRET)})
    world.add("hashless", {"_auth_user_id": "1", "_auth_user_backend": BACKEND})
    result = world.carry(service_secret_key=SERVICE, secret_key_fallbacks=("older",))
    assert (result.written, result.outdated) == (2, 2)
    for number, name in ((1, "user1"), (2, "older")):
        assert pickle.loads(world.redis.get(world.key(name)))["_auth_user_hash"] == signing.auth_hash(PASSWORD.format(number), SERVICE)


def test_backends_are_mapped_and_unknown_ones_rejected(world: World) -> None:
    world.add("ldap", {**logged_in(1), "_auth_user_backend": "old.LdapBackend"})
    world.add("odd", {**logged_in(2), "_auth_user_backend": "odd.Backend"})
    result = world.carry(backends={"old.LdapBackend": "new.LdapBackend"}, known_backends=("new.LdapBackend", BACKEND))
    assert result.rejected == {"unknown_backend": 1}
    assert result.backends == {"new.LdapBackend": 1, "odd.Backend": 1}
    assert pickle.loads(world.redis.get(world.key("ldap")))["_auth_user_backend"] == "new.LdapBackend"


@pytest.mark.parametrize("workers", [1, 2])
def test_declared_ids_in_sessions_are_translated_and_left_out_where_unknown(world: World, workers: int) -> None:
    world.add("a", logged_in(1, project=2, teams=["3", 4, None], cart=2))
    world.add("b", logged_in(2, project="4", teams=[1, 6]))
    world.add("c", {"project": 9, "teams": None})
    world.add("d", {"project": "x", "teams": []})
    world.add("e", {"project": {"id": 1}})
    result = world.carry(ids={"project": "projects", "teams": "groups"}, workers=workers, batch=1)
    assert (result.carried, result.dropped_keys) == (5, 4)
    assert "4 keys left out" in result.line(wrote=True)
    held = {name: pickle.loads(world.redis.get(world.key(name))) for name in "abcde"}
    assert (held["a"]["project"], held["a"]["teams"], held["a"]["cart"]) == ("projects 2", ["groups 3", "groups 4", None], 2)
    assert held["b"]["project"] == "projects 4"
    assert "teams" not in held["b"]
    assert (held["c"], held["d"], held["e"]) == ({"teams": None}, {"teams": []}, {})
    assert world.carry(ids={"project": "projects", "teams": "groups"}).changed is False


def test_a_users_sessions_can_be_found_for_revocation(world: World) -> None:
    world.add("a", logged_in(1), seconds=100)
    world.add("b", logged_in(1), seconds=500)
    world.add("anonymous", {})
    assert world.carry(write=False, user_index="of:").indexed == 2
    assert world.carry(user_index="of:").indexed == 2
    assert world.redis.smembers(f"of:{UUID.format(1)}") == {b"a", b"b"}
    assert 480 < world.redis.ttl(f"of:{UUID.format(1)}") <= 500
    assert not world.carry(user_index="of:").changed
    world.execute("DELETE FROM django_session WHERE session_key = 'a'")
    world.carry(user_index="of:")
    assert world.redis.smembers(f"of:{UUID.format(1)}") == {b"b"}
    world.remove(user_index="of:")
    assert world.redis.keys("*") == []


def test_an_emptied_source_does_not_log_everybody_out(world: World) -> None:
    world.add("a", logged_in(1))
    world.carry()
    world.execute("TRUNCATE django_session")
    with pytest.raises(MigrationError, match="log everybody out"):
        world.carry()
    assert not world.carry(ended="keep").changed
    assert world.redis.exists(world.key("a"))


def test_a_store_that_is_too_small_or_forgets_is_refused(world: World) -> None:
    world.add("a", logged_in(1))
    try:
        world.redis.config_set("maxmemory", world.redis.info("memory")["used_memory"] + 100)
        with pytest.raises(MigrationError, match="raise maxmemory"):
            world.carry()
        world.redis.config_set("maxmemory", "1gb")
        world.redis.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(MigrationError, match="noeviction"):
            world.carry()
        assert world.redis.dbsize() == 0
        assert world.carry(eviction_allowed=True).written == 1
    finally:
        world.redis.config_set("maxmemory", 0)
        world.redis.config_set("maxmemory-policy", "noeviction")


def test_a_monolith_without_sessions_in_its_database_is_told_so(world: World) -> None:
    world.execute("DROP TABLE django_session")
    with pytest.raises(MigrationError, match="SESSION_ENGINE"):
        world.carry()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_many_sessions_go_in_batches_and_lose_none(world: World, workers: int) -> None:
    data = signing.encode(logged_in(1), SECRET)
    world.execute(
        "INSERT INTO django_session SELECT md5(n::text), %s, now() + interval '1 hour' FROM generate_series(1, 5000) n", data
    )
    started = time.monotonic()
    assert world.carry(batch=700, workers=workers).written == 5000
    assert not world.carry(batch=700, workers=workers).changed
    assert world.remove()["removed"] == 5000
    assert world.redis.dbsize() == 0
    assert time.monotonic() - started < 30


class Failing(KnownUsers):
    """The target goes away."""

    def find(self, numbers: Any, *, passwords: bool) -> Mapping[int, User]:
        raise MigrationError("auth_service: gone")


class Killed(KnownUsers):
    """The process is killed."""

    def find(self, numbers: Any, *, passwords: bool) -> Mapping[int, User]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


@pytest.mark.parametrize(("users", "told"), [(Failing(), "auth_service: gone"), (Killed(), "a worker process was killed")])
def test_a_failing_worker_is_told_and_the_next_run_completes(world: World, users: KnownUsers, told: str) -> None:
    data = signing.encode(logged_in(1), SECRET)
    world.execute("INSERT INTO django_session SELECT md5(n::text), %s, now() + interval '1 hour' FROM generate_series(1, 9000) n", data)

    @contextlib.contextmanager
    def crew() -> Iterator[tuple[KnownUsers, Ledger]]:
        with contextlib.closing(open_store(world.options)) as store:
            yield users, Ledger(store, DJANGO)

    source = driver.connect(world.source, application_name="tests", readonly=True)
    with contextlib.closing(source), crew() as (_, ledger), pytest.raises(MigrationError, match=told):
        carry(source, "public", KnownUsers(), ledger, Rules(SECRET, batch=500), write=True, crew=crew)
    assert world.carry().carried == 9000


class Slow(KnownUsers):
    """The target takes its time."""

    def find(self, numbers: Any, *, passwords: bool) -> Mapping[int, User]:
        time.sleep(0.05)
        return super().find(numbers, passwords=passwords)


@pytest.mark.parametrize("delay", [0.05, 0.3])
def test_a_killed_run_leaves_no_worker_and_no_session_without_its_entry(world: World, delay: float) -> None:
    data = signing.encode(logged_in(1), SECRET)
    world.execute("INSERT INTO django_session SELECT md5(n::text), %s, now() + interval '1 hour' FROM generate_series(1, 8000) n", data)

    @contextlib.contextmanager
    def crew() -> Iterator[tuple[KnownUsers, Ledger]]:
        with contextlib.closing(open_store(world.options)) as store:
            yield Slow(), Ledger(store, DJANGO)

    def run() -> None:
        source = driver.connect(world.source, application_name="tests", readonly=True)
        with crew() as (users, ledger):
            carry(source, "public", users, ledger, Rules(SECRET, batch=100), write=True, crew=crew)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    while not world.redis.exists("migration:sessions:layout"):
        time.sleep(0.005)
    time.sleep(delay)
    workers = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    deadline = time.monotonic() + 5
    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)
    seen = world.carry(write=False)
    assert seen.written > 0  # the kill came in the middle
    assert seen.written + seen.unchanged == 8000
    assert world.carry().written == seen.written
    assert world.remove() == {"removed": 8000, "service": 0, "gone": 0}
    assert world.redis.dbsize() == 0


def running(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_nothing_read_is_never_taken_for_ended(world: World) -> None:
    world.add("user1", logged_in(1))
    world.carry()
    for rules in ({"batch": 0}, {"workers": 0}):
        with pytest.raises(MigrationError, match="1 or more"):
            world.carry(**rules)
    assert world.redis.exists(world.key("user1"))


def test_a_session_that_is_left_out_leaves_the_index_too(world: World) -> None:
    world.add("user1", logged_in(1))
    world.add("user2", logged_in(2))
    world.carry(user_index="u:")
    world.add("user1", logged_in(1), secret="another")
    assert world.carry(user_index="u:").removed == 1
    assert world.redis.keys("u:*") == [f"u:{UUID.format(2)}".encode()]


WRONG_KEY = "have a signature that no given key made.*nothing was written or removed; give .*sessions_secret_key.*sessions_forged_limit=100"


@pytest.mark.parametrize("write", [False, True])
def test_a_first_run_with_a_wrong_key_writes_nothing(world: World, write: bool) -> None:
    for name in ("a", "b", "c"):
        world.add(name, logged_in(1), secret="another")
    world.add("garbage", {}, data="garbage")
    with pytest.raises(MigrationError, match=f"3 of 3 live sessions in django_session {WRONG_KEY}"):
        world.carry(write=write)
    assert world.redis.dbsize() == 0
    assert world.carry(forged_limit=100).rejected == {"forged": 3, "undecodable": 1}


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("ended", ["remove", "keep"])
def test_a_rerun_with_a_wrong_key_logs_nobody_out(world: World, write: bool, ended: str) -> None:
    for number in (1, 2, 3):
        world.add(f"user{number}", logged_in(number))
    world.carry()
    before = world.dump()
    world.execute("UPDATE django_session SET session_data = %s", signing.encode(logged_in(1, secret="another"), "another"))
    with pytest.raises(MigrationError, match=f"3 of 3 live sessions in django_session {WRONG_KEY}"):
        world.carry(write=write, ended=ended)
    assert world.dump() == before
    assert world.carry(write=False, secret_key_fallbacks=("another",)).removed == 0
    assert world.carry(forged_limit=100).removed == 3


def test_a_forgotten_fallback_does_not_end_what_was_carried_before(world: World) -> None:
    world.add("old", logged_in(1, secret="older"), secret="older")
    world.carry(secret_key_fallbacks=("older",))
    before = world.dump()
    for number in (2, 3, 4):
        world.add(f"new{number}", logged_in(number))
    with pytest.raises(MigrationError, match=f"1 of 1 sessions carried before in django_session {WRONG_KEY}"):
        world.carry()
    assert world.dump() == before
    assert world.carry(secret_key_fallbacks=("older",)).written == 3


def test_half_of_the_sessions_may_be_forged_and_no_more(world: World) -> None:
    world.add("genuine", logged_in(1))
    world.add("forged1", logged_in(1), secret="another")
    with pytest.raises(MigrationError, match="1 of 2 live"):
        world.carry(forged_limit=49)
    assert world.carry().rejected == {"forged": 1}
    world.add("forged2", logged_in(1), secret="another")
    with pytest.raises(MigrationError, match="2 of 3 live"):
        world.carry()
    with pytest.raises(MigrationError, match="0 to 100"):
        world.carry(forged_limit=101)


def test_of_many_sessions_a_sample_tells_the_wrong_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible.module_utils.migration.sessions.signature_check.SAMPLE", 50)
    world.execute(
        "INSERT INTO django_session SELECT md5(n::text), %s, now() + interval '1 hour' FROM generate_series(1, 1000) n",
        signing.encode(logged_in(1), "another"),
    )
    with pytest.raises(MigrationError, match=r" ([2-9]\d) of \1 live sessions looked at") as told:
        world.carry()
    assert "\n" not in str(told.value)
    assert world.redis.dbsize() == 0
