# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow the limits and what presses while rows are carried: a thread that sets the rates, pauses, says why, and goes on by itself."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from ..context import Context
from ..postgres import driver
from ..postgres.driver import database_errors, redact
from ..state import ledger
from ..state.limits import Limits, database_pressure, runner_pressure

APPLICATION_NAME = "edulink-migration watch"
LOOK = 2.0  # seconds between two looks
ROWS_A_SECOND, BYTES_A_SECOND, PAUSED = range(3)  # of the figures that are shared with who carries: one carrier's part of the rates, and a pause
_NAP = 0.3  # seconds between two looks at a pause


class Watch:
    """Sets the three `shared` figures while the block runs; `carriers` share the rates, `tell` shows a line, `calm` says what to show without a pause.

    Looks at the databases `names` (the source, or targets, whose ledgers may change the limits) and at the runner, whose disk is that of a path.
    """

    def __init__(
        self,
        context: Context,
        plan_time: str,
        names: Sequence[str],
        limits: Limits,
        carriers: int,
        shared: Any,
        tell: Callable[[str], None],
        calm: Callable[[], str] = str,
        disk: str = "/",
    ) -> None:
        self._context, self._plan_time, self._names, self._limits = context, plan_time, names, limits
        self._carriers, self._shared, self._tell, self._calm = max(1, carriers), shared, tell, calm
        self._disk = disk
        self._connections: dict[str, driver.Connection] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        """Set the rates, look once, so that a pause holds from the first chunk on, and go on looking."""
        set_rates(self._shared, self._limits, self._carriers)
        self._look(cpu=False)  # the first CPU figure is meaningless
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        """Look until the block ends. A lost connection is made again; until then the last limits and the last decision stand."""
        runner_pressure(self._limits, self._disk)  # the first CPU figure of a thread is meaningless
        while not self._over.wait(LOOK):
            self._look()
        self._close()

    def _look(self, *, cpu: bool = True) -> None:
        try:
            limits = self._changed()
            reason = self._pressure(limits if cpu else replace(limits, cpu_percent=0))
        except Exception as exc:  # whatever it is, a watch that ends would leave a pause for ever
            self._tell(f"the limits cannot be read, trying again: {redact(exc)}")
            self._close()
            return
        set_rates(self._shared, limits, self._carriers)
        self._shared[PAUSED] = 1.0 if reason else 0.0
        self._tell(f"paused: {reason}" if reason else self._calm())

    def _changed(self) -> Limits:
        """Return the limits with those that control rows name."""
        limits = self._limits
        for service in (name for name in self._names if name in self._context.plan.services):
            with database_errors(self._context.targets[service].place, "reading the limits"):
                limits = limits.changed_by(ledger.limits(self._observer(service)))
        return limits

    def _pressure(self, limits: Limits) -> str | None:
        if limits.pause:
            return "the ledger's control row 'pause' is set"
        reason = runner_pressure(limits, self._disk)
        for name in self._names:
            if reason:
                return reason
            with database_errors(name, "reading its activity"):
                reason = database_pressure(self._observer(name), name, limits)
        return reason

    def _observer(self, name: str) -> driver.Connection:
        if name not in self._connections:
            if name == self._context.source.name:
                self._connections[name] = self._context.connect_source(APPLICATION_NAME, plan_time=self._plan_time, autocommit=True)
            else:
                self._connections[name] = self._context.connect_target(name, APPLICATION_NAME, readonly=True, autocommit=True)
        return self._connections[name]

    def _close(self) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(Exception):
                connection.close()
        self._connections.clear()


def set_rates(shared: Any, limits: Limits, carriers: int) -> None:
    """Set one carrier's part of the rates."""
    shared[ROWS_A_SECOND], shared[BYTES_A_SECOND] = limits.rows_per_second / carriers, limits.bytes_per_second / carriers


def rest(shared: Any, rows: int, size: int, start: float, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Sleep so long that rows and bytes carried since `start` (monotonic seconds) keep the rates, while `goes_on`, which is asked each second."""
    while goes_on():
        pace, flow = shared[ROWS_A_SECOND], shared[BYTES_A_SECOND]
        left = start + max(rows / pace if pace > 0 else 0.0, size / flow if flow > 0 else 0.0) - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, 1.0))


def wait_while_paused(shared: Any) -> None:
    """Wait until nothing presses."""
    while shared[PAUSED]:
        time.sleep(_NAP)
