# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a migration's one snapshot, or verify the one that it has."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..context import Context
from ..errors import MigrationError
from ..postgres import clients, content_digest, databases, driver
from ..postgres.driver import Endpoint
from ..state import control
from ..state.control import Migration
from ..state.gates import require_preflight
from ..state.lock import lock
from . import encryption, manifest, restore_blockers, restore_place, retention
from .dump import DumpOptions, Survey, check_space, dump, in_size, make_folder, survey
from .encryption import Sealing
from .manifest import Dumped, Manifest
from .restore import RestoreOptions, prove, restore
from .retention import Keeping

KIND = "snapshot"
PROOF = "snapshot_proof"
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TakeOptions:
    """Where and how the snapshot is taken; `proof_server` is the operator's own for the proof, `throwaway_dir` is for one that is thrown away."""

    root: Path
    runner: str = ""
    dump: DumpOptions = field(default_factory=DumpOptions)
    restore: RestoreOptions = field(default_factory=RestoreOptions)
    sealing: Sealing = field(default_factory=Sealing)
    keeping: Keeping = field(default_factory=Keeping)
    space_factor: float = 1.0
    proof: bool = False
    proof_server: Endpoint | None = None
    throwaway_dir: Path = restore_place.THROW_AWAY_DIR
    override_gates: bool = False


@dataclass(frozen=True)
class Taken:
    """What a run of the phase came to."""

    changed: bool
    run_id: str
    folder: str
    manifest: str
    lines: tuple[str, ...]
    removed: tuple[str, ...] = ()


def take(context: Context, options: TakeOptions, tick: Tick = lambda table, done, total: None) -> Taken:
    """Take, prove and pin the snapshot; one that is pinned is verified. MigrationError says what to do."""
    options.sealing.check()
    with (
        contextlib.closing(control.connect(context.control)) as records,
        driver.database_errors(context.control.place, "keeping the migration's records"),
        lock(records, "snapshot"),
    ):
        live = control.current(records)
        if live is None or live.snapshot is None:
            require_preflight(records, context.plan.digest, options.override_gates)
        migration = control.begin(records, context.plan.digest)
        try:
            return _take(context, options, records, migration, tick)
        except MigrationError as exc:
            with contextlib.suppress(Exception):  # the first error matters more than its record
                control.record(records, KIND, "failed", {"error": str(exc)}, migration=migration, plan_digest=context.plan.digest)
            raise


def _take(context: Context, options: TakeOptions, records: driver.Connection, migration: Migration, tick: Tick) -> Taken:
    changed = False
    started = time.monotonic()
    final = Path(migration.snapshot) if migration.snapshot else options.root / migration.run_id
    if migration.snapshot is None and not final.exists():
        _new(context, options, records, migration, final, tick)
        changed = True
    pinned = recorded_digest(records, migration) if migration.snapshot else None
    read = manifest.read(final, pinned)
    if (read.run_id, read.fingerprint) != (migration.run_id, context.plan.fingerprint):
        raise MigrationError(f"{final} holds the snapshot of migration {read.run_id}, not of {migration.run_id}; move it away and run this again")
    manifest.check_files(final, read)
    if options.proof and not _is_proven(records, migration, read):
        _prove(context, options, records, migration, read, final)
        changed = True
    if migration.snapshot is None:
        detail = describe(read, final, options.runner, time.monotonic() - started)
        control.record(records, KIND, "passed", detail, migration=migration, plan_digest=context.plan.digest)
        control.set_snapshot(records, migration, str(final))
        changed = True
    gone = _retire(context, options, migration)
    lines = (*summary(read), *no_way_back(context, options))
    return Taken(changed or bool(gone), migration.run_id, str(final), read.to_json(), lines, gone)


