# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The transfer by way of a folder, for where no machine reaches both sides.

export_files() writes each chunk's binary COPY streams, compressed, from one snapshot, and last a manifest with counts and
sha256 sums; import_files() goes on elsewhere from that folder, through the same ledger as the direct way. The folder holds
personal data: it is made for its owner only (see folder.py).
"""

from __future__ import annotations

import functools
import gzip
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from ..checks import quarantine, reconciliation
from ..checks.row_accounting import Refused
from ..context import Context
from ..errors import MigrationError
from ..plan.model import Part, Target
from ..plan.predicates import between
from ..postgres import driver
from ..postgres.driver import database_errors
from ..postgres.quote import ident
from ..progress import Progress
from ..state import ledger
from ..state.exported_snapshot import read_only_snapshot
from ..throttle.monitor import PAUSED, Watch, rest, wait_while_paused
from ..upsert.upsert import staged
from . import run as transfer
from .chunks import Unit, numbered, plan_chunks, units
from .completion import Closing, finished
from .file_set import MANIFEST, REJECTS, Entry, Manifest, Piece, alone, owners, piece_of, prepare, read_rejects, whole, write_rejects, writing
from .primary_keys import add_all
from .worker import without

PHASE = "migrate by files"
APPLICATION_NAME = "edulink-migration files"
FAULTY = (
    "an index of the source may be damaged (REINDEX TABLE, as its owner in the monolith), or a mapping's refresh is wrong;"
    " mend that, then remove the folder and export anew"
)
_BLOCK = 1 << 20  # bytes
_IDLE = 0.2  # seconds between two looks at chunks that others hold


def export_files(context: Context, plan_time: str, folder: Path, options: transfer.Options, progress: Progress) -> tuple[Manifest, bool]:
    """Write all chunks of the source to a folder, in one snapshot; return the manifest and whether anything was written.

    A finished export of the same plan and timestamp is checked and kept; an unfinished one is begun anew.
    """
    with alone(folder):
        if (folder / MANIFEST).exists():
            return whole(folder, context.plan, plan_time), False
        prepare(folder)
        return _export(context, plan_time, folder, options, progress), True


def _export(context: Context, plan_time: str, folder: Path, options: transfer.Options, progress: Progress) -> Manifest:
    holder = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    try:
        with database_errors(context.source.place, "exporting a snapshot"):
            driver.rows(holder, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            snapshot = str(driver.scalar(holder, "SELECT pg_export_snapshot()"))
            lsn = driver.scalar(holder, "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text")
        work = [
            (service, unit, chunk)
            for service in context.plan.services
            for unit in units(context.plan, service)
            for chunk in plan_chunks(holder, context.source.schema, unit, options.chunk_rows, "load")
        ]
        kept_out = quarantine.compute(context, plan_time=plan_time, snapshot=snapshot, cap=options.quarantine_cap)
        aside = quarantine.by_part(kept_out)
        context = replace(context, quarantined=aside)
        entries = _export_all(context, plan_time, snapshot, folder, work, aside, options, progress)
        counts = reconciliation.counts_in(context, plan_time, snapshot, aside)
        assert counts is not None  # the holder has the snapshot
    finally:
        holder.close()
    refused = write_rejects(folder / REJECTS, [asdict(reject) for reject in kept_out]) if kept_out else None
    manifest = Manifest(
        context.plan.digest, context.plan.fingerprint, plan_time, f"{snapshot}@{lsn}", entries, refused, counts.accounts, dict(counts.expected)
    )
    _balance(manifest, _exported(context, manifest))
    manifest.write(folder)
    return manifest


def import_files(
    context: Context, plan_time: str, run_id: str, folder: Path, options: transfer.Options, progress: Progress
) -> transfer.Outcome:
    """Carry the chunks of a folder into the targets, through the ledger; a second run goes on where the first one ended."""
    manifest = whole(folder, context.plan, plan_time)
    clock = transfer.Stopwatch()
    with clock("prepare"):
        for service in context.plan.services:
            _prepare_ledger(context, service, manifest, folder, plan_time, run_id)
    if finished(context):
        return transfer.outcome(context, 0, 0, 0, 0, (), clock)
    with clock("copy"):
        chunks, rows = _import_all(context, manifest, folder, options, progress)
    with clock("complete"):
        keys = add_all(context, options.maintenance_work_mem)
        found = _balance(manifest, reconciliation.carried(context))
        with Closing(context, plan_time, accounts=False) as closing:
            closing.complete(_never)
    return replace(transfer.outcome(context, chunks, rows, keys, 0, (manifest.epoch,), clock), balance=found)


def _balance(manifest: Manifest, carried: Mapping[str, int]) -> reconciliation.Balance:
    """Return the balance of the source's counts with the rows that each target was given; MigrationError when a sum is off."""
    found = reconciliation.Counts(manifest.accounts, manifest.expected).against(carried)
    if not found.passed:
        raise MigrationError(f"{found.verdict}; {FAULTY}")
    return found


