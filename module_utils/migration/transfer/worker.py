# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker process: one connection to the source, one to each target, chunks until there are none.

It ends by itself when its parent is gone, so that a killed module leaves nothing running.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..context import Context
from ..errors import MigrationError
from ..plan.model import Part, Target
from ..plan.predicates import Predicate, between, none_of
from ..postgres import driver
from ..postgres.driver import redact
from ..postgres.pump import pump
from ..postgres.quote import ident
from ..state import ledger
from ..state.exported_snapshot import NO_SUCH_SNAPSHOT, Epoch, read_only_snapshot
from ..throttle.monitor import PAUSED, rest
from ..upsert.upsert import carry_staged
from .chunks import Unit, units
from .primary_keys import Keys

APPLICATION_NAME = "edulink-migration worker"
_IDLE = 0.05  # seconds between two looks at the ledger while others finish their chunks
_PAUSE = 0.3  # seconds between two looks at a pause
_CLASHES = ("40P01", "40001")  # deadlock, serialization: whoever else writes the same rows went first
_MOST_CLASHES = 10  # in a row


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; timeouts in seconds, 0 for none."""

    context: Context
    plan_time: str
    runner: str
    statement_timeout: float
    lock_timeout: float
    maintenance_work_mem: str


@dataclass(frozen=True)
class Report:
    """What a worker tells its parent: `chunk` (carried), `key` (added), `done` (none left), `lost` (the epoch in `text`) or `error` (with a text)."""

    kind: str
    target: str = ""
    rows: int = 0
    size: int = 0
    estimate: int = 0
    text: str = ""


def work(job: Job, number: int, channel: Any, others: Sequence[Any], shared: Any) -> None:
    """Carry chunks until the ledger has none; the process's main function.

    `others` are inherited ends of pipes, closed so that every end of file is seen.
    """
    for other in others:
        other.close()
    mail = _Mailbox(channel)
    try:
        _Worker(job, number, mail, shared).run()
        mail.send(Report("done"))
    except MigrationError as exc:
        mail.send(Report("error", text=str(exc)))
    except Exception as exc:
        mail.send(Report("error", text=f"{redact(exc)}; finished chunks are kept: run it again"))
    os._exit(0)  # no destructors of what was inherited from the parent


class _Mailbox:
    """The pipe to the parent: epochs come in, reports go out; the end of the file ends the process."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._latest: Epoch | None = None
        self._changed = threading.Condition()
        self.stopped = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                message = self._channel.recv()
                with self._changed:
                    if message is None:
                        self.stopped = True
                    else:
                        self._latest = message
                    self._changed.notify_all()
        except (EOFError, OSError):
            os._exit(1)

    def epoch(self, lost: Epoch | None = None) -> Epoch | None:
        """Return the newest epoch, waiting for the first (or for another one than `lost`); None when the worker is to stop first."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._latest not in (None, lost))
            return None if self._latest == lost else self._latest

    def send(self, report: Report) -> None:
        try:
            self._channel.send(report)
        except OSError:
            os._exit(1)


class _Worker:
    def __init__(self, job: Job, number: int, mail: _Mailbox, shared: Any) -> None:
        self.job, self.mail, self.shared = job, mail, shared
        services = job.context.plan.services
        self.services = services[number % len(services) :] + services[: number % len(services)]
        self.units = {(unit.target.name, unit.part.name): unit for service in services for unit in units(job.context.plan, service)}
        self.settings = {
            "statement_timeout": str(int(job.statement_timeout * 1000)),
            "lock_timeout": str(int(job.lock_timeout * 1000)),
        }
        self.source: driver.Connection | None = None
        self.epoch: Epoch | None = None
        self.clashes = 0
        self.rejected: dict[tuple[str, str], tuple[str, ...]] = {}
        self.keys = {service: Keys(job.context, service, job.maintenance_work_mem) for service in self.services}

    def run(self) -> None:
        targets = {
            service: self.job.context.connect_target(service, APPLICATION_NAME, settings=self.settings) for service in self.services
        }
        while not self.mail.stopped:
            epoch = self.mail.epoch()
            while epoch is not None and epoch != self.epoch:  # also while paused: an old snapshot must not pin vacuum on the source
                if not self._open_source(epoch):
                    self.mail.send(Report("lost", text=epoch.id))
                    epoch = self.mail.epoch(lost=epoch)
            if epoch is None:
                return
            if self.shared[PAUSED]:
                time.sleep(_PAUSE)
                continue
            if not self._add_key(targets) and not self._carry_one(targets):
                if not any(self._left(service, connection) for service, connection in targets.items()):
                    return
                time.sleep(_IDLE)

    def _open_source(self, epoch: Epoch) -> bool:
        """Read in this epoch's snapshot from now on; False when nobody holds it any more."""
        if self.source is not None:
            self.source.close()
        context = self.job.context
        self.source = context.connect_source(
            APPLICATION_NAME,
            plan_time=self.job.plan_time,
            settings={"statement_timeout": self.settings["statement_timeout"]},
            autocommit=True,
        )
        try:
            read_only_snapshot(self.source, epoch.snapshot)
        except Exception as exc:
            if getattr(exc, "pgcode", None) in NO_SUCH_SNAPSHOT:
                return False
            raise MigrationError(f"{context.source.place}: importing the shared snapshot: {redact(exc)}; run it again") from exc
        self.epoch = epoch
        return True

    def _left(self, service: str, connection: driver.Connection) -> bool:
        """Tell whether this database lacks a chunk or a key still, whoever is at it."""
        try:
            count = ledger.remaining(connection)
            connection.rollback()
            return count > 0 or self.keys[service].left(connection)
        except Exception as exc:
            raise MigrationError(_explain(service, self.units, None, exc)) from exc

    def _add_key(self, targets: dict[str, driver.Connection]) -> bool:
        for service in self.services:
            try:
                added = self.keys[service].add_one(targets[service])
            except MigrationError:
                raise
            except Exception as exc:
                raise MigrationError(_explain(service, self.units, None, exc)) from exc
            if added:
                self.mail.send(Report("key"))
                return True
        return False

    def _carry_one(self, targets: dict[str, driver.Connection]) -> bool:
        for service in self.services:
            connection = targets[service]
            chunk = None
            try:
                chunk = ledger.claim(connection, self.job.runner)
                if chunk is None:
                    connection.rollback()
                    continue
                self._carry(connection, chunk)
                self.clashes = 0
            except MigrationError:
                raise
            except Exception as exc:
                if getattr(exc, "pgcode", None) not in _CLASHES or self.clashes == _MOST_CLASHES:
                    raise MigrationError(_explain(service, self.units, chunk, exc)) from exc
                connection.rollback()  # which gives the chunk back
                self.clashes += 1
                self.epoch = None  # connects to the source again, whose COPY may have been cut off
                time.sleep(random.uniform(0, 0.2 * self.clashes))
            return True
        return False

    def _carry(self, connection: driver.Connection, chunk: ledger.Chunk) -> None:
        """Carry one claimed chunk and end its transaction."""
        start = time.monotonic()
        unit = self.units[chunk.target, chunk.part]
        inside = between(chunk.low, chunk.high, nulls=chunk.nulls)
        refused = self._refused(connection, unit)
        rows, size = self._copy(connection, unit.target, unit.part, inside, refused, chunk.mode)
        mapped = 0
        if unit.id_map is not None and unit.id_map_part is not None:
            mapped, extra = self._copy(connection, unit.id_map, unit.id_map_part, inside, refused, "load")  # nobody else writes there
            size += extra
            if mapped != rows:
                raise MigrationError(f"{chunk.target}: {rows} rows were carried but {mapped} ids mapped; nothing of this chunk is kept")
        seconds = time.monotonic() - start
        assert self.epoch is not None
        ledger.finish(
            connection, chunk, epoch=self.epoch.id, rows=rows, mapped=mapped, size=size, runner=self.job.runner, seconds=seconds
        )
        connection.commit()
        self.mail.send(Report("chunk", chunk.target, rows, size, chunk.estimate))
        rest(self.shared, rows, size, start, lambda: not self.mail.stopped and self.mail.epoch() == self.epoch)

    def _refused(self, connection: driver.Connection, unit: Unit) -> tuple[str, ...]:
        place = (unit.target.name, unit.part.name)
        if place not in self.rejected:
            self.rejected[place] = ledger.rejected(connection, *place)
        return self.rejected[place]

    def _copy(
        self, connection: driver.Connection, target: Target, part: Part, inside: Predicate, refused: tuple[str, ...], mode: str
    ) -> tuple[int, int]:
        select = without(part, part.select(self.job.context.source.schema, inside), refused)
        columns = ", ".join(ident(name) for name in target.columns)
        if mode == "load":
            return pump(self.source, select, connection, f"COPY {target.qualified} ({columns}) FROM STDIN (FORMAT binary)")
        return carry_staged(self.source, select, connection, target)


def without(part: Part, select: str, refused: Sequence[str]) -> str:
    """Return the projection without the quarantined source keys."""
    if not refused:
        return select
    return f"{select} AND {none_of(refused)(part.key_text)}"


def _explain(service: str, known: dict[tuple[str, str], Unit], chunk: ledger.Chunk | None, exc: Exception) -> str:
    state = str(getattr(exc, "pgcode", None) or "")
    if chunk is None:
        return f"{service}: {redact(exc)}; finished chunks are kept: run it again"
    unit = known[chunk.target, chunk.part]
    span = f"{unit.part.chunk_by} from {chunk.low or 'the first'} to before {chunk.high or 'the end'}"
    if state.startswith(("22", "23")):
        then = "run playbooks/preflight.yml, which names the rows"
    elif state == "55P03":
        then = "somebody holds a lock on the table (pg_locks says who); end that or raise migrate_lock_timeout, then run it again"
    else:
        then = "run it again"
    return f"{chunk.target} (chunk {chunk.id}, {span}): {redact(exc)}; this chunk was rolled back, finished chunks are kept: {then}"
