# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the transfer would do: rows and chunks for each table, by reading only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from . import driver, ledger
from .chunks import units
from .closing import finished
from .context import Context
from .driver import database_errors
from .transfer import Aside, Options, planned_chunks
from .worker import without

APPLICATION_NAME = "edulink-migration dry run"


@dataclass(frozen=True)
class TablePreview:
    """A target's rows now and after the transfer, and the chunks that are still to be carried."""

    target: str
    rows_now: int
    rows_then: int
    chunks: int


@dataclass(frozen=True)
class Preview:
    """All tables of a dry run."""

    tables: tuple[TablePreview, ...]
    unfinished: bool = False

    @property
    def chunks(self) -> int:
        """Return how many chunks are still to be carried."""
        return sum(table.chunks for table in self.tables)

    @property
    def changed(self) -> bool:
        """Tell whether the transfer would write anything."""
        return self.unfinished or self.chunks > 0


def preview(context: Context, options: Options, plan_time: str) -> Preview:
    """Return what run() would do; exact counts, one scan of each source part that is not finished."""
    aside = Aside(context, plan_time, options.quarantine_cap)
    with ThreadPoolExecutor(max_workers=len(context.plan.services)) as pool:
        found = [pool.submit(_service, context, service, options, plan_time, aside) for service in context.plan.services]
        tables = tuple(table for future in found for table in future.result())
    return Preview(tables, unfinished=not finished(context))


def _service(context: Context, service: str, options: Options, plan_time: str, aside: Aside) -> list[TablePreview]:
    connection = context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)
    try:
        pin = ledger.pinned(connection)
        if pin is not None:
            ledger.require_same_plan(pin, context.plan, service)
            if ledger.has_chunks(connection):
                return [
                    TablePreview(target, int(rows), int(expected), int(total) - int(done))
                    for target, done, total, rows, expected, _, _ in ledger.progress(connection)
                ]
        present = {
            (schema, table)
            for schema, table in driver.rows(connection, "SELECT schemaname::text, tablename::text FROM pg_tables")
        }
        absent = any((target.schema, target.table) not in present for target in context.plan.of(service))
        chunks = planned_chunks(context, None if absent else connection, service, plan_time, options)
        refused: dict[tuple[str, str], list[str]] = {}
        for reject in aside.of(service):
            refused.setdefault((str(reject["target"]), str(reject["part"])), []).append(str(reject["source_key"]))
        return _counted(context, service, connection, chunks, present, plan_time, refused)
    finally:
        connection.close()


def _counted(
    context: Context,
    service: str,
    connection: driver.Connection,
    chunks: list[ledger.Chunk],
    present: set[tuple[str, str]],
    plan_time: str,
    refused: Mapping[tuple[str, str], Sequence[str]],
) -> list[TablePreview]:
    rows: dict[str, int] = {}
    now: dict[str, int] = {}
    source = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    try:
        for unit in units(context.plan, service):
            name = unit.target.name
            with database_errors(context.source.place, f"counting {unit.part.label}"):
                select = unit.part.select_columns(["count(*)"], context.source.schema, lambda column: "true")
                rows[name] = rows.get(name, 0) + int(driver.scalar(source, without(unit.part, select, refused.get((name, unit.part.name), ()))))
            if name not in now and (unit.target.schema, unit.target.table) in present:
                now[name] = int(driver.scalar(connection, f"SELECT count(*) FROM {unit.target.qualified}"))
    finally:
        source.close()
    return [
        TablePreview(name, now.get(name, 0), now.get(name, 0) + count, sum(chunk.target == name for chunk in chunks))
        for name, count in rows.items()
    ]
