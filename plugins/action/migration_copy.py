# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the progress of migration_copy."""

from __future__ import annotations

from ansible.plugins.loader import action_loader


class ActionModule(action_loader.get("live_progress", class_only=True)):  # type: ignore[misc]  # the loader gives an untyped class
    """Runs migration_copy and shows its progress."""
