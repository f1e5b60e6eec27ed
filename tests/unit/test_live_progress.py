# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress is shown on the controller for any way to the runner, and never where it is not wanted."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.action_play import command, left


@pytest.fixture
def play(tmp_path: Path):
    """Return `run(options, *arguments, **environment)`: a play of one task with the stand-in module."""

    def run(options: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(**command(tmp_path, options, *arguments, **environment), capture_output=True, text=True, timeout=60, check=False)

    return run


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
