# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The transfer by way of a folder, for where no machine reaches both sides.

export_files() writes each chunk's binary COPY streams, compressed, from one snapshot, and last a manifest with counts and
sha256 sums; import_files() goes on elsewhere from that folder, through the same ledger as the direct way. The folder holds
personal data: it is made for its owner only.

    folder/manifest.json                     what belongs to the folder; its absence means an unfinished export
    folder/000001.rows.gz, 000001.ids.gz     a chunk's rows, and the rows of the id map that they mint
    folder/rejects.gz                        the rows that the mappings' policies keep out, for migration.rejects
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import driver, ledger, transfer
from .chunks import Unit, numbered, plan_chunks, units
from .closing import Closing, finished
from .context import Context
from .driver import database_errors
from .equalize import staged
from .errors import MigrationError
from .keys import add_all
from .plan import Part, Target, between
from .preflight import rejects
from .progress import Progress
from .quote import ident
from .snapshots import read_only_snapshot
from .worker import without

PHASE = "migrate by files"
APPLICATION_NAME = "edulink-migration files"
MANIFEST = "manifest.json"
REJECTS = "rejects.gz"
VERSION = 2
_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Piece:
    """One file: its name in the folder, its rows, its size in bytes and sha256 as it lies there."""

    name: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One chunk with its files; `ids` are the id map's rows that it mints."""

    id: int
    service: str
    target: str
    part: str
    low: str | None
    high: str | None
    nulls: bool
    rows: Piece
    ids: Piece | None


@dataclass(frozen=True)
class Manifest:
    """What a folder holds and which plan, namespace, timestamp and snapshot it was made with; `rejects` are the rows kept out of it."""

    plan_digest: str
    fingerprint: str
    plan_time: str
    epoch: str
    entries: tuple[Entry, ...]
    rejects: Piece | None = None

    @property
    def pieces(self) -> dict[str, Piece]:
        """Return every file that belongs to the folder, by its name."""
        found = [piece for entry in self.entries for piece in (entry.rows, entry.ids)]
        return {piece.name: piece for piece in (*found, self.rejects) if piece is not None}

    def write(self, folder: Path) -> None:
        """Write the manifest; it is the last file of an export."""
        data = {"version": VERSION, **asdict(self)}
        data["sha256"] = _digest_of(data)
        partial = folder / f"{MANIFEST}.partial"
        partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Return a folder's manifest; MigrationError when it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != VERSION or data.pop("sha256") != _digest_of(data):
            raise MigrationError(f"{path}: the manifest is damaged or of another version; copy the folder again or export anew")
        entries = tuple(_entry(item) for item in data["entries"])
        refused = Piece(**data["rejects"]) if data["rejects"] else None
        return Manifest(data["plan_digest"], data["fingerprint"], data["plan_time"], data["epoch"], entries, refused)
    except FileNotFoundError as exc:
        raise MigrationError(f"{path}: there is no manifest, so the export has not finished; run it again (migrate_files_step: export)") from exc
    except OSError as exc:
        raise MigrationError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise MigrationError(f"{path}: the manifest is damaged; copy the folder again or export anew") from exc


def check_folder(folder: Path, manifest: Manifest) -> None:
    """Raise when a file of the manifest is missing or damaged, or a file is there that does not belong to it; names the file."""
    pieces = manifest.pieces
    for path in sorted(folder.iterdir()):
        if path.name not in pieces and path.name != MANIFEST:
            raise MigrationError(f"{path}: is not in the manifest; a file of another export? Remove it, or copy the folder again")
    for name, piece in sorted(pieces.items()):
        path = folder / name
        if not path.is_file():
            raise MigrationError(f"{path}: is missing; copy the folder again or export anew")
        if path.stat().st_size != piece.size or _file_digest(path) != piece.sha256:
            raise MigrationError(f"{path}: is damaged (its sha256 is not the manifest's); copy it again or export anew")


def export_files(context: Context, plan_time: str, folder: Path, options: transfer.Options, progress: Progress) -> tuple[Manifest, bool]:
    """Write all chunks of the source to a folder, in one snapshot; return the manifest and whether anything was written.

    A finished export of the same plan and timestamp is checked and kept; an unfinished one is begun anew.
    """
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        _same_plan(context, manifest, plan_time, folder)
        check_folder(folder, manifest)
        return manifest, False
    _prepare_folder(folder)
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
        kept_out = [asdict(reject) for reject in rejects.compute(context, plan_time=plan_time, snapshot=snapshot)]
        entries = _export_all(context, plan_time, snapshot, folder, work, kept_out, options.workers, progress)
    finally:
        holder.close()
    refused = _write_rejects(folder / REJECTS, kept_out) if kept_out else None
    manifest = Manifest(context.plan.digest, context.plan.fingerprint, plan_time, f"{snapshot}@{lsn}", entries, refused)
    manifest.write(folder)
    return manifest, True


def import_files(
    context: Context, plan_time: str, run_id: str, folder: Path, options: transfer.Options, progress: Progress
) -> transfer.Outcome:
    """Carry the chunks of a folder into the targets, through the ledger; a second run goes on where the first one ended."""
    manifest = read_manifest(folder)
    _same_plan(context, manifest, plan_time, folder)
    check_folder(folder, manifest)
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
        with Closing(context, plan_time, accounts=False) as closing:
            closing.complete(_never)
    return transfer.outcome(context, chunks, rows, keys, 0, (manifest.epoch,), clock)


def _never(_context: Context, _plan_time: str) -> int:
    raise MigrationError(
        "this target has chunks of several snapshots, which only a machine that reaches the source can settle;"
        " start over with playbooks/rollback.yml, or run the direct way from such a machine"
    )


