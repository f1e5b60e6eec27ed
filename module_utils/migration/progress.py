# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell whoever watches how far a long step is: one small JSON file, replaced as a whole.

The file is one line: {"phase", "pid", "at", "note", "tables": {name: {"done", "total", "rows", "rate", "unit"}}}. An action plugin on
the controller reads it, here or through the connection. Progress is a courtesy: a file that cannot be written is not an error.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable

INTERVAL = 0.5  # seconds between two writes
WINDOW = 10.0  # seconds over which a rate is measured
SAMPLES = 120  # points kept for each table's rate over time


class _Table:
    """How far one table is, and how fast it went."""

    def __init__(self, now: float, done: int = 0) -> None:
        self.done = done
        self.total: int | None = None
        self.rows = 0
        self.unit = "rows"
        self.rate = 0.0
        self.window: deque[tuple[float, int]] = deque([(now, done)])
        self.samples: list[tuple[float, int]] = [(now, done)]
        self.spacing = INTERVAL

    def measure(self, now: float, done: int) -> None:
        """Add a point; the rate is that of the last WINDOW seconds."""
        self.window.append((now, done))
        while len(self.window) > 2 and now - self.window[0][0] > WINDOW:
            self.window.popleft()
        start, before = self.window[0]
        self.rate = max(0.0, (done - before) / (now - start)) if now > start else 0.0
        if now - self.samples[-1][0] >= self.spacing:
            self.samples.append((now, done))
            if len(self.samples) > SAMPLES:
                self.samples = self.samples[::2]
                self.spacing *= 2


class Progress:
    """The progress of one module run; safe to update from several threads, silent without a path."""

    def __init__(self, path: str | None, *, interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._interval = interval
        self._clock = clock
        self._start = clock()
        self._written = float("-inf")
        self._lock = threading.Lock()
        self._tables: dict[str, _Table] = {}
        self._phase = ""
        self._note = ""
        self._write(float("-inf"), force=True)  # whoever watches knows from the start whose process it is

    def resume(self, phase: str, table: str, done: int, total: int | None) -> None:
        """Say where a table stands before this run adds to it; rates are measured from there."""
        with self._lock:
            now = self._clock()
            item = self._tables[table] = _Table(now, done)
            self._phase = phase
            item.total, item.rows = total, done
            self._write(now, force=False)

    def update(
        self,
        phase: str,
        table: str,
        done: int,
        total: int | None = None,
        *,
        rows: int | None = None,
        rate: float | None = None,
        unit: str = "rows",
    ) -> None:
        """Say that `done` of `total` (both in `unit`; None when unknown) are through; `rate` is a second, measured when not given."""
        with self._lock:
            now = self._clock()
            item = self._tables.setdefault(table, _Table(self._start))
            self._phase = phase
            item.measure(now, done)
            item.done, item.total, item.unit = done, total, unit
            item.rows = done if rows is None else rows
            if rate is not None:
                item.rate = rate
            finished = total is not None and done >= total
            self._write(now, force=finished)

    def note(self, phase: str, text: str) -> None:
        """Say in one line what is being waited for or why it is slow ("paused: CPU 91 %"); an empty text takes it back."""
        with self._lock:
            self._phase = phase
            changed, self._note = self._note != text, text
            self._write(self._clock(), force=changed)

    def close(self) -> None:
        """Write the last state."""
        with self._lock:
            self._write(self._clock(), force=True)

    def rates(self) -> dict[str, list[tuple[float, float]]]:
        """Return, for each table, points (seconds since the start, units a second) for a plot; SAMPLES at most each."""
        with self._lock:
            return {name: _rates([*item.samples, item.window[-1]], self._start) for name, item in self._tables.items()}

    def _write(self, now: float, *, force: bool) -> None:
        if self._path is None or (not force and now - self._written < self._interval):
            return
        self._written = now
        state = {
            "phase": self._phase,
            "pid": os.getpid(),
            "at": time.time(),
            "note": self._note,
            "tables": {
                name: {"done": item.done, "total": item.total, "rows": item.rows, "rate": round(item.rate, 1), "unit": item.unit}
                for name, item in self._tables.items()
            },
        }
        beside = f"{self._path}.{os.getpid()}"
        with contextlib.suppress(OSError):
            with open(beside, "w", encoding="utf-8") as handle:
                handle.write(json.dumps(state) + "\n")
            os.replace(beside, self._path)


def _rates(samples: list[tuple[float, int]], start: float) -> list[tuple[float, float]]:
    return [
        (round(now - start, 2), round((done - before) / (now - then), 1))
        for (then, before), (now, done) in itertools.pairwise(samples)
        if now > then
    ]
