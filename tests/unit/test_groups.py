# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A playbook that would do nothing fails: missing groups, a limit that empties a play, a mistyped inventory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
PLAY = """
- name: Groups
  hosts: all
  gather_facts: false
  tasks:
    - name: Check the groups
      ansible.builtin.import_tasks: {tasks}
      vars:
        __groups_needed: {needed}
"""


def play(tmp_path: Path, needed: list[str], *arguments: str) -> tuple[int, str]:
    """Return how a playbook that needs these groups ends, and what it says."""
    file = tmp_path / "play.yml"
    file.write_text(PLAY.format(tasks=PROJECT / "playbooks" / "tasks" / "groups.yml", needed=needed))
    return command(*arguments, str(file))


def command(*arguments: str) -> tuple[int, str]:
    """Return how ansible-playbook ends and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", *arguments],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("arguments", [(), ("--limit", "runners:auth_service")])
def test_a_play_with_all_its_groups_passes(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert play(tmp_path, ["runners", "databases"], *arguments)[0] == 0


def test_a_group_that_the_inventory_has_not_got_is_named(tmp_path: Path) -> None:
    status, said = play(tmp_path, ["runners", "target", "stores"])
    assert status != 0
    assert "the inventory has no group target, stores" in said


def test_a_limit_that_empties_a_later_play_is_an_error(tmp_path: Path) -> None:
    status, said = play(tmp_path, ["targets", "source", "runners"], "--limit", "user_service")
    assert status != 0
    assert "no host of the group source, runners is left by --limit user_service" in said


@pytest.mark.parametrize("name", sorted(path.name for path in (PROJECT / "playbooks").glob("*.yml")))
def test_a_phase_that_does_every_service_from_a_runner_refuses_a_limit_to_one(name: str) -> None:
    if name in ("site.yml", "lab.yml", "status.yml"):
        pytest.skip("made of others, without services, or a look that shows all and does nothing")
    limits = ("auth_service,monolith,migration_control,runners", "auth_service", "all:!sessions") if name == "migrate.yml" else ("all:!user_service",)
    plays = yaml.safe_load((PROJECT / "playbooks" / name).read_text(encoding="utf-8"))
    narrows = any("targets" in play.get("hosts", "") for play in plays)
    for limit in limits:
        said = command("--limit", limit, "--check", f"playbooks/{name}")[1]
        refused = f"this playbook always works on every host of targets and cannot leave out user_service, as --limit {limit} asks for; nothing was begun."
        assert (refused in said) is (not narrows and limit != "all:!sessions")


@pytest.mark.parametrize("chosen", ["--tags validate", "--skip-tags always", "--start-at-task=Show"])
def test_a_run_that_leaves_out_tasks_is_refused_before_anything(chosen: str) -> None:
    for name in ("validate.yml", "site.yml") if chosen == "--tags validate" else ("rollback.yml",):
        status, said = command(*chosen.split(), f"playbooks/{name}")
        assert status != 0
        assert f"{chosen.replace('=', ' ')} leaves out tasks, and a phase is done as a whole or not at all; nothing was begun." in said
        assert "TASK" not in said


def test_every_playbook_refuses_it_and_no_play_follows_the_strategy_of_the_environment() -> None:
    for path in (PROJECT / "playbooks").glob("*.yml"):
        plays = [play for play in yaml.safe_load(path.read_text(encoding="utf-8")) if "hosts" in play]
        assert [play["name"] for play in plays if play.get("strategy") != "linear"] == []
        assert path.stem == "site" or "whole_run" in plays[0]["hosts"], path.name


def test_a_mistyped_inventory_is_an_error(tmp_path: Path) -> None:
    assert play(tmp_path, ["runners"], "-i", "inventories/prd")[0] != 0


def test_a_rollback_may_be_limited_to_one_service() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "playbooks/rollback.yml", "--limit", "user_service", "--list-hosts"],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.strip() for line in done.stdout.splitlines() if line.startswith("      ")] == ["user_service", "user_service"]


def test_a_service_that_fails_a_phase_of_its_own_ends_the_run() -> None:
    every = [play for path in (PROJECT / "playbooks").glob("*.yml") for play in yaml.safe_load(path.read_text(encoding="utf-8"))]
    plays = [play for play in every if play.get("hosts") == "targets"]
    assert len(plays) >= 2
    assert [play["name"] for play in plays if play.get("any_errors_fatal") is not True] == []
