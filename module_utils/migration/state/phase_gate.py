# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let a phase pass only when the migration is open and has its snapshot; in check mode say what would be required."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ..context import Context
from ..errors import MigrationError
from ..postgres import driver
from . import control, gates
from .control import Migration
from .rolled_back import require_not_rolled_back


def pass_gate(context: Context) -> tuple[Migration | None, str]:
    """Return the open migration and "", or in check mode also None and a line that says what would be refused."""
    place = context.control.place
    with (
        contextlib.closing(control.connect(context.control, readonly=context.check)) as connection,
        driver.database_errors(place, "reading the migration's records"),
    ):
        try:
            migration = control.require_open(connection, context.plan.digest)
            if migration.snapshot is None:
                raise MigrationError("the open migration has no snapshot yet; run playbooks/snapshot.yml first")
            require_not_rolled_back(context, migration)
        except MigrationError as exc:
            if not context.check:
                raise
            return None, gates.would_refuse(exc)
    return migration, ""


def record(context: Context, kind: str, outcome: str, detail: Mapping[str, Any], migration: Migration | None) -> None:
    """Add a record of a phase; nothing in check mode."""
    if context.check:
        return
    with (
        contextlib.closing(control.connect(context.control)) as connection,
        driver.database_errors(context.control.place, "keeping the record"),
    ):
        control.record(connection, kind, outcome, detail, migration=migration, plan_digest=context.plan.digest)
