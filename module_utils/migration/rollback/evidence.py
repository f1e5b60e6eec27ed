# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tells what a migration did outlives its rollback: ledger and id map of each service as CSV beside the snapshot, which is held against its record."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..context import Context
from ..errors import MigrationError
from ..plan.model import BOOKKEEPING
from ..postgres import databases, driver
from ..postgres.driver import Endpoint
from ..postgres.quote import qualified
from ..snapshot import manifest, take
from ..snapshot.manifest import Manifest
from ..state import control
from ..state.control import Migration

EVIDENCE = ("id_map", "chunks", "rejects", "epochs", "pin")


def evidence_folder(migration: Migration) -> Path:
    """Return where the ledgers and id maps of a rolled back migration are kept as CSV, beside its snapshot."""
    folder = Path(str(migration.snapshot))
    return folder.with_name(f"{folder.name}.evidence")


def export_evidence(endpoint: Endpoint, folder: Path) -> list[Path]:
    """Write the ledger and id map of a service as CSV into the folder, as long as it has them; return the files."""
    files = []
    connection = driver.connect(endpoint, application_name=databases.APPLICATION_NAME, readonly=True)
    with contextlib.closing(connection), driver.database_errors(endpoint.place, "archiving the ledger and the id map"):
        for table in EVIDENCE:
            name = qualified(BOOKKEEPING, table)
            path = folder / f"{endpoint.name}.{table}.csv"
            if driver.scalar(connection, "SELECT to_regclass(%s)", (name,)) is None:
                continue
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                fresh = path.with_suffix(".new")
                with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file, connection.cursor() as cursor:
                    cursor.copy_expert(f"COPY (SELECT * FROM {name} ORDER BY 1, 2) TO STDOUT WITH (FORMAT csv, HEADER)", file)
                fresh.rename(path)
            except OSError as exc:
                raise MigrationError(f"archiving {table} of {endpoint.name} in {folder}: {exc.strerror}; the service is as before") from exc
            files.append(path)
    return files


def verified(context: Context, records: driver.Connection, migration: Migration) -> Manifest:
    """Return the manifest of the migration's snapshot after its targets' files were compared with it."""
    folder = Path(str(migration.snapshot))
    runner = next((item.detail.get("runner") for item in control.history(records, kind=take.KIND, migration=migration) if item.outcome == "passed"), "")
    try:
        read = manifest.read(folder, take.recorded_digest(records, migration))
        for service in context.plan.services:
            manifest.check_files(folder, read, service)
    except MigrationError as exc:
        raise MigrationError(f"{exc} (taken on runner {runner}; this run has changed nothing; -e rollback_scope=data needs no dump)") from exc
    return read


def readable(records: driver.Connection, migration: Migration) -> Manifest | None:
    """Return the manifest of the migration's snapshot, or None when it is lost: what was dumped is not needed to remove rows."""
    try:
        return manifest.read(Path(str(migration.snapshot)), take.recorded_digest(records, migration))
    except MigrationError:
        return None
