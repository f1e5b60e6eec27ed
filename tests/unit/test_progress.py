# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A long step leaves one small file that always parses, and never fails because of it."""

from __future__ import annotations

import json
from pathlib import Path

from ansible.module_utils.migration.progress import SAMPLES, Progress


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def test_the_file_is_replaced_not_more_often_than_the_interval(tmp_path: Path) -> None:
    path, clock = tmp_path / "progress.json", Clock()
    progress = Progress(str(path), clock=clock)
    progress.update("migrate", "users", 1, 10)
    progress.update("migrate", "users", 2, 10)
    assert read(path)["tables"]["users"]["done"] == 1
    clock.now += 1
    progress.update("migrate", "users", 3, 10)
    assert read(path)["tables"]["users"]["done"] == 3
    assert list(tmp_path.iterdir()) == [path]


def test_the_end_of_a_table_is_never_held_back(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    progress = Progress(str(path), clock=Clock())
    progress.update("migrate", "users", 1, 10)
    progress.update("migrate", "users", 10, 10)
    assert read(path)["tables"]["users"]["done"] == 10


def test_the_rate_is_that_of_the_last_seconds(tmp_path: Path) -> None:
    path, clock = tmp_path / "progress.json", Clock()
    progress = Progress(str(path), clock=clock)
    for second in range(60):
        clock.now += 1
        progress.update("migrate", "users", 1000 * min(second, 30), 100_000)
    assert read(path)["tables"]["users"]["rate"] == 0
    assert progress.rates()["users"][0][1] == 0
    assert max(rate for _, rate in progress.rates()["users"]) == 1000


def test_a_day_of_updates_keeps_few_points() -> None:
    clock = Clock()
    progress = Progress(None, clock=clock)
    for step in range(50_000):
        clock.now += 1.7
        progress.update("migrate", "users", step)
    assert len(progress.rates()["users"]) <= SAMPLES


def test_a_folder_that_is_gone_does_not_stop_the_work(tmp_path: Path) -> None:
    Progress(str(tmp_path / "gone" / "progress.json")).update("migrate", "users", 1, 2)


def test_a_note_is_seen_at_once(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    progress = Progress(str(path), clock=Clock())
    progress.update("migrate", "users", 1, 2)
    progress.note("migrate", "paused: CPU 91 %")
    assert read(path)["note"] == "paused: CPU 91 %"


def test_what_an_earlier_run_carried_is_not_this_runs_speed(tmp_path: Path) -> None:
    path, clock = tmp_path / "progress.json", Clock()
    progress = Progress(str(path), clock=clock)
    progress.resume("migrate", "users", 1_000_000, 2_000_000)
    clock.now += 1
    progress.update("migrate", "users", 1_000_500, 2_000_000)
    assert read(path)["tables"]["users"]["rate"] == 500
