# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making the virtual environment, and what is installed where."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
SETUP = PROJECT / "tests" / "setup.sh"


def test_setting_up_never_empties_what_a_link_points_to(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "precious").touch()
    link = tmp_path / "venv"
    link.symlink_to(shared)
    done = subprocess.run(["sh", str(SETUP), sys.executable, str(link)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is a link" in done.stderr
    assert [item.name for item in shared.iterdir()] == ["precious"]


def locked(name: str) -> dict[str, set[str]]:
    """Return the versions of each package of a lock; every one has a hash."""
    found: dict[str, set[str]] = {}
    entries = re.split(r"\n(?=\S)", (PROJECT / name).read_text(encoding="utf-8"))
    for entry in entries:
        match = re.match(r"([a-z0-9-]+)==(\S+)", entry)
        assert match, f"{name} has a line that is no pinned package: {entry.splitlines()[0]}"
        assert "--hash=sha256:" in entry, f"{name} installs {match[1]} without a hash"
        found.setdefault(match[1], set()).add(match[2])
    return found


def direct(name: str) -> set[str]:
    """Return the packages that a list of direct dependencies names."""
    lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
    return {re.split(r"[<>=\s]", line)[0].lower() for line in lines if line[:1].isalpha()}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-runner.txt", "requirements-setup.txt"])
def test_every_package_is_locked_with_a_hash(name: str) -> None:
    assert direct(name.replace(".txt", ".in")) <= set(locked(name))


def test_a_runner_gets_the_tested_versions_and_nothing_of_the_lab_or_the_tests() -> None:
    whole, runner = locked("requirements.txt"), locked("requirements-runner.txt")
    assert {name: versions for name, versions in runner.items() if not versions <= whole[name]} == {}
    assert not set(runner) & (direct("requirements.in") - direct("requirements-runner.in"))


def test_the_execution_environment_is_pinned() -> None:
    said = yaml.safe_load((PROJECT / "execution-environment.yml").read_text(encoding="utf-8"))
    assert re.search(r"@sha256:[0-9a-f]{64}$", said["images"]["base_image"]["name"])
    assert "python" not in said["dependencies"], "its Python packages are the locked ones"
    for key in ("ansible_core", "ansible_runner"):
        assert re.fullmatch(r"[a-z-]+==[0-9.]+", said["dependencies"][key]["package_pip"])
    assert said["dependencies"]["ansible_core"]["package_pip"].partition("==")[2] in locked("requirements.txt")["ansible-core"]
    assert any("--require-hashes" in step for step in said["additional_build_steps"]["append_final"])


def test_setting_up_installs_nothing_without_a_hash() -> None:
    text = SETUP.read_text(encoding="utf-8")
    installs = [line for line in text.splitlines() if re.search(r"with_pip |uv\" pip install", line) and "with_pip()" not in line]
    assert installs
    assert all("--require-hashes" in line for line in installs)