def _exported(context: Context, manifest: Manifest) -> dict[str, int]:
    """Return how many rows of each target the files have."""
    id_maps = {target.service: target.name for target in context.plan.targets if target.bookkeeping and target.table == "id_map"}
    found: dict[str, int] = {}
    for entry in manifest.entries:
        found[entry.target] = found.get(entry.target, 0) + entry.rows.rows
        if entry.ids is not None:
            found[id_maps[entry.service]] = found.get(id_maps[entry.service], 0) + entry.ids.rows
    return found


def _never(_context: Context, _plan_time: str) -> int:
    raise MigrationError(
        "this target has chunks of several snapshots, which only a machine that reaches the source can settle;"
        " start over with playbooks/rollback.yml, or run the direct way from such a machine"
    )


Work = tuple[str, Unit, ledger.Chunk]


def _export_all(
    context: Context, plan_time: str, snapshot: str, folder: Path, work: list[Work], refused: Refused, options: transfer.Options, progress: Progress
) -> tuple[Entry, ...]:
    ordered = numbered([chunk for _, _, chunk in work])
    by_place = {(unit.target.name, unit.part.name): (service, unit) for service, unit, _ in work}
    local = threading.local()
    opened: list[driver.Connection] = []
    done: dict[str, list[int]] = {}
    shared = [0.0, 0.0, 0.0]
    settings = {"statement_timeout": str(int(options.statement_timeout * 1000))}
    tell = functools.partial(progress.note, PHASE)

    def one(chunk: ledger.Chunk) -> Entry:
        if not hasattr(local, "source"):
            local.source = context.connect_source(APPLICATION_NAME, plan_time=plan_time, settings=settings, autocommit=True)
            opened.append(local.source)
            with database_errors(context.source.place, "importing the snapshot of this export; run it again"):
                read_only_snapshot(local.source, snapshot)
        wait_while_paused(shared)
        start = time.monotonic()
        service, unit = by_place[chunk.target, chunk.part]
        keys = refused.get((chunk.target, chunk.part), ())
        with database_errors(context.source.place, f"exporting {unit.part.label}"):
            rows = _export_part(context, local.source, unit.part, chunk, keys, folder / f"{chunk.id:06d}.rows.gz")
            ids = _export_part(context, local.source, unit.id_map_part, chunk, keys, folder / f"{chunk.id:06d}.ids.gz") if unit.id_map_part else None
        if ids is not None and ids.rows != rows.rows:
            raise MigrationError(f"{chunk.target}: {rows.rows} rows were exported but {ids.rows} ids mapped; remove the folder and export anew")
        counts = done.setdefault(chunk.target, [0, sum(item.estimate for item in ordered if item.target == chunk.target)])
        counts[0] += rows.rows
        progress.update(PHASE, chunk.target, counts[0], max(counts))
        rest(shared, rows.rows, rows.size + (ids.size if ids else 0), start)
        return Entry(chunk.id, service, chunk.target, chunk.part, chunk.low, chunk.high, chunk.nulls, rows, ids)

    try:
        with (
            Watch(context, plan_time, (context.source.name,), options.limits, options.workers, shared, tell, disk=str(folder)),
            ThreadPoolExecutor(max_workers=max(1, options.workers)) as pool,
        ):
            return tuple(pool.map(one, ordered))
    finally:
        for connection in opened:
            connection.close()


def _export_part(context: Context, source: driver.Connection, part: Part, chunk: ledger.Chunk, keys: Sequence[str], path: Path) -> Piece:
    select = without(part, part.select(context.source.schema, between(chunk.low, chunk.high, nulls=chunk.nulls)), keys)
    with writing(path):
        with (
            open(path, "wb", opener=owners) as raw,
            gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as stream,
            source.cursor() as cursor,
        ):
            cursor.copy_expert(f"COPY ({select}) TO STDOUT (FORMAT binary)", stream, size=_BLOCK)
            rows = int(cursor.rowcount)
        return piece_of(path, rows)


