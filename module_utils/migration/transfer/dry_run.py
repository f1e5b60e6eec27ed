# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the transfer would do: rows and chunks for each table, by reading only."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..context import Context
from ..postgres import driver
from ..postgres.driver import database_errors
from ..state import ledger
from .chunks import units
from .completion import finished
from .file_set import MANIFEST, Manifest, whole
from .run import Aside, Options, planned_chunks
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


def preview_export(context: Context, options: Options, plan_time: str, folder: Path) -> Preview:
    """Return what an export by files would write, by reading the source and the folder alone."""
    if (folder / MANIFEST).exists():
        return Preview(_of_manifest(whole(folder, context.plan, plan_time), {}, chunks=0))
    aside = Aside(context, plan_time, options.quarantine_cap)
    return Preview(
        tuple(
            table
            for service in context.plan.services
            for table in _counted(context, service, planned_chunks(context, None, service, plan_time, options), {}, plan_time, aside)
        )
    )


def preview_import(context: Context, plan_time: str | None, folder: Path) -> Preview:
    """Return what an import of a folder would carry, by reading it and the targets alone; MigrationError when it is not whole."""
    manifest = whole(folder, context.plan, plan_time)
    tables: list[TablePreview] = []
    for service in context.plan.services:
        names = {target.name for target in context.plan.of(service)}
        with contextlib.closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as connection:
            known = _of_ledger(context, connection, service)
            tables += known or [
                item for item in _of_manifest(manifest, _rows_now(context, connection, service), chunks=1) if item.target in names
            ]
    return Preview(tuple(tables), unfinished=not finished(context))


def _service(context: Context, service: str, options: Options, plan_time: str, aside: Aside) -> list[TablePreview]:
    with contextlib.closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as connection:
        if known := _of_ledger(context, connection, service):
            return known
        now = _rows_now(context, connection, service)
        absent = any(target.name not in now for target in context.plan.of(service))
        chunks = planned_chunks(context, None if absent else connection, service, plan_time, options)
        return _counted(context, service, chunks, now, plan_time, aside)


def _of_ledger(context: Context, connection: driver.Connection, service: str) -> list[TablePreview]:
    """Return the tables of a ledger whose chunks are planned; none where there is no such ledger."""
    pin = ledger.pinned(connection)
    if pin is None:
        return []
    ledger.require_same_plan(pin, context.plan, service)
    return [
        TablePreview(target, int(rows), int(expected), int(total) - int(done))
        for target, done, total, rows, expected, _, _ in ledger.progress(connection)
    ]


def _of_manifest(manifest: Manifest, now: Mapping[str, int], *, chunks: int) -> tuple[TablePreview, ...]:
    """Return the tables of a folder, each of whose chunks counts as `chunks` to be carried."""
    rows: dict[str, list[int]] = {}
    for entry in manifest.entries:
        rows.setdefault(entry.target, []).append(entry.rows.rows)
    return tuple(TablePreview(name, now.get(name, 0), now.get(name, 0) + sum(found), chunks * len(found)) for name, found in sorted(rows.items()))


def _rows_now(context: Context, connection: driver.Connection, service: str) -> dict[str, int]:
    """Return the rows of each target that is there."""
    return {
        target.name: int(driver.scalar(connection, f"SELECT count(*) FROM {target.qualified}"))
        for target in context.plan.of(service)
        if driver.scalar(connection, "SELECT to_regclass(%s) IS NOT NULL", (target.qualified,))
    }


def _counted(context: Context, service: str, chunks: list[ledger.Chunk], now: Mapping[str, int], plan_time: str, aside: Aside) -> list[TablePreview]:
    """Return the tables of a service with the source's rows counted, without those that are kept out."""
    refused: dict[tuple[str, str], list[str]] = {}
    for reject in aside.of(service):
        refused.setdefault((str(reject["target"]), str(reject["part"])), []).append(str(reject["source_key"]))
    rows: dict[str, int] = {}
    with contextlib.closing(context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)) as source:
        for unit in units(context.plan, service):
            name = unit.target.name
            with database_errors(context.source.place, f"counting {unit.part.label}"):
                select = unit.part.select_columns(["count(*)"], context.source.schema, lambda column: "true")
                rows[name] = rows.get(name, 0) + int(driver.scalar(source, without(unit.part, select, refused.get((name, unit.part.name), ()))))
    return [
        TablePreview(name, now.get(name, 0), now.get(name, 0) + count, sum(chunk.target == name for chunk in chunks))
        for name, count in rows.items()
    ]
