# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the progress of migration_validate."""

from __future__ import annotations

from typing import Any

from ansible.plugins.loader import action_loader


class ActionModule(action_loader.get("live_progress", class_only=True)):  # type: ignore[misc]  # the loader gives an untyped class
    """Runs migration_validate and shows its progress."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result without the canaries' names: their passwords are no_log, names would be masked wherever they occur."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = result.get("invocation", {}).get("module_args", {})
        if given.get("canaries"):
            given["canaries"] = f"{len(given['canaries'])} not shown"
        return result