def _new(context: Context, options: TakeOptions, records: driver.Connection, migration: Migration, final: Path, tick: Tick) -> None:
    """Build the snapshot under another name; it gets its own only when it is complete, and proven where that is wanted."""
    available = clients.candidates(options.dump.bin_dir)
    surveys = [survey(endpoint, options.dump, available) for _, endpoint in sides(context)]
    _refuse_half_migrated(context)
    if options.proof and (faults := unprovable(context, options)):
        raise MigrationError(f"the snapshot could not be proven: {'; '.join(faults)}; mend that, then run this again")
    check_space(options.root, needed(surveys, options))
    try:
        make_folder(options.root)
        for run_id in control.run_ids(records):  # only one of them is live, and this run has its lock
            retention.remove_partial(options.root, run_id)
        partial = final.with_name(f"{final.name}{retention.PARTIAL}{secrets.token_hex(4)}")
        make_folder(partial)
    except OSError as exc:
        raise MigrationError(f"snapshot_dir {options.root}: {exc.strerror}; name a folder that this account may write to on the runner") from exc
    try:
        dumped = []
        for (side, endpoint), looked in zip(sides(context), surveys, strict=True):
            dumped.append(dump(endpoint, side, partial, looked.clients, options.dump, _prefixed(tick, endpoint.name)))
            encryption.seal(partial, endpoint.name, options.sealing)
        files = manifest.list_files(partial)
        built = Manifest(manifest.FORMAT, migration.run_id, context.plan.fingerprint, options.sealing.tool, tuple(dumped), files)
        manifest.write(partial, built)
        if options.proof:
            _prove(context, options, records, migration, built, partial)
        partial.rename(final)
    except OSError as exc:
        raise MigrationError(f"writing the snapshot to {options.root}: {exc.strerror}; free some space or choose another snapshot_dir") from exc
    finally:
        retention.remove_partial(options.root, migration.run_id)


def needed(surveys: list[Survey], options: TakeOptions) -> int:
    """Return the bytes that the snapshot may take at its largest; while a dump is encrypted, or opened for the proof, it is there twice."""
    sizes = [item.size for item in surveys]
    return int((sum(sizes) + (max(sizes) if options.sealing.tool != "none" else 0)) * options.space_factor)


def no_way_back(context: Context, options: TakeOptions) -> list[str]:
    """Return what would make a rollback of whole databases impossible, a line for each service; it may well be put right later."""
    found = {service: restore_blockers.obstacles(context.targets[service], options.restore.maintenance_db) for service in context.plan.services}
    return [f"{service} could not be rolled back: {'; '.join(lines)}" for service, lines in found.items() if lines]


def unprovable(context: Context, options: TakeOptions) -> list[str]:
    """Return what would make the proof impossible."""
    faults = restore_place.obstacles(context, options.proof_server, options.restore.maintenance_db)
    return faults if options.proof_server is not None else [*faults, *no_way_back(context, options)]


def sides(context: Context) -> list[tuple[str, Endpoint]]:
    """Return the databases that a snapshot holds, with `source` or `target`."""
    return [("source", context.source), *(("target", context.targets[service]) for service in context.plan.services)]


def _prefixed(tick: Tick, name: str) -> Tick:
    return lambda table, done, total: tick(f"{name}: {table}", done, total)


def _refuse_half_migrated(context: Context) -> None:
    """A ledger in a target means that a migration has written there, and its state before is not to be had any more."""
    for service in context.plan.services:
        with contextlib.closing(context.connect_target(service, databases.APPLICATION_NAME, readonly=True)) as connection:
            if driver.scalar(connection, "SELECT to_regclass('migration.pin')") is not None:
                raise MigrationError(
                    f"{context.targets[service].place} holds the ledger of a migration, so a snapshot taken now would not be the state before it;"
                    " if that migration is of no use any more, rename its schema 'migration' and run this again"
                )


def recorded_digest(records: driver.Connection, migration: Migration) -> str | None:
    """Return the sha256 of the manifest that the migration pinned."""
    found = [item for item in control.history(records, kind=KIND, migration=migration) if item.outcome == "passed"]
    return str(found[0].detail["manifest_sha256"]) if found else None


def describe(read: Manifest, folder: Path, runner: str, seconds: float) -> dict[str, Any]:
    """Return what the record of a snapshot says."""
    return {
        "folder": str(folder),
        "runner": runner,
        "manifest_sha256": read.digest,
        "files": len(read.files),
        "bytes": read.size,
        "encryption": read.encryption,
        "seconds": round(seconds, 3),
        "databases": [
            {
                "name": item.name,
                "server": item.server_version,
                "client": item.client_version,
                "lsn": item.lsn,
                "taken_at": item.taken_at,
                "bytes": item.size,
                "tables": len(item.content.tables),
                "rows": sum(table.rows for table in item.content.tables),
                "seconds": item.seconds,
            }
            for item in read.databases
        ],
    }


def summary(read: Manifest) -> Iterator[str]:
    """Yield a line for each database of a snapshot."""
    for item in read.databases:
        rows = sum(table.rows for table in item.content.tables)
        yield (
            f"{item.name}: {rows:,} rows in {len(item.content.tables)} tables at {item.lsn}, PostgreSQL {item.server_version.split(' ')[0]},"
            f" pg_dump {item.client_version}, {in_size(item.size)}{'' if item.roles else '; the roles of its server could not be read'}"
        )


