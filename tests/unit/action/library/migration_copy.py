#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in that only makes progress, for the tests of the action plugin."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from ..module_utils.migration.module import MigrationModule
from ..module_utils.migration.progress import Progress


def lose_the_machine() -> None:
    """Kill Ansible's asynchronous wrapper and this process, so that nobody writes a result."""
    parent = os.getppid()
    above = int(Path(f"/proc/{parent}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])
    for number in (above, parent, os.getpid()):
        if number == os.getpid() or "async_wrapper" in Path(f"/proc/{number}/cmdline").read_text(encoding="utf-8"):
            os.kill(number, signal.SIGKILL)


def main() -> None:
    """Make progress for some seconds."""
    module = MigrationModule(
        argument_spec={
            "progress_file": {"type": "path"},
            "fail": {"type": "bool", "default": False},
            "seconds": {"type": "float", "default": 2},
            "die": {"type": "bool", "default": False},
            "size": {"type": "int", "default": 0},
            "token": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    progress = Progress(module.params["progress_file"], interval=0.1)
    steps = int(module.params["seconds"] * 10)
    for step in range(steps + 1):
        progress.update("migrate", "users", step * 120_000, steps * 120_000)
        if step == steps // 2:
            progress.note("migrate", "paused: CPU 91 %")
        time.sleep(0.1)
        if module.params["die"]:
            lose_the_machine()
    if module.params["fail"]:
        module.fail_json(msg="bad")
    digest = hashlib.sha256((module.params["token"] or "").encode()).hexdigest()
    module.exit_json(changed=True, checked=module.check_mode, digest=digest, more="x" * module.params["size"])


if __name__ == "__main__":
    main()
