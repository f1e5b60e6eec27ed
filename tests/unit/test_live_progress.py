# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress is shown on the controller for any way to the runner, and never where it is not wanted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

PROJECT = Path(__file__).resolve().parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
HERE = Path(__file__).resolve().parent / "action"


@pytest.fixture
def play(tmp_path: Path):
    """Return `run(options, *arguments, **environment)`: a play of one task with the stand-in module."""

    def run(options: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(**command(tmp_path, options, *arguments, **environment), capture_output=True, text=True, timeout=60, check=False)

    return run


def command(tmp_path: Path, options: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Return the arguments of subprocess for a play of one task with the stand-in module."""
    tmp_path.joinpath("ansible.cfg").write_text("[defaults]\n")
    tmp_path.joinpath("play.yml").write_text(f"- hosts: all\n  gather_facts: false\n  tasks:\n    - migration_copy: {options}\n")
    return {
        "args": [PLAYBOOK, "-i", "lab,", "-e", f"ansible_python_interpreter={sys.executable}", *arguments, "play.yml"],
        "cwd": tmp_path,
        "env": {
            **os.environ,
            "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
            "ANSIBLE_LIBRARY": str(HERE / "library"),
            "ANSIBLE_CONNECTION_PLUGINS": str(HERE / "connection"),
            "ANSIBLE_MODULE_UTILS": str(PROJECT / "module_utils"),
            "ANSIBLE_ACTION_PLUGINS": str(PROJECT / "plugins" / "action"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
            "ANSIBLE_ASYNC_DIR": str(tmp_path / "async"),
            "NO_COLOR": "1",
            **environment,
        },
    }


def left(tmp_path: Path) -> list[str]:
    """Return what a run left behind; Ansible's asynchronous wrapper takes a few seconds to clear up after itself."""
    deadline = time.monotonic() + 10
    while (found := _left(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _left(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.glob("remote/*")] + [path.name for path in tmp_path.glob("async/*")]


def test_a_local_module_is_watched(play, tmp_path: Path) -> None:
    done = play("{seconds: 2}", "-c", "local")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("[lab] users ")
    assert re.search(r"ETA \d\d:\d\d$", lines[0])
    assert "[lab] paused: CPU 91 %" in lines
    assert lines[-1] == "[lab] users 100% 2.4M rows"
    assert left(tmp_path) == []


def test_a_remote_module_is_watched_through_lost_connections(play, tmp_path: Path) -> None:
    done = play("{seconds: 4}", "-c", "flaky", "-e", "migration_progress_seconds=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed: [lab]" in done.stdout
    assert "[lab] out of reach (the cable is out); the work goes on there, trying again" in done.stderr
    assert "[lab] users" in done.stderr
    assert left(tmp_path) == []


def test_a_remote_failure_is_the_modules_own(play) -> None:
    done = play("{seconds: 0.1, fail: true}", "-c", "flaky")
    assert done.returncode == 2
    assert '"msg": "bad"' in done.stdout + done.stderr


def test_a_remote_module_that_vanishes_is_not_waited_for(play) -> None:
    done = play("{seconds: 5, die: true}", "-c", "flaky")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ended on the runner without a result" in done.stdout + done.stderr


def test_a_local_module_that_is_killed_says_so_in_one_line(play) -> None:
    done = play("{seconds: 5, die: true}", "-c", "local")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ended on the runner without a result" in done.stdout + done.stderr
    assert "deserialization" not in done.stdout + done.stderr


def _is_module(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "AnsiballZ" in " ".join(process.cmdline())
    return False


def test_a_worker_ends_that_has_a_large_result_for_an_ansible_that_was_killed(tmp_path: Path) -> None:
    running = subprocess.Popen(**command(tmp_path, "{seconds: 1, size: 1000000}", "-c", "local"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ansible = psutil.Process(running.pid)
    deadline = time.monotonic() + 30
    while not any(_is_module(found) for found in ansible.children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.02)
    ansible.suspend()  # reads no result
    time.sleep(3)
    workers = ansible.children(recursive=True)
    assert workers
    running.kill()
    running.wait()
    _, staying = psutil.wait_procs(workers, timeout=10)
    assert not staying


@pytest.mark.parametrize("connection", ["local", "flaky"])
def test_check_mode_reaches_the_module(play, connection: str) -> None:
    done = play("{seconds: 0.1}", "-c", connection, "--check", "-v")
    assert done.returncode == 0
    assert '"checked": true' in done.stdout


def test_json_stays_json_and_quiet(play) -> None:
    done = play("{seconds: 1.5}", "-c", "local", ANSIBLE_STDOUT_CALLBACK="ansible.posix.json")
    assert json.loads(done.stdout)["stats"]["lab"]["ok"] == 1
    assert "users" not in done.stderr


def test_quiet_when_not_wanted(play) -> None:
    done = play("{seconds: 1.5}", "-c", "local", "-e", "migration_progress=false")
    assert done.returncode == 0
    assert done.stderr == ""
