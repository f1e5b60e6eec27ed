# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rehearsal works on copies that it made itself, and its record says how it ended. The whole walk is molecule's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.report import status
from ansible.module_utils.migration.rollback import rehearsal
from ansible.module_utils.migration.rollback.rehearsal import KIND, RehearseOptions
from ansible.module_utils.migration.state import control

from tests.conftest import PROJECT
from tests.walk.environment import Walk, ask, die_in, dying
from tests.walk.fixtures import project_plan, services_server, walk  # noqa: F401


def options(place: Walk) -> RehearseOptions:
    return RehearseOptions("_rehearsal", place.root / "rehearsal", place.taking().dump, place.restoring())


def rehearsed(place: Walk) -> set[str]:
    return {name for name in place.databases() if "_rehearsal" in name}


def outcomes(place: Walk) -> list[str]:
    return [item.outcome for item in reversed(place.history(KIND))]


def test_a_database_that_no_rehearsal_made_is_never_dropped(walk: Walk) -> None:  # noqa: F811
    name = walk.context.targets["user_service"].dbname + "_rehearsal"
    ask(walk.superuser, f"CREATE DATABASE {name}")
    with pytest.raises(MigrationError, match=rf"{name}\): the database exists already, and no rehearsal has left it"):
        rehearsal.begin(walk.context, options(walk))
    assert rehearsed(walk) == {name}
    assert outcomes(walk) == []


def test_a_preview_says_that_the_real_run_would_refuse(walk: Walk) -> None:  # noqa: F811
    assert [line.split()[:2] for line in rehearsal.would(walk.context, options(walk))] == [["would", "make"]] * 3
    with contextlib.closing(control.connect(walk.context.control)) as records:
        control.plan(records, walk.context.plan.digest, walk.context.plan.fingerprint)
        run_id = control.begin(records, walk.context.plan.digest).run_id
    said = [line.partition(",")[0] for line in rehearsal.would(walk.context, options(walk))]
    assert said == [f"as things stand it would be refused: migration {run_id} is open"]


def test_a_name_that_postgresql_would_cut_to_that_of_another_database_is_refused(walk: Walk) -> None:  # noqa: F811
    long = replace(walk.context.targets["user_service"], dbname="d" * 63)
    context = replace(walk.context, targets={**walk.context.targets, "user_service": long})
    with pytest.raises(MigrationError, match=r"_rehearsal is longer than a database's name may be \(63 bytes\); choose a shorter rehearse_suffix"):
        rehearsal.begin(context, options(walk))


@pytest.mark.parametrize(
    ("outcome", "age", "said"),
    [
        ("passed", timedelta(days=3, hours=2), "3 days ago, took 78 s"),
        ("passed", timedelta(hours=1), "1 hour ago, took 78 s"),
        ("failed", timedelta(), "0 seconds ago"),
    ],
)
def test_status_tells_how_old_a_rehearsal_is(outcome: str, age: timedelta, said: str) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert status.remark(status.Step("rehearse", outcome, now - age, (), False, {"seconds": 78.4}), now) == said


@pytest.mark.parametrize(("function", "call"), [("restore", 1), ("restore", 2), ("_drop", 1)])
def test_a_killed_rehearsal_is_on_record_as_failed_and_the_next_begins_anew(
    walk: Walk, monkeypatch: pytest.MonkeyPatch, function: str, call: int  # noqa: F811
) -> None:
    real: dict[str, Any] = {name: walk.content(name) for name in walk.context.plan.services}
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, function, dying(getattr(rehearsal, function), call, after=True))
        die_in(lambda: rehearsal.begin(walk.context, options(walk)))
    rehearsal.begin(walk.context, options(walk))
    assert outcomes(walk) == ["begun", "failed", "begun"]
    assert len(rehearsed(walk)) == 2
    assert list((walk.root / "rehearsal").iterdir()) == [], "no dump of the services is left"
    assert {name: walk.content(name) for name in walk.context.plan.services} == real
    copies = rehearsal.copies(walk.context, "_rehearsal")
    assert control.connect(copies.control).closed == 0
    with pytest.raises(MigrationError, match="no rollback was rehearsed"):
        rehearsal.finish(walk.context, options(walk))
    assert outcomes(walk)[-1] == "failed"
    ask(walk.superuser, f"DROP DATABASE {copies.control.dbname} WITH (FORCE)")


def test_a_folder_that_is_forced_on_the_rehearsal_and_the_real_thing_alike_is_refused() -> None:
    argv = [sys.executable, "-m", "ansible", "playbook", "-i", "inventories/lab", "playbooks/rehearse.yml", "-e", "snapshot_dir=/srv/snapshots"]
    done = subprocess.run(argv, cwd=PROJECT, env={**os.environ, "COLUMNS": "300"}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "snapshot_dir is given with -e, which would send the rehearsal's snapshots there too; name another folder" in " ".join(done.stdout.split())