def _prepare_ledger(context: Context, service: str, manifest: Manifest, folder: Path, plan_time: str, run_id: str) -> None:
    connection = context.connect_target(service, APPLICATION_NAME)
    known = {target.name: target for target in context.plan.of(service)}
    try:
        with database_errors(context.targets[service].place, "preparing the ledger"), connection:
            pin = ledger.pinned(connection)
            if pin is not None:
                ledger.require_same_plan(pin, context.plan, service)
            ledger.create(connection, context.plan, service, plan_time, run_id)
            if ledger.has_chunks(connection):
                if not driver.scalar(connection, "SELECT EXISTS (SELECT FROM migration.epochs WHERE id = %s)", (manifest.epoch,)):
                    raise MigrationError(
                        f"{service}: its ledger was begun from another snapshot than this folder's; import the folder it was begun with, or roll back first"
                    )
                return
            ledger.add_rejects(connection, read_rejects(folder, manifest, known))
            modes = {name: "load" if target.bookkeeping else ledger.load_mode(connection, target) for name, target in known.items()}
            stages = transfer.stages(context, service, modes)
            ledger.add_chunks(
                connection,
                [
                    ledger.Chunk(
                        entry.id, entry.target, entry.part, entry.low, entry.high, entry.nulls, entry.rows.rows, modes[entry.target], stages[entry.target]
                    )
                    for entry in manifest.entries
                    if entry.service == service
                ],
            )
            driver.rows(
                connection,
                "INSERT INTO migration.epochs (id, snapshot, runner) VALUES (%s, 'files', 'files') ON CONFLICT DO NOTHING",
                (manifest.epoch,),
            )
    finally:
        connection.close()


def _import_all(context: Context, manifest: Manifest, folder: Path, options: transfer.Options, progress: Progress) -> tuple[int, int]:
    entries = {(entry.service, entry.id): entry for entry in manifest.entries}
    by_place = {(unit.target.name, unit.part.name): unit for service in context.plan.services for unit in units(context.plan, service)}
    settings = {"lock_timeout": str(int(options.lock_timeout * 1000)), "statement_timeout": str(int(options.statement_timeout * 1000))}
    shared = [0.0, 0.0, 0.0]
    totals = transfer.rows_by_target(context)
    for target, (done, expected) in totals.items():
        progress.resume(PHASE, target, done, expected)

    def crew(service: str) -> tuple[int, int]:
        connection = context.connect_target(service, APPLICATION_NAME, settings=settings)
        chunks = rows = 0
        try:
            while True:
                chunk = None if shared[PAUSED] else ledger.claim(connection, options.runner)
                if chunk is None:
                    left = ledger.remaining(connection)
                    connection.rollback()
                    if not left:
                        break
                    time.sleep(_IDLE)  # others hold what is left; the ledger is not closed before that is in
                    continue
                entry = entries.get((service, chunk.id))
                if entry is None or (entry.target, entry.part, entry.low, entry.high) != (chunk.target, chunk.part, chunk.low, chunk.high):
                    raise MigrationError(f"{folder}: does not belong to the ledger of {service} (chunk {chunk.id} differs); roll back and import again")
                start = time.monotonic()
                with database_errors(context.targets[service].place, f"importing {entry.rows.name} ({entry.target}); finished chunks are kept"):
                    carried, mapped = _import_chunk(connection, by_place[chunk.target, chunk.part], entry, folder, chunk.mode)
                    size = entry.rows.size + (entry.ids.size if entry.ids else 0)
                    ledger.finish(
                        connection,
                        chunk,
                        epoch=manifest.epoch,
                        rows=carried,
                        mapped=mapped,
                        size=size,
                        runner=options.runner,
                        seconds=time.monotonic() - start,
                    )
                    connection.commit()
                chunks, rows = chunks + 1, rows + carried
                totals[chunk.target][0] += carried
                progress.update(PHASE, chunk.target, *totals[chunk.target])
                rest(shared, carried, size, start)
        finally:
            connection.close()
        return chunks, rows

    services = context.plan.services
    crews = max(len(services), options.workers)
    with (
        Watch(context, "", services, options.limits, crews, shared, functools.partial(progress.note, PHASE)),
        ThreadPoolExecutor(max_workers=crews) as pool,
    ):
        done_by = [pool.submit(crew, services[number % len(services)]) for number in range(crews)]
        results = [future.result() for future in done_by]
    return sum(chunks for chunks, _ in results), sum(rows for _, rows in results)


def _import_chunk(connection: driver.Connection, unit: Unit, entry: Entry, folder: Path, mode: str) -> tuple[int, int]:
    rows = _import_piece(connection, unit.target, entry.rows, folder, mode)
    mapped = _import_piece(connection, unit.id_map, entry.ids, folder, "load") if unit.id_map is not None and entry.ids is not None else 0
    return rows, mapped


def _import_piece(connection: driver.Connection, target: Target, piece: Piece, folder: Path, mode: str) -> int:
    columns = ", ".join(ident(name) for name in target.columns)

    def copy(relation: str) -> int:
        with gzip.open(folder / piece.name, "rb") as stream, connection.cursor() as cursor:
            cursor.copy_expert(f"COPY {relation} FROM STDIN (FORMAT binary)", stream, size=_BLOCK)
            return int(cursor.rowcount)

    rows = copy(f"{target.qualified} ({columns})") if mode == "load" else staged(connection, target, copy)
    if rows != piece.rows:
        raise MigrationError(f"{folder / piece.name}: gave {rows} rows, the manifest says {piece.rows}; copy it again or export anew")
    return rows
