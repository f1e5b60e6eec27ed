# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time, known to the records from its first write; odd rows, odd clocks and full disks are told."""

from __future__ import annotations

import base64
import contextlib
import functools
import hmac
import json
import multiprocessing
import os
import signal
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.rollback.run import has_sessions
from ansible.module_utils.migration.sessions import carry as carrying
from ansible.module_utils.migration.sessions import lua, signing
from ansible.module_utils.migration.sessions.cache_layout import Layout
from ansible.module_utils.migration.sessions.key_set import Seen
from ansible.module_utils.migration.sessions.ledger import Item, Ledger
from ansible.module_utils.migration.sessions.rewrite import Rewriter, _number
from ansible.module_utils.migration.sessions.store import Room, open_store
from ansible.module_utils.migration.sessions.tally import Rules, Size, Tally
from ansible.module_utils.migration.state import control
from ansible.modules import migration_sessions as module

from tests.mutation.world import NAMESPACE, SERVICES, read_plan
from tests.sessions_world import BACKEND, DJANGO, PASSWORD, SECRET, TABLE, KnownUsers, World, logged_in, sessions_world

TARGET = (
    "CREATE SCHEMA auth_service",
    "CREATE TABLE auth_service.users (id uuid PRIMARY KEY, password_hash text)",
    "CREATE SCHEMA migration",
    "CREATE TABLE migration.id_map (entity text, source_key text, id uuid)",
)
PARAMS: dict[str, Any] = {
    "state": "present", "engine": "cache", "service_table": "", "users_entity": "users", "password_column": "password_hash", "secret_key": SECRET,
    "secret_key_fallbacks": [], "service_secret_key": None, "salt": signing.SESSION_SALT, "backends": {}, "known_backends": [], "user_index": "", "ids": {},
    "restore": False, "ended": "remove", "eviction_allowed": False, "forged_limit": 50, "batch": 200, "workers": 2,
}  # fmt: skip


@pytest.fixture
def world(databases: Callable[..., driver.Endpoint], valkey: Any) -> Iterator[World]:
    with sessions_world(databases, valkey) as made:
        yield made


def insert(world: World, name: str, data: str, ends: str) -> None:
    world.execute(f"INSERT INTO django_session VALUES (%s, %s, {ends})", name, data)


def test_every_kind_of_row_is_counted_and_no_key_is_told(world: World) -> None:
    old = {"_auth_user_id": "2", "_auth_user_backend": BACKEND, "_auth_user_hash": signing.auth_hash("an older password", SECRET)}
    signed = {
        "carried": {
            "int id": {**logged_in(1), "_auth_user_id": 1},
            "plain": logged_in(2),
            "packed": logged_in(3, cart=["é" * 500]),
            "huge": logged_in(1, cart="x" * 1_000_000),
            "nan": logged_in(1, price=float("nan")),
            "unknown backend": {**logged_in(1), "_auth_user_backend": "shop.Backend"},
            "old password": old,
            "naïve {odd}\t'\"\\%": logged_in(4, name="\U0001f600 Ünï"),
        },
        "anonymous": {"visitor": {"cart": [1]}, "empty": {}, "null id": {"_auth_user_id": None}},
        "not_migrated": {"nobody": logged_in(99), "negative": logged_in(-7), "large": logged_in(10**17)},
        "no_such_user_id": {"text": {"_auth_user_id": "ada"}, "true": {"_auth_user_id": True}, "larger": {"_auth_user_id": "9" * 5000}},
        "outdated": {"no hash": {"_auth_user_id": "1", "_auth_user_backend": BACKEND}},
        "forged": {"other salt": {}, "other key": {}},
    }
    for name, session in (pair for kind in signed.values() for pair in kind.items()):
        salt = "another.Store" if name == "other salt" else signing.SESSION_SALT
        key = "another" if name == "other key" else SECRET
        insert(world, name, signing.encode(session, key, compress=name != "plain", salt=salt), "now() + interval '1 hour'")
    insert(world, "fallback", signing.encode(logged_in(5, secret="before"), "before"), "now() + interval '1 hour'")
    insert(world, "legacy", signing.encode_legacy(logged_in(1), SECRET), "now() + interval '1 hour'")
    insert(world, "legacy forged", signing.encode_legacy(logged_in(1), "another"), "now() + interval '1 hour'")
    for name, data in (("nothing", ""), ("words", "gärbage"), ("list", signing.encode([1], SECRET))):  # type: ignore[arg-type]
        insert(world, name, data, "now() + interval '1 hour'")
    for name, ends in (("for ever", "'infinity'"), ("far", "'9998-01-01Z'"), ("past", "'2001-01-01Z'"), ("never", "'-infinity'"), ("bc", "'0044-03-15 BC'")):
        insert(world, name, signing.encode({}, SECRET), ends)
    insert(world, "this second", signing.encode({}, SECRET), "date_trunc('second', now()) + interval '0.999 seconds'")
    result = world.carry(secret_key_fallbacks=("before",))
    # With a fallback every hash is checked, so the one of an older password is told at once.
    assert (result.live, result.expired) == (28, 4)
    assert (result.authenticated, result.anonymous, result.not_migrated, result.outdated) == (9, 5, 3, 2)
    assert result.rejected == {"forged": 3, "no_such_user_id": 3, "undecodable": 3}
    assert result.carried == result.written == 14
    assert not world.carry(secret_key_fallbacks=("before",)).changed
    told = json.dumps(result.to_dict()) + result.line(wrote=True)
    names = [str(name) for (name,) in world.rows("SELECT session_key FROM django_session WHERE length(session_key) > 6")]
    assert len(names) > 12
    assert not [name for name in names if name in told]
    assert world.remove()["removed"] == 14


