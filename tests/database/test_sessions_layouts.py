# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What services of every kind find in the store: JSON, cached_db with its rows, and one that is not written in Django."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.sessions import signing
from ansible.module_utils.migration.sessions.cache_layout import Layout
from ansible.module_utils.migration.sessions.reset_links import TEXT

from tests.sessions_world import SECRET, SERVICE, TABLE, UUID, World, logged_in, sessions_world


@pytest.fixture
def world(databases: Callable[..., driver.Endpoint], valkey: Any) -> Iterator[World]:
    with sessions_world(databases, valkey) as made:
        yield made


@pytest.mark.parametrize("layout", [Layout("cached_db", "svc", 2, "json"), Layout("neutral", "app:")])
def test_other_layouts_are_json(world: World, layout: Layout) -> None:
    world.add("user1", logged_in(1, cart=["\U0001f600"]))
    assert world.carry(layout=layout).written == 1
    stored = json.loads(world.redis.get(layout.key_prefix + "user1"))
    assert (stored["user_id"] if layout.engine == "neutral" else stored["_auth_user_id"]) == UUID.format(1)
    with pytest.raises(MigrationError, match="sessions_state=absent"):
        world.carry()
    assert world.remove(layout)["removed"] == 1


def test_a_session_that_cannot_be_written_is_rejected_and_stops_no_other(world: World) -> None:
    world.add("user1", logged_in(1))
    deep: list[Any] = []
    for _ in range(800):
        deep = [deep]
    world.add("deep", {"deep": deep})  # Python 3.11 reads that and cannot pickle it, later ones can
    result = world.carry()
    assert result.carried + result.rejected.get("unwritable", 0) == result.live == 2
    assert world.redis.exists(world.key("user1"))
    assert not world.carry().changed
    world.remove()
    world.add("nan", {"price": float("nan")})
    neutral = Layout("neutral", "app:")
    assert world.carry(layout=neutral).rejected["unwritable"] >= 1
    assert not world.redis.exists("app:session:nan")
    for name in world.redis.keys("app:session:*"):
        json.loads(world.redis.get(name), parse_constant=pytest.fail)


@pytest.mark.parametrize("workers", [1, 2])
def test_cached_db_gets_a_row_for_each_session_and_keeps_those_that_the_service_wrote(world: World, workers: int) -> None:
    layout, table = Layout("cached_db"), "public.own"
    world.execute(TABLE.replace("django_session", "own"))
    for name in ("same", "changed", "logout", "saved", "odd\t\\key"):
        world.add(name, logged_in(1))
    if workers > 1:
        many = "INSERT INTO django_session SELECT md5(n::text), %s, now() + interval '1 hour' FROM generate_series(1, 900) n"
        world.execute(many, signing.encode({}, SECRET))
    options: dict[str, Any] = {"layout": layout, "table": table, "service_secret_key": SERVICE, "workers": workers, "batch": 100}
    everything = "SELECT session_key, session_data, extract(epoch FROM expire_date)::bigint FROM {} ORDER BY 1"
    assert world.carry(write=False, **options).service_rows == world.carry(write=False, **options).written
    assert world.rows(everything.format("own")) == []
    assert world.carry(**options).service_rows == len(world.rows(everything.format("own"))) == len(world.rows(everything.format("django_session")))
    assert [row[::2] for row in world.rows(everything.format("own"))] == [
        row[::2] for row in world.rows(everything.format("django_session").replace("extract(epoch FROM expire_date)", "floor(extract(epoch FROM expire_date))"))
    ]
    assert signing.decoder([SERVICE])(dict(row[:2] for row in world.rows(everything.format("own")))["same"]) == {
        **logged_in(1, SERVICE),
        "_auth_user_id": UUID.format(1),
    }
    assert not world.carry(**options).changed
    world.execute("DELETE FROM own WHERE session_key = 'same'")  # as if the run had been killed between the store and the table
    foreseen = world.carry(write=False, **options)
    assert (foreseen.service_rows, foreseen.written, foreseen.changed) == (1, 0, True)
    assert world.carry(**options).service_rows == 1
    world.execute("UPDATE own SET session_data = %s WHERE session_key = 'saved'", signing.encode({"cart": "the service's"}, SERVICE, stamp="1tR0Q0"))
    world.add("changed", logged_in(1, cart=[2]))
    world.add("saved", logged_in(1, cart=["the monolith's"]))
    world.execute("DELETE FROM django_session WHERE session_key = 'logout'")
    result = world.carry(**options)
    assert (result.updated, result.removed, result.service_rows) == (2, 1, 1)
    kept = dict(row[:2] for row in world.rows(everything.format("own")))
    assert "logout" not in kept
    assert signing.decoder([SERVICE])(kept["changed"])["cart"] == [2]
    assert signing.decoder([SERVICE])(kept["saved"])["cart"] == "the service's"
    world.remove(layout, table)
    assert [key for key, _, _ in world.rows(everything.format("own"))] == ["saved"]


def test_a_service_without_django_does_with_sessions_what_the_documentation_says(world: World) -> None:
    for name in ("first", "second", "third"):
        world.add(name, logged_in(1, cart=[1]), seconds=500)
    world.add("inactive", logged_in(2))
    world.add("visitor", {"cart": [2]})
    layout = Layout("neutral")
    world.carry(layout=layout, user_index="user_sessions:")
    text = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import json\n.*?)```", text, re.DOTALL)
    assert code is not None
    at = world.options
    service: dict[str, Any] = {
        "REDIS_URL": f"redis://:{at.password}@{at.hosts[0].host}:{at.hosts[0].port}/{at.db}",
        "is_active": lambda user_id: user_id != UUID.format(2),
    }
    exec(code[1], service)
    session = service["session_of"]("first")
    assert (session["user_id"], session["data"]) == (UUID.format(1), {"cart": [1]})
    assert service["session_of"]("visitor")["user_id"] is None
    assert service["session_of"]("inactive") is service["session_of"]("unknown") is service["session_of"]("first*") is None
    service["save"]("first", {**session, "data": {"cart": [1, 2]}})
    assert service["session_of"]("first")["data"] == {"cart": [1, 2]}
    assert 480 < world.redis.ttl("session:first") <= 500
    service["log_out"]("second")
    service["save"]("second", session)
    assert service["session_of"]("second") is None
    result = world.carry(layout=layout, user_index="user_sessions:")
    assert (result.changed, result.service, result.ended_in_service) == (False, 1, 1)
    service["log_out_everywhere"](UUID.format(1))
    assert service["session_of"]("first") is service["session_of"]("third") is None
    assert service["session_of"]("visitor")["data"] == {"cart": [2]}


def test_the_documentation_has_the_text_to_announce() -> None:
    text = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text(encoding="utf-8")
    assert TEXT in " ".join(line.removeprefix("> ") for line in text.splitlines())
