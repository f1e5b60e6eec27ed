# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two runners share a migration through Ansible; one of them is killed, the other finishes, the ledger judges."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
SLOW = {"migrate_limits": {"rows_per_second": 300, "cpu_percent": 0}, "migrate_chunk_rows": 100}


def play(inventory: Path, name: str, **extra: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(inventory, name, extra), cwd=PROJECT, capture_output=True, text=True, check=False)


def command(inventory: Path, name: str, extra: dict[str, object]) -> list[str]:
    artifacts = inventory.parents[1] / "artifacts"  # not in the inventory's folder, whose files Ansible would read as inventories
    return [str(PLAYBOOK), f"playbooks/{name}.yml", "-i", str(inventory), "-e", json.dumps({"migration_artifacts_dir": str(artifacts), **extra})]


@pytest.fixture
def inventory(tmp_path: Path) -> Iterator[Path]:
    """A lab of its own whose inventory has two runners."""
    place = tmp_path / "inventories" / "pair"
    for name in ("group_vars", "host_vars"):
        subprocess.run(["cp", "-RL", str(PROJECT / "inventories" / "lab" / name), str(tmp_path / name)], check=True)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(place / name)
    for path in place.rglob("lab.yml"):
        path.unlink()
    hosts = yaml.safe_load((PROJECT / "inventories" / "lab" / "hosts.yml").read_text(encoding="utf-8"))
    hosts["all"]["children"]["runners"]["hosts"] = {"runner1": {}, "runner2": {}}
    (place / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
    started = play(place, "lab", lab_users=600)
    assert started.returncode == 0, started.stdout
    yield place
    play(place, "lab", lab_state="absent")


def modules(root: int) -> list[psutil.Process]:
    """Return the processes of migration_copy itself, without their workers."""
    found = {}
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()  # a module is piped to a bare interpreter
            if len(words) == 1 and "python" in words[0]:
                found[process.pid] = process
    return [process for process in found.values() if process.ppid() not in found]


def test_the_survivor_finishes_and_the_lost_runner_is_named(inventory: Path) -> None:
    for name in ("preflight", "snapshot", "schema"):
        done = play(inventory, name)
        assert done.returncode == 0, done.stdout
    remote = inventory.parents[1] / "remote"
    environment = {**os.environ, "ANSIBLE_REMOTE_TEMP": str(remote)}
    running = subprocess.Popen(
        command(inventory, "migrate", dict(SLOW)), cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(modules(running.pid)) < 2:
        time.sleep(0.05)
    time.sleep(1.0)
    victims = modules(running.pid)
    assert len(victims) == 2, running.communicate()[0]
    written = {path.name for path in remote.rglob("*") if path.is_file()}
    assert written <= {"progress.json"}, written  # no module, whose arguments have passwords
    victims[1].kill()
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 0, output
    lost = "every chunk is carried, although a runner was lost: runner"
    assert lost in " ".join(output.split()), output  # the callback folds long lines
    assert "the module ended on the runner without a result" in " ".join(output.split()), output
    proven = play(inventory, "index").returncode, play(inventory, "validate").returncode
    assert proven == (0, 0)
