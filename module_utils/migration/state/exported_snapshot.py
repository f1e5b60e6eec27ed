# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One consistent read: the exported snapshot that all workers on all runners share.

The first runner exports it and holds its transaction; later ones import it. When it is gone (its holder died, or it grew too
old) a runner exports another one, the ledger records both, and what changed between them is settled after the copy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from ..context import Context
from ..postgres import driver
from ..postgres.driver import database_errors

APPLICATION_NAME = "edulink-migration snapshot"
NO_SUCH_SNAPSHOT = ("42704", "22023")  # SQLSTATEs


@dataclass(frozen=True)
class Epoch:
    """One snapshot of the source: `snapshot` is what SET TRANSACTION SNAPSHOT takes."""

    id: str
    snapshot: str


def read_only_snapshot(connection: driver.Connection, snapshot: str) -> None:
    """Begin a read-only transaction in an exported snapshot; a database error when it is gone."""
    driver.rows(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    driver.rows(connection, "SET TRANSACTION SNAPSHOT %s", (snapshot,))


class Snapshots:
    """The snapshot of one runner, held until the block ends."""

    def __init__(self, context: Context, runner: str, plan_time: str) -> None:
        self._context, self._runner, self._plan_time = context, runner, plan_time
        self._holder: driver.Connection | None = None
        self._epoch: Epoch | None = None
        self._since = time.monotonic()

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    @property
    def epoch(self) -> Epoch | None:
        """Return the epoch whose snapshot this runner holds."""
        return self._epoch

    @property
    def age(self) -> float:
        """Return the seconds since this runner's snapshot was exported, by whomever."""
        return time.monotonic() - self._since

    def join_or_export(self) -> Epoch:
        """Return the epoch of another runner when its snapshot can still be imported, else export a new one."""
        gate = self._context.connect_target(self._context.plan.services[0], APPLICATION_NAME, autocommit=True)
        try:
            driver.rows(gate, "SELECT pg_advisory_lock(hashtext('edulink-migration snapshot'))")
            for epoch, age in self._known(gate):
                if self._import(epoch, age):
                    return epoch
                self._lost(epoch)
            return self._export()
        finally:
            gate.close()

    def renew(self) -> Epoch:
        """Let the old snapshot go, for good, and take the newer one of another runner or export one."""
        self._release()
        if self._epoch is not None:
            self._lost(self._epoch)
        return self.join_or_export()

    def _known(self, gate: driver.Connection) -> list[tuple[Epoch, float]]:
        """Return the snapshots that may still be held, the newest first, and for how many seconds they have been."""
        found = driver.rows(
            gate,
            "SELECT id, snapshot, extract(epoch FROM clock_timestamp() - exported_at)::float8 FROM migration.epochs"
            " WHERE lost_at IS NULL AND reconciled_at IS NULL ORDER BY exported_at DESC",
        )
        return [(Epoch(name, snapshot), age) for name, snapshot, age in found]

    def _connect(self) -> driver.Connection:
        return self._context.connect_source(APPLICATION_NAME, plan_time=self._plan_time, autocommit=True)

    def _import(self, epoch: Epoch, age: float) -> bool:
        connection = self._connect()
        try:
            read_only_snapshot(connection, epoch.snapshot)
            if driver.scalar(connection, "SELECT pg_current_snapshot()::text") != epoch.id.rpartition("@")[2]:
                connection.close()  # a name is used again after a restart of the source
                return False
        except Exception as exc:
            connection.close()
            if getattr(exc, "pgcode", None) is None:
                raise
            return False
        self._holder, self._epoch, self._since = connection, epoch, time.monotonic() - age
        return True

    def _export(self) -> Epoch:
        connection = self._connect()
        with database_errors(self._context.source.place, "exporting a snapshot"):
            driver.rows(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            snapshot = str(driver.scalar(connection, "SELECT pg_export_snapshot()"))
            seen = driver.scalar(connection, "SELECT pg_current_snapshot()::text")
            lsn = driver.scalar(
                connection, "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text"
            )
        epoch = Epoch(f"{snapshot}@{lsn}@{seen}", snapshot)
        self._holder, self._epoch, self._since = connection, epoch, time.monotonic()
        for service in self._context.plan.services:
            target = self._context.connect_target(service, APPLICATION_NAME, autocommit=True)
            try:
                with database_errors(self._context.targets[service].place, "recording the snapshot"):
                    driver.rows(
                        target,
                        "INSERT INTO migration.epochs (id, snapshot, lsn, runner) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                        (epoch.id, snapshot, lsn, self._runner),
                    )
            finally:
                target.close()
        return epoch

    def _lost(self, epoch: Epoch) -> None:
        for service in self._context.plan.services:
            target = self._context.connect_target(service, APPLICATION_NAME, autocommit=True)
            try:
                driver.rows(target, "UPDATE migration.epochs SET lost_at = clock_timestamp() WHERE id = %s AND lost_at IS NULL", (epoch.id,))
            finally:
                target.close()

    def _release(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None
