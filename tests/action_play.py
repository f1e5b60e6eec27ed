# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A play of one task with the stand-in module, for the tests of the action plugin."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
HERE = PROJECT / "tests" / "unit" / "action"


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