def _same_plan(context: Context, manifest: Manifest, plan_time: str, folder: Path) -> None:
    if manifest.plan_digest != context.plan.digest:
        raise MigrationError(
            f"{folder}: was exported with plan {manifest.plan_digest[:12]}, this run has plan {context.plan.digest[:12]};"
            " use the same mappings, schema SQL and namespace on both sides, or remove the folder and export anew"
        )
    if manifest.plan_time != plan_time:
        raise MigrationError(
            f"{folder}: was exported with the timestamp '{manifest.plan_time}', this migration is pinned to '{plan_time}';"
            f" export anew with -e migrate_plan_time='{plan_time}'"
        )


def _prepare_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = list(folder.iterdir())
        for path in found:
            if not re.fullmatch(r"\d{6,}\.(rows|ids)\.gz|rejects\.gz|manifest\.json\.partial", path.name):
                raise MigrationError(f"{path}: the folder for the export must be empty; name another one in migrate_files_dir")
        folder.chmod(0o700)
        for path in found:
            path.unlink()
    except OSError as exc:
        raise MigrationError(f"{folder}: cannot be used for the export: {exc.strerror}") from exc


Work = tuple[str, Unit, ledger.Chunk]
Rejects = list[dict[str, Any]]


def _write_rejects(path: Path, kept_out: Rejects) -> Piece:
    try:
        path.write_bytes(gzip.compress(json.dumps(kept_out).encode(), mtime=0))
    except OSError as exc:
        raise MigrationError(f"{path}: cannot be written: {exc.strerror}; make room or name another migrate_files_dir") from exc
    return Piece(path.name, len(kept_out), path.stat().st_size, _file_digest(path))


def _read_rejects(folder: Path, manifest: Manifest, targets: Collection[str]) -> Rejects:
    """Return the rows of some targets that the export kept out; check_folder() has seen that the file is whole."""
    if manifest.rejects is None:
        return []
    found: Rejects = json.loads(gzip.decompress((folder / manifest.rejects.name).read_bytes()))
    return [reject for reject in found if reject["target"] in targets]


def _export_all(
    context: Context, plan_time: str, snapshot: str, folder: Path, work: list[Work], kept_out: Rejects, workers: int, progress: Progress
) -> tuple[Entry, ...]:
    ordered = numbered([chunk for _, _, chunk in work])
    by_place = {(unit.target.name, unit.part.name): (service, unit) for service, unit, _ in work}
    local = threading.local()
    opened: list[driver.Connection] = []
    done: dict[str, list[int]] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for reject in kept_out:
        refused.setdefault((reject["target"], reject["part"]), []).append(reject["source_key"])

    def one(chunk: ledger.Chunk) -> Entry:
        if not hasattr(local, "source"):
            local.source = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
            opened.append(local.source)
            read_only_snapshot(local.source, snapshot)
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
        return Entry(chunk.id, service, chunk.target, chunk.part, chunk.low, chunk.high, chunk.nulls, rows, ids)

    try:
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            return tuple(pool.map(one, ordered))
    finally:
        for connection in opened:
            connection.close()


def _export_part(context: Context, source: driver.Connection, part: Part, chunk: ledger.Chunk, keys: Sequence[str], path: Path) -> Piece:
    select = without(part, part.select(context.source.schema, between(chunk.low, chunk.high, nulls=chunk.nulls)), keys)
    try:
        with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as stream, source.cursor() as cursor:
            cursor.copy_expert(f"COPY ({select}) TO STDOUT (FORMAT binary)", stream, size=_BLOCK)
            rows = int(cursor.rowcount)
    except OSError as exc:
        raise MigrationError(f"{path}: cannot be written: {exc.strerror}; make room or name another migrate_files_dir") from exc
    return Piece(path.name, rows, path.stat().st_size, _file_digest(path))


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
            ledger.add_rejects(connection, _read_rejects(folder, manifest, known))
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
    counted: dict[str, int] = {}

    def crew(service: str) -> tuple[int, int]:
        connection = context.connect_target(service, APPLICATION_NAME, settings=settings)
        chunks = rows = 0
        try:
            while (chunk := ledger.claim(connection, options.runner)) is not None:
                entry = entries.get((service, chunk.id))
                if entry is None or (entry.target, entry.part, entry.low, entry.high) != (chunk.target, chunk.part, chunk.low, chunk.high):
                    raise MigrationError(f"{folder}: does not belong to the ledger of {service} (chunk {chunk.id} differs); roll back and import again")
                with database_errors(context.targets[service].place, f"importing {entry.rows.name} ({entry.target}); finished chunks are kept"):
                    carried, mapped = _import_chunk(connection, by_place[chunk.target, chunk.part], entry, folder, chunk.mode)
                    size = entry.rows.size + (entry.ids.size if entry.ids else 0)
                    ledger.finish(connection, chunk, epoch=manifest.epoch, rows=carried, mapped=mapped, size=size, runner=options.runner, seconds=0)
                    connection.commit()
                chunks, rows = chunks + 1, rows + carried
                counted[chunk.target] = counted.get(chunk.target, 0) + carried
                progress.update(PHASE, chunk.target, counted[chunk.target])
            connection.rollback()
        finally:
            connection.close()
        return chunks, rows

    with ThreadPoolExecutor(max_workers=max(len(context.plan.services), options.workers)) as pool:
        done = [pool.submit(crew, service) for service in context.plan.services]
        results = [future.result() for future in done]
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


def _digest_of(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _entry(data: dict[str, Any]) -> Entry:
    ids = data["ids"]
    return Entry(**{**data, "rows": Piece(**data["rows"]), "ids": Piece(**ids) if ids else None})
