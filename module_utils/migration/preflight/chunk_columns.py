# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""By which column are sources cut whose mapping leaves chunk_by out, and is there an index for it."""

from __future__ import annotations

from ..checks.findings import INFO, WARN, Finding
from ..checks.row_checks import scanned
from ..checks.source_catalog import SourceCatalog
from ..plan.model import Plan
from ..postgres import driver
from ..postgres.quote import ident, qualified
from ..transfer.chunks import indexed, walked
from .estimates import CHUNK


def check(source: driver.Connection, plan: Plan, catalog: SourceCatalog) -> list[Finding]:
    """Return what was chosen for each part; a warning where a table of more than one chunk has no index that begins with the column."""
    findings = []
    for target, part in scanned(plan):
        along = [(table, column) for table, column in walked(part) if column in (catalog.tables[table].columns if table in catalog.tables else ())]
        if not part.cut_by_default or not along:
            continue
        message = f"chunk_by is left out, so chunks are cut by {part.chunk_by}, the first integer column of the key"
        bare = [
            (table, column) for table, column in along if not indexed(source, qualified(catalog.schema, table), column) and catalog.tables[table].rows > CHUNK
        ]
        if bare:
            ((table, column), *_) = bare
            message += f"; no index of {catalog.schema}.{table} begins with {column}, so the table is sorted to cut it"
            step = f"write chunk_by: with an indexed column, or CREATE INDEX CONCURRENTLY ON {qualified(catalog.schema, table)} ({ident(column)})"
            findings.append(Finding(WARN, part.label, "chunks", message, step, target.name, part.chunk_by))
        else:
            findings.append(Finding(INFO, part.label, "chunks", message, "write chunk_by: to choose another", target.name, part.chunk_by))
    return findings
