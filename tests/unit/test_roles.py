# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles' tasks say is true of the run that says it: of a preview, of a runner that is alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]


def tasks(role: str) -> Iterator[dict[str, Any]]:
    """Yield the tasks of a role's main.yml, those of blocks too."""
    left = yaml.safe_load((PROJECT / "roles" / role / "tasks" / "main.yml").read_text(encoding="utf-8"))
    while left:
        task = left.pop(0)
        left += task.get("block", []) + task.get("rescue", [])
        yield task


def played(tmp_path: Path, task: dict[str, Any], variables: dict[str, Any], *arguments: str) -> str:
    """Return what ansible-playbook says when it plays one task of a role."""
    (tmp_path / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "vars": variables, "tasks": [task]}]))
    command = [sys.executable, "-m", "ansible", "playbook", *arguments, "play.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def named(role: str, name: str) -> dict[str, Any]:
    return next(task for task in tasks(role) if task["name"] == name)


@pytest.mark.parametrize(("mode", "passes"), [((), True), (("--check",), False)])
def test_a_preview_does_not_claim_that_nothing_differs(tmp_path: Path, mode: tuple[str, ...], passes: bool) -> None:
    result = {"passed": True, "verdict": "", "next": {"command": "", "why": ""}, "lines": [], "run_id": ""}
    variables = {"__validate_result": result, "migration_artifacts_dir": "."}
    said = played(tmp_path, named("validate", "Require that nothing differs"), variables, "-i", "one,", *mode)
    assert ("ok: [one]" in said) is passes


@pytest.mark.parametrize(("runners", "others"), [("one,", False), ("one,two,", True)])
def test_a_runner_that_is_alone_leaves_nothing_to_others(tmp_path: Path, runners: str, others: bool) -> None:
    assert ("one did not finish" in played(tmp_path, named("migrate", "Leave the chunks of this runner to the others"), {}, "-i", runners)) is others


def test_repair_does_not_validate_in_a_preview() -> None:
    plays = yaml.safe_load((PROJECT / "playbooks" / "repair.yml").read_text(encoding="utf-8"))
    assert [role.get("when") for role in plays[-1]["roles"] if role["role"] == "validate"] == ["not ansible_check_mode"]


@pytest.mark.parametrize(("lines", "said"), [([], False), (["would make"], True)])
def test_a_stage_of_the_rehearsal_without_lines_says_nothing(tmp_path: Path, lines: list[str], said: bool) -> None:
    assert ("ok: [one]" in played(tmp_path, named("rehearse", "Say what was done"), {"__rehearse_result": {"lines": lines}}, "-i", "one,")) is said
