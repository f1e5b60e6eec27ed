# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ID-mapped transfer: chunks, claimed by worker processes on any number of runners, until the ledger says done.

run() prepares every target's ledger (one runner at a time), joins or exports the snapshot, lets worker processes carry chunks and
add primary keys, and then, one runner at a time, settles what changed between snapshots. Who calls whom:

    run -> prepare -> chunks.plan_chunks        run -> _Crew -> worker.work -> pump.pump, keys.Keys
    run -> snapshots.join_or_export             run -> closing.Closing -> reconcile
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..checks import quarantine
from ..checks.reconciliation import Balance
from ..context import Context
from ..contract.model import Contract
from ..errors import MigrationError
from ..plan.load_order import levels
from ..postgres import driver
from ..postgres.driver import database_errors
from ..progress import Progress
from ..schema.sequences import Behind
from ..state import ledger
from ..state.exported_snapshot import Snapshots
from ..state.limits import Limits
from ..text import counted
from ..throttle.monitor import PAUSED, Watch, set_rates
from .chunks import numbered, plan_chunks, units
from .completion import Closing, Reconcile, finished, pins
from .worker import Job, Report, work

PHASE = "migrate"
APPLICATION_NAME = "edulink-migration migrate"
_AGEING = 0.9  # of the age at which the snapshot is renewed: from there on it is told


@dataclass(frozen=True)
class Options:
    """How the transfer goes about it; times in seconds, memory as PostgreSQL writes it."""

    runner: str
    workers: int = 2
    chunk_rows: int = 50_000
    limits: Limits = field(default_factory=Limits)
    statement_timeout: float = 0
    lock_timeout: float = 10
    snapshot_max_age: float = 4 * 3600
    maintenance_work_mem: str = "256MB"
    quarantine_cap: int = quarantine.CAP


@dataclass(frozen=True)
class TableResult:
    """What the ledger says of one target, whoever carried it."""

    target: str
    rows: int
    chunks: int
    chunks_done: int


@dataclass(frozen=True)
class Outcome:
    """What one call did (`carried` are this runner's chunks) and where the whole transfer stands."""

    tables: tuple[TableResult, ...]
    carried: int
    rows: int
    keys_added: int
    reconciled: int
    epochs: tuple[str, ...]
    seconds: Mapping[str, float]
    balance: Balance | None = None  # of this call, where one snapshot was read from the first chunk to the last
    compared: bool = False  # whether this call compared both sides instead, which ends with the same account
    moved: tuple[Behind, ...] = ()  # sequences that were behind the rows

    @property
    def changed(self) -> bool:
        """Tell whether anything was written."""
        return bool(self.carried or self.keys_added or self.reconciled or self.moved)

    @property
    def verdict(self) -> str:
        """Return how far the rows are proven and that every chunk is carried, in one line."""
        moved = f"{counted(len(self.moved), 'sequence')} moved past the rows; " if self.moved else ""
        if self.balance is not None:
            return f"{self.balance.verdict}; {moved}every chunk is carried"
        if self.compared:
            settled = f"{counted(self.reconciled, 'row')} settled"
            return f"both sides were compared row by row, {settled}, and every source row is accounted for; {moved}every chunk is carried"
        return f"{moved}playbooks/validate.yml proves the rows; every chunk is carried"


def run(context: Context, plan_time: str, run_id: str, options: Options, progress: Progress, reconcile: Reconcile) -> Outcome:
    """Carry everything that is not carried yet; `reconcile` makes the targets equal to one new snapshot and returns rows written.

    MigrationError on any fault; whatever was committed stays, and another call goes on from there.
    """
    clock = Stopwatch()
    with clock("prepare"):
        prepare(context, plan_time, run_id, options)
    if finished(context):
        return outcome(context, 0, 0, 0, 0, (), clock)
    with Closing(context, plan_time, accounts=True) as closing:
        crew = _Crew(context, plan_time, options, progress, closing)
        with clock("copy"):
            crew.run()
        with clock("complete"):
            settled = closing.complete(reconcile)
        done = outcome(context, crew.chunks, crew.rows, crew.keys, settled, crew.epochs, clock)
        return replace(done, balance=closing.balance, compared=closing.compared, moved=closing.moved)


class Stopwatch:
    """Wall seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)


# --- before -----------------------------------------------------------------------------------------------------------


def prepare(context: Context, plan_time: str, run_id: str, options: Options) -> None:
    """Make and pin every target's ledger, put quarantined rows aside and cut the chunks, where that is not done yet."""
    aside = Aside(context, plan_time, options.quarantine_cap)
    gate = context.connect_target(context.plan.services[0], APPLICATION_NAME, autocommit=True)
    try:
        driver.rows(gate, "SELECT pg_advisory_lock(hashtext('edulink-migration prepare'))")  # one runner finds the rejects, for both databases
        with ThreadPoolExecutor(max_workers=len(context.plan.services)) as pool:
            for done in [pool.submit(_prepare_service, context, service, plan_time, run_id, options, aside) for service in context.plan.services]:
                done.result()
    finally:
        gate.close()