def _is_proven(records: driver.Connection, migration: Migration, read: Manifest) -> bool:
    return any(
        item.outcome == "passed" and item.detail.get("manifest_sha256") == read.digest
        for item in control.history(records, kind=PROOF, migration=migration)
    )


def _prove(context: Context, options: TakeOptions, records: driver.Connection, migration: Migration, read: Manifest, folder: Path) -> None:
    """Restore every database into a scratch one, compare, drop; the record holds the evidence."""
    detail: dict[str, Any] = {"manifest_sha256": read.digest, "databases": []}
    started = time.monotonic()
    try:
        for item in read.databases:
            detail["databases"].append(_prove_one(context, options, item, folder, read))
    except MigrationError as exc:
        with contextlib.suppress(Exception):
            control.record(records, PROOF, "failed", {**detail, "error": str(exc)}, migration=migration, plan_digest=context.plan.digest)
        raise
    detail["seconds"] = round(time.monotonic() - started, 3)
    control.record(records, PROOF, "passed", detail, migration=migration, plan_digest=context.plan.digest)


def _prove_one(context: Context, options: TakeOptions, item: Dumped, folder: Path, read: Manifest) -> Mapping[str, Any]:
    scratch = databases.derived(item.dbname, f"proof_{item.side}", read.run_id)
    started = time.monotonic()
    with restore_place.place(context, item, options.proof_server, options.restore, options.throwaway_dir) as chosen:
        server, how, foreign = chosen.server, chosen.options, chosen.foreign
        databases.drop(server, how.maintenance_db, scratch)
        try:
            with encryption.opened(folder, item.name, options.sealing, read.encryption) as place:
                restore(server, item, place, scratch, how, foreign=foreign)
                restored = time.monotonic()
                lines = prove(server, item, place, scratch, how, foreign=foreign)
        finally:
            databases.drop(server, how.maintenance_db, scratch)
    if lines:
        said = content_digest.in_words(lines)
        raise MigrationError(f"the dump of {item.name} does not restore to what was dumped: {said}; do not migrate, and take a new snapshot")
    return {
        "name": item.name,
        "server": server.name,
        "tables": len(item.content.tables),
        "rows": sum(table.rows for table in item.content.tables),
        "restore_seconds": round(restored - started, 3),
        "seconds": round(time.monotonic() - started, 3),
    }


def _retire(context: Context, options: TakeOptions, migration: Migration) -> tuple[str, ...]:
    found = retention.stored(options.root, context.plan.fingerprint, {(item.name, item.dbname) for _, item in sides(context)})
    expired = retention.expired(found, options.keeping, {migration.run_id}, datetime.now(UTC))
    for item in expired:
        doomed = item.folder.with_name(f"{item.run_id}{retention.PARTIAL}retired")
        try:
            os.rename(item.folder, doomed)
        except OSError as exc:
            raise MigrationError(f"{item.folder} is to go by snapshot_keep_count and snapshot_keep_days: {exc.strerror}; the new snapshot is whole") from exc
        retention.remove_partial(options.root, item.run_id)
    return tuple(str(item.folder) for item in expired)


def preview(context: Context, options: TakeOptions) -> Taken:
    """Return what take() would do; writes nothing."""
    options.sealing.check()
    with contextlib.closing(control.connect(context.control, readonly=True)) as records:
        migration = control.current(records)
        if migration is not None and migration.snapshot:
            final = Path(migration.snapshot)
            read = manifest.read(final, recorded_digest(records, migration))
            manifest.check_files(final, read)
            proven = not options.proof or _is_proven(records, migration, read)
            lines = (*summary(read), *no_way_back(context, options), *(() if proven else ("would restore it into scratch databases and compare",)))
            return Taken(not proven, migration.run_id, str(final), read.to_json(), lines)
        required = require_preflight(records, context.plan.digest, options.override_gates, check=True)
    available = clients.candidates(options.dump.bin_dir)
    surveys = [survey(endpoint, options.dump, available) for _, endpoint in sides(context)]
    _refuse_half_migrated(context)
    check_space(options.root, needed(surveys, options))
    run_id = migration.run_id if migration else "<run id>"
    return Taken(True, run_id, str(options.root / run_id), "", (*([required] if required else []), *map(_would, surveys), *no_way_back(context, options)))


def _would(item: Survey) -> str:
    return (
        f"would dump {item.name}: about {item.rows:,} rows in {item.tables} tables, {in_size(item.size)},"
        f" PostgreSQL {item.server_version.split(' ')[0]} with {item.clients.program('pg_dump')} ({item.clients.version})"
    )
