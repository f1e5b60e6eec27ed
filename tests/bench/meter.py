# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a case costs besides wall time: CPU seconds of each server and of the clients, and the clients' memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

import psutil

_SECONDS = 1.0  # between two looks at the memory: each walks all pages of all processes and costs time itself


class Peak:
    """The largest sum of the resident memory (proportional set sizes, so that shared pages count once) of a process tree."""

    def __init__(self, pid: int) -> None:
        self.mib = 0.0
        self._pid, self._end = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(_SECONDS):
            try:
                root = psutil.Process(self._pid)
                total = sum(process.memory_full_info().pss for process in (root, *root.children(recursive=True)))
            except psutil.Error:
                continue
            self.mib = max(self.mib, total / 2**20)

    def stop(self) -> None:
        self._end.set()
        self._thread.join()


def with_cpu(run: Callable[[], dict[str, float]], servers: Mapping[str, int]) -> dict[str, float]:
    """Run a case; add the CPU seconds of the servers (name -> the postmaster's process id) and of the clients to its result."""
    before = {name: _server(pid) for name, pid in servers.items()}
    clients = _clients()
    result = run()
    spent = {f"cpu_{name}": round(_server(pid) - before[name], 2) for name, pid in servers.items()}
    return {**result, **spent, "cpu_clients": round(_clients() - clients, 2)}


def _server(pid: int) -> float:
    """Return the CPU seconds of a postmaster, of its living children, and of those it has waited for."""
    postmaster = psutil.Process(pid)
    times = postmaster.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in postmaster.children():
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return float(total)


def _clients() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