class Aside:
    """The rows that the plan's policies keep out, dependants included: computed once, when the first service asks."""

    def __init__(self, context: Context, plan_time: str, cap: int) -> None:
        self._context, self._plan_time, self._cap = context, plan_time, cap
        self._lock = threading.Lock()
        self._found: tuple[quarantine.Reject, ...] | None = None

    def of(self, service: str) -> list[dict[str, object]]:
        """Return those of one service; MigrationError above the cap."""
        with self._lock:
            if self._found is None:
                self._found = quarantine.compute(self._context, plan_time=self._plan_time, cap=self._cap)
        names = {target.name for target in self._context.plan.of(service)}
        return [asdict(reject) for reject in self._found if reject.target in names]


def _prepare_service(context: Context, service: str, plan_time: str, run_id: str, options: Options, aside: Aside) -> None:
    endpoint = context.targets[service]
    connection = context.connect_target(service, APPLICATION_NAME)
    try:
        with database_errors(endpoint.place, "preparing the ledger"), connection:
            pin = ledger.pinned(connection)
            if pin is not None:
                ledger.require_same_plan(pin, context.plan, service)
                if pin.plan_time.rstrip("0") != plan_time.rstrip("0"):
                    raise MigrationError(
                        f"{service}: its ledger belongs to migration {pin.run_id}, which is not the open one ({run_id});"
                        " roll this database back with playbooks/rollback.yml first"
                    )
                if ledger.has_chunks(connection):
                    return
            ledger.create(connection, context.plan, service, plan_time, run_id)
            if (now := ledger.pinned(connection)) is not None:  # another runner may have pinned it while this one waited
                ledger.require_same_plan(now, context.plan, service)
            if ledger.has_chunks(connection):
                return  # another runner planned them while this one waited for the lock
            ledger.add_rejects(connection, aside.of(service))
            chunks = numbered(planned_chunks(context, connection, service, plan_time, options))
            order = stages(context, service, {chunk.target: chunk.mode for chunk in chunks})
            ledger.add_chunks(connection, [replace(chunk, stage=order[chunk.target]) for chunk in chunks])
    finally:
        connection.close()


def stages(context: Context, service: str, modes: Mapping[str, str]) -> dict[str, int]:
    """Return each target's stage: 0 where it is loaded bare, else its depth among the tables it refers to."""
    contract = Contract.from_dict(dict(context.plan.contracts)[service])
    depth = {target.name: number for number, level in enumerate(levels(context.plan.of(service), contract)) for target in level}
    return {name: depth[name] if mode == "upsert" else 0 for name, mode in modes.items()}


def planned_chunks(
    context: Context, connection: driver.Connection | None, service: str, plan_time: str, options: Options
) -> list[ledger.Chunk]:
    """Return the chunks of one service; without a target connection (a dry run before the tables exist) all are loads."""
    source = context.connect_source(APPLICATION_NAME, plan_time=plan_time)
    found: list[ledger.Chunk] = []
    try:
        for unit in units(context.plan, service):
            mode = ledger.load_mode(connection, unit.target) if connection is not None and not unit.target.bookkeeping else "load"
            with database_errors(f"{context.source.name}: {unit.part.label}", "cutting chunks"):
                found += plan_chunks(source, context.source.schema, unit, options.chunk_rows, mode)
    finally:
        source.close()
    return found


def changed_since(context: Context) -> list[str]:
    """Return what differs between this plan and those that the ledgers were begun with, by an operator's names."""
    return sorted({name for pin in pins(context) if pin is not None for name in ledger.changed(pin, context.plan)})


# --- the workers ------------------------------------------------------------------------------------------------------


