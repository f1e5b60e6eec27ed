# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let the runner read and render the report, and keep the two files on the controller: one task instead of four."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from ansible.plugins.loader import action_loader


class ActionModule(action_loader.get("live_progress", class_only=True)):  # type: ignore[misc]  # the loader gives an untyped class
    """Runs migration_report and writes report.json and report.html."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and write what it returns; nothing in check mode or without a migration."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        report, html = result.pop("report", None), result.pop("html", "")
        result["path"] = ""
        if result.get("failed") or self._task.check_mode or not result.get("run_id") or not self._task.args.get("folder"):
            return result
        root, name = Path(self._task.args["folder"]), str(result["run_id"])
        if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_-]{0,39}", name):  # it comes from a runner, and becomes a folder here
            fault = f"the runner names the migration {name[:60]!r}, which is no name for a folder of {root}; look at the control database and the runner"
            return {**result, "failed": True, "msg": fault}
        folder = root / name
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            _replace(folder / "report.json", json.dumps(report, indent=1) + "\n")
            _replace(folder / "report.html", html)
        except OSError as exc:
            fault = f"the report cannot be written to {folder}: {exc.strerror}; set migration_artifacts_dir to a folder of yours"
            return {**result, "failed": True, "msg": fault}
        result["path"] = os.path.normpath(folder / "report.html")
        return result


def _replace(path: Path, text: str) -> None:
    """Put a file in place as a whole, readable for the owner and the group."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
    os.chmod(beside, 0o640)
    os.replace(beside, path)
