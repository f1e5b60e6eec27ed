# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A validation tells the truth while somebody writes to the monolith and to a service all the time, and comes to an end."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.state import control
from ansible.module_utils.migration.validate import drilldown
from ansible.module_utils.migration.validate import run as validate
from ansible.modules import migration_validate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.database.test_verify import ask, lines, run
from tests.mutation import world as w

LIVE = validate.Options(settle_attempts=3, settle_seconds=0.05)
# One statement, one transaction; what is changed is changed back by the next. {n} goes through the users.
ONE, OTHER = "(SELECT id FROM auth_user ORDER BY id OFFSET {n} LIMIT 1)", "(SELECT id FROM auth_user ORDER BY id OFFSET {m} LIMIT 1)"
FLIP = f"UPDATE auth_user SET is_active = NOT is_active WHERE id = {ONE}"
SWAP = f"UPDATE auth_user AS u SET email = o.email FROM auth_user AS o WHERE (u.id, o.id) IN (({ONE}, {OTHER}), ({OTHER}, {ONE}))"
MONOLITH = (
    "INSERT INTO auth_user SELECT 2000000000 + {turn}, '!', NULL, false, 'new{turn}', '', '', 'new{turn}@x', false, true, now()",
    "DELETE FROM auth_user WHERE id > 2000000000",
    FLIP,
    FLIP,
    SWAP,
    SWAP,
    f"UPDATE users_profile SET bio = bio WHERE user_id = {ONE}",
)
SERVICE = (
    "UPDATE user_service.roles SET is_active = NOT is_active WHERE id = (SELECT id FROM user_service.roles ORDER BY id OFFSET {n} LIMIT 1)",
    "UPDATE user_service.roles SET is_active = NOT is_active WHERE id = (SELECT id FROM user_service.roles ORDER BY id OFFSET {n} LIMIT 1)",
    "INSERT INTO user_service.profiles (user_id, profile_type) SELECT user_id, 'own' FROM user_service.profiles LIMIT 1",
    "DELETE FROM user_service.profiles WHERE profile_type = 'own'",
)


@pytest.fixture
def world(postgres: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    return w.cloned_world(postgres, databases)


def write(endpoint: Endpoint, statements: tuple[str, ...], stop: threading.Event, done: list[int]) -> None:
    """Write without a pause until `stop`, and leave everything as it was."""
    connection = connect(endpoint, application_name="tests", autocommit=True)
    with connection.cursor() as cursor:
        for turn in itertools.count(1):
            for statement in statements:
                cursor.execute(statement.format(turn=turn, n=turn % 100 + 1, m=(turn + 50) % 100 + 1))
                done.append(1)
            if stop.is_set():
                break
    connection.close()


@pytest.fixture
def busy(world: w.World) -> Iterator[list[int]]:
    """Have a writer on the monolith and one on a service; the list grows with each transaction."""
    stop, done = threading.Event(), list[int]()
    writers = [
        threading.Thread(target=write, args=(end, what, stop, done)) for end, what in ((world.source, MONOLITH), (world.targets["user_service"], SERVICE))
    ]
    for writer in writers:
        writer.start()
    yield done
    stop.set()
    for writer in writers:
        writer.join()


def test_a_writer_that_never_stops_makes_no_difference_and_hides_none(world: w.World, busy: list[int]) -> None:
    before = len(busy)
    found = validate.compare(world.context, w.PLAN_TIME, options=LIVE)
    assert found.passed, lines(found)
    assert len(busy) > before + 10
    assert found.consistency.startswith(("judged at one consistent point of each database", "differences were read again until none was left"))
    assert "nobody wrote" not in found.consistency
    changed = ask(world.targets["user_service"], "SELECT id FROM user_service.student_profiles ORDER BY id LIMIT 1")
    gone = ask(world.targets["auth_service"], "SELECT id FROM auth_service.user_permissions ORDER BY id LIMIT 1")
    run(world.targets["user_service"], f"UPDATE user_service.student_profiles SET program = program || 'x' WHERE id = '{changed}'")
    run(world.targets["auth_service"], f"DELETE FROM auth_service.user_permissions WHERE id = '{gone}'")
    found = validate.compare(world.context, w.PLAN_TIME, options=LIVE)
    assert {(finding.kind, finding.id) for finding in found.findings} == {("different", changed), ("missing", gone)}
    assert "persisted (3 attempts): the databases are written to" in found.consistency


def test_all_checks_of_a_validation_pass_while_somebody_writes(world: w.World, busy: list[int]) -> None:
    with contextlib.closing(control.connect(world.context.control)) as records:
        control.plan(records, world.context.plan.digest, world.context.plan.fingerprint)
        live = dataclasses.replace(control.begin(records, world.context.plan.digest), plan_time=w.PLAN_TIME)
        params: dict[str, Any] = {
            "tables": None, "digest": "auto", "workers": 2, "parallel_workers": 0, "settle_attempts": 3, "settle_seconds": 0.05, "findings_kept": 100,
            "service_rows": "auto", "resume": False, "authorisation": True, "canaries": [], "baseline": False,
        }  # fmt: skip
        for _ in range(3):
            validation = migration_validate._validate(world.context, params, live, records, Progress(None))
            assert validation["passed"], (validation["verdict"], validation["lines"])


def test_a_row_that_differs_and_is_then_deleted_from_the_monolith_stays_a_difference(world: w.World, monkeypatch: pytest.MonkeyPatch) -> None:
    run(world.source, "UPDATE institutions SET name = name", "UPDATE users_profile SET city = 'x' WHERE id = (SELECT max(id) FROM users_profile)")

    def meanwhile(seconds: float) -> None:
        run(world.source, "DELETE FROM users_profile WHERE id = (SELECT max(id) FROM users_profile WHERE city = 'x')", "UPDATE institutions SET name = name")

    def touch(what: str, done: int, total: int) -> None:
        run(world.source, "UPDATE institutions SET name = name")

    monkeypatch.setattr(drilldown.time, "sleep", meanwhile)
    found = validate.compare(world.context, w.PLAN_TIME, options=LIVE, progress=touch)
    assert [finding.target for finding in found.findings] == ["user_service.profiles"], found.consistency