class _Crew:
    """This runner's worker processes, their snapshot, and what they report."""

    def __init__(self, context: Context, plan_time: str, options: Options, progress: Progress, closing: Closing) -> None:
        self.context, self.plan_time, self.options, self.progress, self.closing = context, plan_time, options, progress, closing
        self.chunks = self.rows = self.keys = 0
        self.epochs: tuple[str, ...] = ()
        self._failure: str | None = None
        self._reason: str | None = None

    def run(self) -> None:
        """Start the workers, feed them the snapshot, and wait until the ledger has no chunk left; MigrationError on a fault."""
        fork = multiprocessing.get_context("fork")  # before any thread or connection of this process exists
        # No lock: a worker killed while it held one would stop all others, and each figure is read by itself.
        shared = fork.RawArray("d", 3)
        set_rates(shared, self.options.limits, max(1, self.options.workers))
        ends = [fork.Pipe() for _ in range(self.options.workers)]
        chosen = self.options
        job = Job(self.context, self.plan_time, chosen.runner, chosen.statement_timeout, chosen.lock_timeout, chosen.maintenance_work_mem)
        every_end = [end for pair in ends for end in pair]
        processes = [
            fork.Process(target=work, args=(job, number, mine, [end for end in every_end if end is not mine], shared), daemon=True)
            for number, (_, mine) in enumerate(ends)
        ]
        for process in processes:
            process.start()
        for _, theirs in ends:
            theirs.close()
        channels = [mine for mine, _ in ends]
        try:
            self._lead(channels, processes, shared)
        finally:
            for channel in channels:
                channel.close()
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
                    process.join()
        if self._failure is not None:
            raise MigrationError(self._failure)

    def _lead(self, channels: Sequence[Any], processes: Sequence[Any], shared: Any) -> None:
        with Snapshots(self.context, self.options.runner, self.plan_time) as snapshots:
            epoch = snapshots.join_or_export()
            self.epochs = (epoch.id,)
            names = (self.context.source.name, *self.context.plan.services)
            tell = functools.partial(self.progress.note, PHASE)
            totals = rows_by_target(self.context)  # before any worker adds to them: what these carry is added as they report it
            with Watch(self.context, self.plan_time, names, self.options.limits, self.options.workers, shared, tell, lambda: self._ageing(snapshots.age)):
                for channel in channels:  # now that a pause is known
                    with contextlib.suppress(OSError):  # a worker that is gone is noticed, with its reason, in _listen
                        channel.send(epoch)
                self.closing.count_meanwhile(epoch, lambda: bool(shared[PAUSED]))
                self._listen(channels, processes, snapshots, totals)
                if self._failure is None:
                    self.closing.account(snapshots.epoch)

    def _listen(self, channels: Sequence[Any], processes: Sequence[Any], snapshots: Snapshots, totals: dict[str, list[int]]) -> None:
        """Take reports until every worker is done, adding them to `totals`, and renew the snapshot when it has grown too old."""
        for target, (rows, expected) in totals.items():
            self.progress.resume(PHASE, target, rows, expected)
        waiting = dict(zip(channels, processes, strict=True))
        while waiting:
            channels_ready: list[Any] = list(multiprocessing.connection.wait(list(waiting), timeout=1.0))
            for channel in channels_ready:
                try:
                    report = channel.recv()
                except (EOFError, ConnectionResetError):
                    process = waiting.pop(channel)
                    process.join(timeout=5)
                    self._failure = self._failure or (
                        f"a worker process ended (exit status {process.exitcode}); its chunk was rolled back, finished chunks are kept: run it again"
                    )
                    continue
                if report.kind == "done":
                    waiting.pop(channel)
                elif report.kind == "lost":
                    if report.text == self.epochs[-1]:
                        self._renew(snapshots, waiting)
                elif report.kind == "key":
                    self.keys += 1
                elif report.kind == "error":
                    self._failure = self._failure or report.text
                    waiting.pop(channel)
                else:
                    self._count(report, totals)
            if self._failure is not None:
                for channel in waiting:
                    with contextlib.suppress(OSError):
                        channel.send(None)
            elif waiting and 0 < self.options.snapshot_max_age < snapshots.age:
                self._renew(snapshots, waiting)

    def _renew(self, snapshots: Snapshots, channels: Iterable[Any]) -> None:
        """Take a new snapshot, because the shared one is gone or too old, and hand it to the workers."""
        epoch = snapshots.renew()
        self.epochs += (epoch.id,)
        for channel in channels:
            with contextlib.suppress(OSError):
                channel.send(epoch)

    def _count(self, report: Report, totals: dict[str, list[int]]) -> None:
        self.chunks += 1
        self.rows += report.rows
        table = totals.setdefault(report.target, [0, 0])
        table[0] += report.rows
        table[1] += report.rows - report.estimate
        self.progress.update(PHASE, report.target, table[0], max(table))

    def _ageing(self, age: float) -> str:
        """Return a line about a snapshot that is soon to be renewed, because it has held vacuum back on the source for long; else nothing."""
        cap = self.options.snapshot_max_age
        return f"the snapshot is {age / 60:.0f} minutes old; it is renewed after {cap / 60:.0f}" if 0 < cap * _AGEING < age else ""


def rows_by_target(context: Context) -> dict[str, list[int]]:
    """Return rows done and rows expected of each target."""
    found: dict[str, list[int]] = {}
    for service in context.plan.services:
        connection = context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)
        try:
            for target, _, _, rows, expected, _, _ in ledger.progress(connection):
                found[target] = [int(rows), int(expected)]
        finally:
            connection.close()
    return found


# --- after ------------------------------------------------------------------------------------------------------------


def outcome(context: Context, chunks: int, rows: int, keys: int, settled: int, epochs: tuple[str, ...], clock: Stopwatch) -> Outcome:
    """Return what was done, and what the ledgers say of every target now."""
    tables = []
    for service in context.plan.services:
        connection = context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)
        try:
            tables += [TableResult(target, int(done_rows), int(total), int(done)) for target, done, total, done_rows, *_ in ledger.progress(connection)]
        finally:
            connection.close()
    return Outcome(tuple(tables), chunks, rows, keys, settled, epochs, dict(clock.seconds))
