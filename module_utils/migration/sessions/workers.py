# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several processes that decode and write, fed by the one that reads.

A worker ends by itself when its parent is gone: its pipe is at its end.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..errors import MigrationError
from .ledger import Ledger
from .pipeline import consume
from .tally import Row, Rules, Tally
from .users import Users

Crew = Callable[[], AbstractContextManager[tuple[Users, Ledger]]]  # opens a worker's own connections


class Workers:
    """The workers of one run; leaving the block ends them."""

    def __init__(self, crew: Crew, rules: Rules, *, write: bool, begun: bool) -> None:
        context = multiprocessing.get_context("fork")
        self._channels: list[Any] = []
        self._processes: list[Any] = []
        self._turn = 0
        for _ in range(rules.workers):
            ours, theirs = context.Pipe()
            others = [*self._channels, ours]
            process = context.Process(target=_work, args=(theirs, others, crew, rules, write, begun), daemon=True)
            process.start()
            theirs.close()
            self._channels.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Workers:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers."""
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def give(self, batch: Sequence[Row]) -> None:
        """Hand a batch to the next worker; it waits while that one's pipe is full."""
        channel = self._channels[self._turn]
        self._turn = (self._turn + 1) % len(self._channels)
        try:
            channel.send(batch)
        except OSError:
            self._told(channel)

    def finish(self, tally: Tally) -> None:
        """Wait for all and add what they counted; MigrationError when one failed."""
        for channel in self._channels:
            try:
                channel.send(None)
            except OSError:
                self._told(channel)
        for channel in self._channels:
            tally.add(self._told(channel))

    def _told(self, channel: Any) -> Tally:
        try:
            answer = channel.recv()
        except (EOFError, OSError):
            raise MigrationError("sessions: a worker process was killed; run playbooks/sessions.yml again") from None
        if not isinstance(answer, Tally):
            raise MigrationError(str(answer))
        return answer


def _work(channel: Any, others: Sequence[Any], crew: Crew, rules: Rules, write: bool, begun: bool) -> None:
    """Carry what comes through the pipe and tell the counts; the process's main function."""
    for other in others:  # inherited ends: while they are open here, no end of file is seen elsewhere
        other.close()
    try:
        tally = Tally()
        with crew() as (users, ledger):
            consume(_received(channel), users, ledger, rules, tally, write=write, begun=begun)
        channel.send(tally)
    except MigrationError as exc:
        _tell(channel, str(exc))
    except Exception as exc:
        _tell(channel, f"sessions: a worker failed with {type(exc).__name__}; run playbooks/sessions.yml again")
    os._exit(0)  # no destructors of what was inherited from the parent


def _tell(channel: Any, text: str) -> None:
    try:
        channel.send(text)
    except OSError:
        os._exit(1)


def _received(channel: Any) -> Iterator[Sequence[Row]]:
    while True:
        try:
            batch = channel.recv()
        except EOFError:
            os._exit(1)  # the parent is gone
        if batch is None:
            return
        yield batch