def insert_all(world: World, sessions: dict[str, str]) -> None:
    statement = "INSERT INTO django_session SELECT name, data, now() + interval '1 hour' FROM unnest(%s::text[], %s::text[]) AS given (name, data)"
    world.execute(statement, list(sessions), list(sessions.values()))


def signed(payload: bytes, *, packed: bool = True) -> str:
    """Return a payload with the monolith's own signature."""
    text = base64.urlsafe_b64encode(zlib.compress(payload, 9) if packed else payload).rstrip(b"=").decode()
    data = f"{'.' * packed}{text}:{signing.STAMP}"
    made = hmac.digest(signing.derive(signing.SESSION_SALT + "signer", SECRET), data.encode(), "sha256")
    return f"{data}:{base64.urlsafe_b64encode(made).rstrip(b'=').decode()}"


def test_what_unpacks_to_too_much_is_counted_and_never_held(world: World) -> None:
    most = signing.MOST_DECODED
    odd = {
        "bomb": signed(b" " * (80 << 20) + b"{}"),
        "a byte too many": signed(b"{}".rjust(most + 1)),
        "plain": signed(b"{}".rjust(most + 1), packed=False),
        "long text": "A" * (signing.MOST_TEXT + 1),
        "long colons": ":" * (signing.MOST_TEXT + 1),
        "cut": signed(b"{}")[:9] + signed(b"{}")[9:].replace(":", "A:", 1),
    }
    insert_all(world, odd)
    insert(world, "just fits", signed(b"{}".rjust(most)), "now() + interval '1 hour'")
    insert(world, "legacy", signing.encode_legacy({"cart": "x" * most}, SECRET), "now() + interval '1 hour'")
    deep = b'{"%s": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    insert(world, "deep", signed(deep % b"cart"), "now() + interval '1 hour'")
    insert(world, "digits", signed(b'{"cart": ' + b"9" * 100_000 + b"}"), "now() + interval '1 hour'")
    tracemalloc.start()
    try:
        result = world.carry(write=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.rejected == {"forged": 1, "too_large": 6, "undecodable": 2}
    assert result.carried == 1
    assert peak < 30 << 20, f"{peak >> 20} MiB"


def test_sessions_that_are_large_together_are_unpacked_in_parts() -> None:
    each = signed(b"{}".rjust(signing.MOST_DECODED))
    rewriter = Rewriter(KnownUsers(), DJANGO, Rules(SECRET), Tally(), write=False)
    parts = list(rewriter.batches([(f"key {number}", each, 2**31) for number in range(12)] + [("bad", "words", 2**31)]))
    assert len(parts) == 3, "a batch of ordinary sessions is one part"
    assert sum(len(items) for items, _ in parts) == 12
    assert [key for _, dropped in parts for key in dropped] == ["bad"]


def test_what_is_nested_to_the_edge_of_what_can_be_read_stops_no_other(world: World) -> None:
    odd = {}
    for key in ("_auth_user_id", "_auth_user_hash", "_auth_user_backend", "cart"):
        for depth in range(100, 1100, 50):
            user = {**logged_in(1), key: "DEEP"}
            raw = json.dumps(user).replace('"DEEP"', "[" * depth + "]" * depth).encode()
            odd[f"{key} {depth}"] = signed(raw)
    insert_all(world, odd)
    result = world.carry(ids={"_auth_user_hash": "users", "cart": "users"})
    assert result.live == 80 == result.carried + result.outdated + sum(result.rejected.values())
    assert not {"", "["} & {name[:1] for name in result.rejected}
    names = [f"shop.backends.B{number}" + "x" * 1000 for number in range(300)]
    insert_all(world, {f"backend {number}": signing.encode({**logged_in(1), "_auth_user_backend": name}, SECRET) for number, name in enumerate(names)})
    told = world.carry().backends
    assert len(told) <= 101, "what sessions say is bounded where it is told"
    assert max(map(len, told)) <= 200
    assert sum(told.values()) >= 300


def test_a_negative_id_is_an_id() -> None:
    assert [_number({"_auth_user_id": value}) for value in (-7, "-7", "007", 7)] == [-7, -7, 7, 7]


def test_a_logout_at_the_service_outlives_the_end_that_was_carried(world: World) -> None:
    for name in ("logged out", "unused"):
        world.add(name, logged_in(1), seconds=3)
    world.carry()
    world.redis.delete(world.key("logged out"))
    assert world.carry().ended_in_service == 1
    time.sleep(3.1)
    for name in ("logged out", "unused"):
        world.add(name, logged_in(1), seconds=500)
    result = world.carry()
    assert (result.updated, result.ended_in_service) == (1, 1)
    assert world.redis.keys(world.key("*")) == [world.key("unused").encode()]
    assert world.carry(restore=True).written == 1


def test_a_session_that_ends_on_its_way_is_not_written_again_and_again(world: World) -> None:
    with contextlib.closing(open_store(world.options)) as store:
        ledger = Ledger(store, DJANGO)
        late = [Item("late", "0" * 16, int(time.time()) - 5, "", b"value")]
        assert [ledger.carry(late, write=True) for _ in range(2)] == [lua.WRITTEN, lua.UNCHANGED]
        assert not store.client.exists(world.key("late"))


class Told:
    """A store of one server that tells what it is."""

    def __init__(self, room: Room) -> None:
        self.room = room

    def rooms(self) -> list[Room]:
        return [self.room]


@pytest.mark.parametrize(
    ("room", "rules", "told"),
    [
        (Room("a:1", 0, 0, "noeviction", "6.0.16"), {}, r"a:1: version 6\.0\.16 cannot keep .*; upgrade it to Redis 6\.2"),
        (Room("a:1", 0, 0, "noeviction", "6.2.5"), {"user_index": "of:"}, "users' index.*sessions_user_index empty"),
        (Room("a:1", 0, 0, "noeviction", "7.2.4", replica=True), {}, "a:1: it is a replica and read-only; give the primary"),
        (Room("a:1", 0, 0, "noeviction", "7.2.4", clock=1100), {}, "a:1: its clock is 100 s ahead of the monolith's.*NTP"),
        (Room("a:1", 0, 0, "noeviction", "7.2.4", clock=900), {}, "100 s behind"),
    ],
)
def test_a_store_that_cannot_keep_a_session_to_its_end_is_refused(room: Room, rules: dict[str, Any], told: str) -> None:
    with pytest.raises(MigrationError, match=told):
        carrying.check_store(Told(room), Size(0, 0, 0, 0), lambda: 1000.0, Rules("x", **rules), fresh=True)  # type: ignore[arg-type]
    fit = Room("a:1", 0, 0, "noeviction", "6.2.5", clock=1030)
    carrying.check_store(Told(fit), Size(0, 0, 0, 0), lambda: 1000.0, Rules("x"), fresh=True)  # type: ignore[arg-type]


def test_large_sessions_are_read_in_smaller_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    read = carrying._batches
    monkeypatch.setattr(carrying, "_BATCH_BYTES", 100_000)
    monkeypatch.setattr(carrying, "_batches", lambda source, table, size, place: sizes.append(size) or read(source, table, size, place))
    data = signing.encode({"cart": "x" * 10_000}, SECRET, compress=False)
    world.execute("INSERT INTO django_session SELECT md5(n::text), %s, now() + interval '1 hour' FROM generate_series(1, 100) n", data)
    assert world.carry().written == 100
    assert sizes == [100_000 // len(data)]


def test_a_check_leaves_the_services_table_alone(world: World) -> None:
    world.execute(TABLE.replace("django_session", "own"))
    world.add("user1", logged_in(1))
    assert world.carry(write=False, layout=Layout("cached_db"), table="public.own").service_rows == 1
    assert world.rows("SELECT pg_relation_size('own')") == [(0,)]  # not even rows of a transaction that was rolled back


def test_a_full_disk_under_the_keys_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", functools.partial(open, "/dev/full", "r+b"))
    with pytest.raises(MigrationError, match=r"is full.*TMPDIR"), Seen("x") as seen:
        list(seen.noting([[("the same key", "", 0)] * 256]))


@pytest.fixture
def context(world: World, databases: Callable[..., driver.Endpoint]) -> Context:
    """An open migration that has carried users 1 and 2."""
    target, records = databases(), databases()
    prefix = ids.prefix(NAMESPACE, "users")
    with contextlib.closing(driver.connect(target, application_name="tests", autocommit=True)) as connection:
        for statement in TARGET:
            driver.rows(connection, statement)
        for number in (1, 2):
            uuid = str(ids.compute(prefix, [number]))
            driver.rows(connection, "INSERT INTO migration.id_map VALUES ('users', %s, %s)", (str(number), uuid))
            driver.rows(connection, "INSERT INTO auth_service.users VALUES (%s, %s)", (uuid, PASSWORD.format(number)))
    plan = read_plan()
    with contextlib.closing(control.connect(records)) as connection:
        control.plan(connection, plan.digest, plan.fingerprint)
        control.begin(connection, plan.digest)
    return Context(plan, world.source, dict.fromkeys(SERVICES, target), records, NAMESPACE)


def present(world: World, context: Context) -> dict[str, Any]:
    with contextlib.closing(open_store(world.options)) as store:
        return module._present(context, Ledger(store, DJANGO), world.options, PARAMS)


def absent(world: World, context: Context) -> dict[str, Any]:
    with contextlib.closing(open_store(world.options)) as store:
        return module._absent(context, Ledger(store, DJANGO), PARAMS)


def outcomes(context: Context) -> tuple[list[str], bool]:
    """Return the outcomes in the records, the newest first, and whether a rollback would look into the store."""
    with contextlib.closing(control.connect(context.control)) as records:
        migration = control.current(records)
        assert migration is not None
        return [item.outcome for item in control.history(records, kind="sessions")], has_sessions(records, migration)


def test_a_second_run_is_kept_out_and_a_killed_first_one_is_known_to_the_rollback(world: World, context: Context) -> None:
    data = signing.encode(logged_in(1), SECRET)
    world.execute("INSERT INTO django_session SELECT md5(n::text), %s, now() + interval '1 hour' FROM generate_series(1, 20000) n", data)
    assert outcomes(context) == ([], False)
    child = multiprocessing.get_context("fork").Process(target=present, args=(world, context))
    child.start()
    while not world.redis.exists("migration:sessions:layout"):
        time.sleep(0.005)
    os.kill(child.pid or 0, signal.SIGSTOP)
    try:
        for run in (present, absent):
            with pytest.raises(MigrationError, match=r"another run of playbooks/sessions\.yml is under way"):
                run(world, context)
    finally:
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
    assert outcomes(context) == (["begun"], True)
    deadline = time.monotonic() + 10
    while True:  # the workers hold the lock until they have seen that their parent is gone
        with contextlib.suppress(MigrationError):
            result = present(world, context)
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert result["counts"]["carried"] == 20_000
    assert present(world, context)["changed"] is False
    assert outcomes(context) == (["passed", "passed", "begun"], True)
    assert absent(world, context)["counts"]["removed"] == 20_000
    assert outcomes(context) == (["removed", "passed", "passed", "begun"], False)


def test_a_removal_that_was_killed_before_its_record_is_recorded_by_the_next(world: World, context: Context) -> None:
    world.add("user1", logged_in(1))
    present(world, context)
    world.remove()
    assert absent(world, context)["changed"] is False
    assert outcomes(context) == (["removed", "passed", "begun"], False)
    absent(world, context)
    assert outcomes(context) == (["removed", "passed", "begun"], False)


def test_a_preview_says_that_the_real_run_would_refuse(world: World, context: Context) -> None:
    looking = replace(context, check=True)
    assert "would be refused" not in present(world, looking)["msg"]
    with contextlib.closing(control.connect(context.control)) as records:
        driver.rows(records, "UPDATE migration.migrations SET state = 'rolled_back', closed_at = now()")
    refused = "; as things stand it would be refused: no migration is open; run playbooks/preflight.yml and playbooks/snapshot.yml first"
    assert present(world, looking)["msg"].endswith(refused)
    with pytest.raises(MigrationError, match="no migration is open"):
        present(world, context)
