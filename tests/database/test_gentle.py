# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running transfer gives way to pressure, says why, goes on by itself, and follows limits that are changed meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import connect
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair import reconcile
from ansible.module_utils.migration.state import exported_snapshot, limits
from ansible.module_utils.migration.throttle import monitor
from ansible.module_utils.migration.transfer import run as transfer

from tests.database.test_transfer import FREE, PLAN_TIME, RUN_ID, SERVICES, expected, on, options, world

__all__ = ["world"]  # the fixture


class Running:
    """A transfer in a thread, with the notes of its progress file."""

    def __init__(self, context: Context, folder: Path, **chosen: object) -> None:
        self.context, self.path, self.notes = context, folder / "progress.json", [""]
        slow = dataclasses.replace(FREE, rows_per_second=800)
        self._options = options(**{"limits": slow, **chosen})
        self._done = threading.Event()

    def __enter__(self) -> Running:
        self._pool = ThreadPoolExecutor(max_workers=2)
        progress = Progress(str(self.path), interval=0)
        self.outcome = self._pool.submit(transfer.run, self.context, PLAN_TIME, RUN_ID, self._options, progress, reconcile.reconcile)
        self._pool.submit(self._look)
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._pool.shutdown(wait=True)

    def _look(self) -> None:
        while not self._done.wait(0.02):
            with contextlib.suppress(OSError):
                note = json.loads(self.path.read_text(encoding="utf-8"))["note"]
                if note != self.notes[-1]:
                    self.notes.append(note)

    def control(self, name: str, value: float) -> None:
        """Change a limit, once there is a ledger."""
        text = f"INSERT INTO migration.controls VALUES ('{name}', {value}) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        for _ in range(200):
            with contextlib.suppress(Exception):
                on(self.context.targets["user_service"], text)
                return
            time.sleep(0.05)
        raise AssertionError("there is no ledger")

    def wait_for(self, text: str) -> None:
        """Wait for a note that contains the text; an empty text waits for none."""
        for _ in range(400):
            if text in self.notes[-1] if text else self.notes[-1] == "":
                return
            time.sleep(0.05)
        raise AssertionError((text, self.notes))


@contextlib.contextmanager
def long_transaction(context: Context) -> Iterator[None]:
    connection = connect(context.source, application_name="somebody")
    driver.rows(connection, "SELECT 1")
    yield
    connection.close()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "LOOK", 0.2)


def test_each_threshold_pauses_says_why_and_lets_go(world: Context, tmp_path: Path) -> None:
    with Running(world, tmp_path) as running, long_transaction(world):
        for name, below, says in (
            ("memory_percent", 0.001, "paused: memory "),
            ("disk_percent", 0.001, "paused: disk "),
            ("transaction_seconds", 0.001, "paused: a transaction has been open on "),
            ("pause", 1, "paused: the ledger's control row 'pause' is set"),
        ):
            running.control(name, below)
            running.wait_for(says)
            running.control(name, 0)
            running.wait_for("")
        running.control("rows_per_second", 0)
        outcome = running.outcome.result(timeout=60)
    assert outcome.changed
    assert sum(table.rows for table in outcome.tables) > 0
    assert {table.target: table.chunks for table in outcome.tables} == {table.target: table.chunks_done for table in outcome.tables}


def test_a_pause_that_stood_before_it_began_holds_from_the_first_chunk_on(world: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "LOOK", 1.0)
    transfer.prepare(world, PLAN_TIME, RUN_ID, options())
    on(world.targets["user_service"], "INSERT INTO migration.controls VALUES ('pause', 1)")
    with Running(world, tmp_path, limits=FREE) as running:
        running.wait_for("paused: the ledger's control row 'pause' is set")
        begun = sum(count for count, _ in transfer.rows_by_target(world).values())
        running.control("pause", 0)
        outcome = running.outcome.result(timeout=60)
    assert begun == 0
    assert outcome.changed


def test_a_rate_that_was_set_before_it_began_is_followed_at_once(world: Context) -> None:
    transfer.prepare(world, PLAN_TIME, RUN_ID, options())
    on(world.targets["auth_service"], "INSERT INTO migration.controls VALUES ('rows_per_second', 100)")
    shared = [0.0, 0.0, 0.0]
    with monitor.Watch(world, PLAN_TIME, SERVICES, FREE, 2, shared, lambda text: None):
        seen = list(shared)
    assert seen == [50.0, 0.0, 0.0]


def test_a_busy_processor_is_named_and_an_idle_one_is_not() -> None:
    limits.runner_pressure(FREE)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    strict = dataclasses.replace(FREE, cpu_percent=0.001)
    assert "CPU" in (limits.runner_pressure(strict) or "")
    assert limits.runner_pressure(FREE) is None
    assert psutil.cpu_percent() >= 0


def test_limits_that_change_while_it_runs_are_followed(world: Context, tmp_path: Path) -> None:
    with Running(world, tmp_path, limits=dataclasses.replace(FREE, rows_per_second=100)) as running:
        running.control("rows_per_second", 1_000_000)
        started = time.monotonic()
        running.outcome.result(timeout=60)
    assert time.monotonic() - started < sum(expected(world).values()) / 100 / 3  # at the first rate it would have taken that three times


def test_a_replica_that_is_behind_is_named(world: Context, postgres: PostgresServer) -> None:
    connection = connect(world.source, application_name="tests", autocommit=True)
    try:
        assert limits.database_pressure(connection, "monolith", FREE) is None  # there is no replica
        # What a lagging replica looks like to this query: a view of the same name that comes first.
        driver.rows(connection, "CREATE TEMPORARY VIEW pg_stat_replication AS SELECT interval '75 s' AS replay_lag")
        driver.rows(connection, "SET search_path = pg_temp, pg_catalog")
        assert limits.database_pressure(connection, "monolith", FREE) == "a replica of monolith is 75 s behind (limit 60 s)"
    finally:
        connection.close()


def test_a_snapshot_is_as_old_as_its_export_and_one_new_one_is_shared(world: Context, tmp_path: Path) -> None:
    transfer.prepare(world, PLAN_TIME, RUN_ID, options())
    with exported_snapshot.Snapshots(world, "runner1", PLAN_TIME) as first, exported_snapshot.Snapshots(world, "runner2", PLAN_TIME) as second:
        one = first.join_or_export()
        on(world.targets["auth_service"], "UPDATE migration.epochs SET exported_at = exported_at - interval '1 hour'")
        assert second.join_or_export() == one
        assert second.age > 3600
        assert first.age < 60
        assert first.renew() == second.renew() != one


def test_a_snapshot_that_ages_is_told_and_renewed(world: Context, tmp_path: Path) -> None:
    with Running(world, tmp_path, snapshot_max_age=2.0, limits=dataclasses.replace(FREE, rows_per_second=800)) as running:
        running.wait_for("the snapshot is 0 minutes old; it is renewed after 0")
        running.control("rows_per_second", 0)
        outcome = running.outcome.result(timeout=60)
    assert outcome.tables
