# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the control database knows of the sessions, and the lock there that keeps a second run out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..context import Context
from ..postgres import driver
from ..state import control
from ..state.lock import lock


@contextlib.contextmanager
def alone(context: Context, *, write: bool) -> Iterator[driver.Connection | None]:
    """Open the records for a run that writes, and keep a second one out: each would take the other's newest sessions for ended."""
    if not write:
        yield None
        return
    with contextlib.closing(control.connect(context.control)) as records, lock(records, "sessions"):
        yield records


def in_store(context: Context, records: driver.Connection) -> bool:
    """Tell whether the records say that this migration's sessions are in the store."""
    with driver.database_errors(context.control.place, "reading the record"):
        last = control.latest(records, "sessions", migration=control.current(records))
    return last is not None and last.outcome != "removed"


def record(context: Context, records: driver.Connection, kind: str, outcome: str, detail: Mapping[str, Any]) -> None:
    """Add a record of a kind that concerns sessions."""
    with driver.database_errors(context.control.place, "keeping the record"):
        control.record(records, kind, outcome, detail, migration=control.current(records), plan_digest=context.plan.digest)
