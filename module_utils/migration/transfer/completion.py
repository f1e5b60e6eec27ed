# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of a transfer: one runner accounts for every row, settles what changed between snapshots, and closes the ledgers.

That runner is who first takes an advisory lock, which it gives back by dying; the others wait and then find all closed. It takes it
when the copy begins, so that the source's rows are counted while chunks are carried, in the snapshot that these are read in:

    transfer.run -> count_meanwhile -> balance.counts_in       transfer.run -> account -> complete -> reconcile
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ..checks import reconciliation
from ..checks.reconciliation import Balance, Counts
from ..context import Context
from ..errors import MigrationError
from ..postgres import driver
from ..postgres.driver import database_errors
from ..schema import sequences
from ..state import ledger
from ..state.exported_snapshot import Epoch

APPLICATION_NAME = "edulink-migration closing"
_LOCK = "hashtext('edulink-migration complete')"

Reconcile = Callable[[Context, str], int]


class Closing:
    """One runner's part in the end of a transfer; `accounts` tells whether the ledgers are held against the source."""

    def __init__(self, context: Context, plan_time: str, *, accounts: bool) -> None:
        self.balance: Balance | None = None
        self.compared = False  # both sides, row by row, because several snapshots were read
        self.moved: tuple[sequences.Behind, ...] = ()  # sequences that were behind the rows
        self._context, self._plan_time, self._accounts = context, plan_time, accounts
        self._gate: driver.Connection | None = None
        self._counting: _Counting | None = None

    def __enter__(self) -> Closing:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._counting is not None:
            self._counting.stop()
        if self._gate is not None:
            self._gate.close()

    def count_meanwhile(self, epoch: Epoch, paused: Callable[[], bool]) -> None:
        """Begin to count the source's rows in a thread, unless another runner is at it; none of its statements begins while `paused`."""
        if not self._accounts or self._counting is not None:
            return
        if self._gate is None:
            self._gate = self._connect()
        if driver.scalar(self._gate, f"SELECT pg_try_advisory_lock({_LOCK})") and not finished(self._context):
            self._counting = _Counting(self._context, self._plan_time, epoch, paused)

    def account(self, epoch: Epoch | None) -> None:
        """Hold the ledgers' figures against the source's, if all chunks were read in this one snapshot; where there were several, complete() compares.

        MigrationError when a row is not accounted for.
        """
        self._enter()
        if not self._accounts or epoch is None or finished(self._context) or epochs(self._context) != {epoch.id}:
            return
        counts = self._counting.counts(epoch) if self._counting is not None else None
        counts = counts or reconciliation.counts_in(self._context, self._plan_time, epoch.snapshot, reconciliation.put_aside(self._context))
        if counts is None:
            return
        found = counts.against(reconciliation.carried(self._context))
        if not found.passed:
            again = "run it again: it then compares both sides, row by row, and carries what is missing"
            raise MigrationError(reconciliation.missing(self._context, self._plan_time, epoch.snapshot, found, again))
        self.balance = found

    def complete(self, reconcile: Reconcile) -> int:
        """Settle what changed between snapshots, or is not known to be all, move the sequences behind mapped columns past the rows, and mark the
        ledgers finished; return how many rows were settled."""
        self._enter()
        context = self._context
        if finished(context):
            return 0
        settled = 0
        unproven = self._accounts and self.balance is None
        if unproven or len(epochs(context)) > 1:
            settled = reconcile(context, self._plan_time)
            self.compared = True
        self.moved = sequences.advance(context)  # before the ledgers are closed: a fault here is met again by who runs it again
        for service in context.plan.services:
            connection = context.connect_target(service, APPLICATION_NAME)
            with contextlib.closing(connection), database_errors(context.targets[service].place, "closing the ledger"), connection:
                driver.rows(connection, "UPDATE migration.epochs SET reconciled_at = clock_timestamp() WHERE reconciled_at IS NULL")
                driver.rows(connection, "UPDATE migration.pin SET finished_at = clock_timestamp() WHERE finished_at IS NULL")
        return settled

    def _connect(self) -> driver.Connection:
        return self._context.connect_target(self._context.plan.services[0], APPLICATION_NAME, autocommit=True)

    def _enter(self) -> None:
        """Wait until no other runner is at the end; a lock that was lost with its connection is taken anew."""
        if self._gate is not None:
            try:
                driver.rows(self._gate, f"SELECT pg_advisory_lock({_LOCK})")  # once more where it is held: it counts
                return
            except Exception as exc:
                if not self._gate.closed:
                    raise MigrationError(f"{self._context.plan.services[0]}: waiting for the other runners: {driver.redact(exc)}; run it again") from exc
        self._gate = self._connect()
        driver.rows(self._gate, f"SELECT pg_advisory_lock({_LOCK})")


class _Counting:
    """The source's counts in one exported snapshot, taken by a thread."""

    def __init__(self, context: Context, plan_time: str, epoch: Epoch, paused: Callable[[], bool]) -> None:
        self._epoch = epoch
        self._reader = reconciliation.Reader(context, plan_time)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="account")
        self._future: Future[Counts | None] = self._pool.submit(self._reader.counts, epoch.snapshot, reconciliation.put_aside(context), paused)

    def counts(self, epoch: Epoch) -> Counts | None:
        """Wait for the counts; None when they are those of another snapshot, or could not be taken."""
        try:
            found = self._future.result()
        except MigrationError:  # its connection was cut: the copy had others, and the counts can be taken again
            return None
        return found if epoch == self._epoch else None

    def stop(self) -> None:
        self._reader.cancel()
        self._pool.shutdown()
        self._reader.close()


def finished(context: Context) -> bool:
    """Tell whether every target's ledger is closed."""
    return all(pin is not None and pin.finished for pin in pins(context))


def pins(context: Context) -> list[ledger.Pin | None]:
    """Return what each target is pinned to."""
    found = []
    for service in context.plan.services:
        with contextlib.closing(context.connect_target(service, APPLICATION_NAME, autocommit=True)) as connection:
            found.append(ledger.pinned(connection))
    return found


def epochs(context: Context) -> set[str]:
    """Return the snapshots that what is carried was read in, of targets that are finished too: a service may have been rolled back alone."""
    found: set[str] = set()
    for service in context.plan.services:
        with contextlib.closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as connection:
            found.update(ledger.epochs(connection))
    return found
