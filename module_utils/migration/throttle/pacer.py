# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight under the transfer's throttles: it waits between two statements, and reads in windows so that they are short."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..errors import MigrationError
from ..postgres import driver
from ..state import ledger
from ..state.limits import Limits, database_pressure, runner_pressure

WINDOW = 500_000  # rows that one statement reads at most, roughly
SMALLEST_WINDOW = 10_000
BURST = 5.0  # seconds' worth of rows between two rests, where a rate is set
INTERVAL = 2.0  # seconds between two looks at the pressure


class Impatient(MigrationError):
    """The pressure did not go away."""


@dataclass
class Pace:
    """When to read and when to rest. `databases` are watched (all in autocommit), `controls` may hold the ledger's control rows.

    `patience` is how many seconds a pause may last, `tell` is told why there is one ("" when it is over).
    """

    limits: Limits
    databases: Mapping[str, driver.Connection] = field(default_factory=dict)
    controls: Mapping[str, driver.Connection] = field(default_factory=dict)
    patience: float = 900
    tell: Callable[[str], None] = lambda note: None
    _looked: float = field(default_factory=time.monotonic, init=False)

    @property
    def window(self) -> int:
        """Return how many rows a statement may read."""
        rate = self.limits.rows_per_second
        return max(SMALLEST_WINDOW, min(WINDOW, int(rate * BURST))) if rate else WINDOW

    def breathe(self) -> None:
        """Wait as long as there is pressure; Impatient when that takes too long."""
        if time.monotonic() - self._looked < INTERVAL and not self.limits.pause:
            return
        start = time.monotonic()
        paused = False
        while reason := self._pressure():
            if time.monotonic() - start > self.patience:
                raise Impatient(f"preflight paused for {self.patience:.0f} s and it did not get better: {reason}")
            paused = True
            self.tell(f"paused: {reason}")
            time.sleep(min(INTERVAL, max(0.05, self.patience)))
        if paused:
            self.tell("")
        self._looked = time.monotonic()

    def rest(self, rows: int, size: float, seconds: float) -> None:
        """Sleep so long that rows and bytes read in `seconds` keep the rates."""
        pace, flow = self.limits.rows_per_second, self.limits.bytes_per_second
        needed = max(rows / pace if pace else 0.0, size / flow if flow else 0.0)
        if needed > seconds:
            time.sleep(needed - seconds)

    def _pressure(self) -> str | None:
        for name, connection in self.controls.items():
            with driver.database_errors(name, "reading the limits"):
                if ledger.exists(connection):
                    self.limits = self.limits.changed_by(ledger.limits(connection))
        if self.limits.pause:
            return "the ledger's control row 'pause' is set"
        reason = runner_pressure(self.limits)
        for name, connection in self.databases.items():
            if reason:
                break
            with driver.database_errors(name, "reading its activity"):
                reason = database_pressure(connection, name, self.limits)
        return reason


def unhurried() -> Pace:
    """Return a pace without any limit."""
    return Pace(Limits(cpu_percent=0, memory_percent=0, disk_percent=0, replication_lag_seconds=0, transaction_seconds=0))
