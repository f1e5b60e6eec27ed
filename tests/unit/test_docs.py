# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation points at is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", PROJECT / "awx" / "README.md", *sorted((PROJECT / "docs").glob("*.md")), *sorted((PROJECT / "roles").glob("*/README.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_and_playbooks_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    playbooks = re.findall(r"playbooks/[a-z_]+\.yml", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert [name for name in playbooks if not (PROJECT / name).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_a_command_to_copy_names_its_inventory(path: Path) -> None:
    commands = re.findall(r"^ansible-playbook playbooks/.*", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert [line for line in commands if " -i inventories/" not in line and "playbooks/lab.yml" not in line] == []


def test_ansible_doc_shows_every_module_from_a_clone() -> None:
    modules = sorted(path.stem for path in (PROJECT / "library").glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "doc", "-t", "module", "-M", "library", "--json", *modules],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    shown = json.loads(done.stdout)
    assert sorted(shown) == modules, done.stderr
    options = shown["migration_sessions"]["doc"]["options"]
    assert {"connections", "store", "secret_key"} <= set(options)  # of both fragments, and its own


def test_the_readmes_table_has_every_playbook() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(roles/", (PROJECT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (PROJECT / "playbooks").glob("*.yml") if path.stem != "site")


@pytest.mark.parametrize("path", sorted((PROJECT / "roles").iterdir()), ids=lambda path: path.name)
def test_every_role_is_complete(path: Path) -> None:
    for name in ("README.md", "defaults/main.yml", "meta/argument_specs.yml", "tasks/main.yml"):
        assert (path / name).is_file(), name
