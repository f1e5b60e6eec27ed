# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the id map as CSV for other teams: entity, source_key, id; no personal value is in it, yet its owner decides who sees it."""

from __future__ import annotations

import os
from pathlib import Path

from ..context import Context
from ..errors import MigrationError
from ..postgres.driver import database_errors
from .file_set import owners

APPLICATION_NAME = "edulink-migration id map"
# A text key may begin as a formula does, and a spreadsheet would run it: an apostrophe makes it text there (OWASP, "CSV Injection").
_COPY = r"""
COPY (SELECT entity, CASE WHEN source_key ~ '^[=+@\t\r-]' AND source_key !~ '^-[0-9.]+$' THEN '''' || source_key ELSE source_key END AS source_key, id
FROM migration.id_map) TO STDOUT (FORMAT csv, HEADER)
"""


def export(context: Context, folder: Path) -> dict[str, str]:
    """Write id_map.<service>.csv for each target that has ids; return path by service. An existing file is replaced whole."""
    written = {}
    for service in context.plan.services:
        if not any(target.bookkeeping and target.table == "id_map" for target in context.plan.of(service)):
            continue
        path = folder / f"id_map.{service}.csv"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        connection = context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (
                database_errors(context.targets[service].place, "exporting the id map"),
                open(partial, "wb", opener=owners) as handle,
                connection.cursor() as cursor,
            ):
                cursor.copy_expert(_COPY, handle, size=1 << 20)
            os.replace(partial, path)
        except OSError as exc:
            raise MigrationError(f"{path}: the id map cannot be written: {exc.strerror}; set migration_artifacts_dir to a folder with room") from exc
        finally:
            connection.close()
            partial.unlink(missing_ok=True)
        written[service] = str(path)
    return written
