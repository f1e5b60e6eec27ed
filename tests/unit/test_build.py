# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds run side by side only where their locks allow it, and a foreign key waits for the keys it needs."""

from __future__ import annotations

import threading

import pytest
from ansible.module_utils.migration.schema.build import Built, _Schedule, _Task
from ansible.module_utils.migration.schema.ddl import Action, Step


def action(kind: str, name: str, *tables: str, shared: bool = True, steps: int = 1) -> Action:
    return Action(kind, name, tuple(Step(f"{name} {number}", shared) for number in range(steps)), tables)


def taken(schedule: _Schedule) -> _Task:
    task = schedule.take()
    assert task is not None
    return task


def would_wait(schedule: _Schedule) -> bool:
    """Return whether a further worker gets nothing now."""
    return not any(not task.running and schedule._free(task) for task in schedule.tasks)


def test_indexes_of_one_table_are_built_side_by_side() -> None:
    schedule = _Schedule([action("index", "one", "t"), action("index", "two", "t")], lambda _: None)
    assert [taken(schedule).action.object, taken(schedule).action.object] == ["one", "two"]


def test_a_step_with_a_strong_lock_waits_for_its_table_alone() -> None:
    schedule = _Schedule([action("index", "one", "t"), action("check", "two", "t", shared=False), action("check", "three", "u", shared=False)], lambda _: None)
    assert [taken(schedule).action.object, taken(schedule).action.object] == ["one", "three"]
    assert would_wait(schedule)


@pytest.mark.parametrize("kind", ["primary_key", "unique"])
def test_a_foreign_key_waits_for_the_keys_of_its_tables(kind: str) -> None:
    announced: list[Built] = []
    schedule = _Schedule([action("foreign_key", "far", "t", "u", shared=False), action(kind, "key", "u", steps=2)], announced.append)
    for _ in range(2):
        task = taken(schedule)
        assert task.action.object == "key"
        assert would_wait(schedule)
        schedule.done(task, 0.5)
    assert [(item.object, item.seconds) for item in announced] == [("key", 1.0)]
    assert taken(schedule).action.object == "far"


def test_after_a_failure_nothing_more_is_handed_out() -> None:
    schedule = _Schedule([action("index", "one", "t"), action("check", "two", "t", shared=False)], lambda _: None)
    taken(schedule)
    got: list[_Task | None] = []
    waiting = threading.Thread(target=lambda: got.append(schedule.take()))
    waiting.start()
    schedule.fail(RuntimeError("first"))
    schedule.fail(RuntimeError("second"))
    waiting.join(5)
    assert got == [None]
    assert str(schedule.failure) == "first"
