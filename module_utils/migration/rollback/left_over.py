# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A removal of rows is done when none is left; what tells is each row's own id, not what the removal believes it did."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ..context import Context
from ..errors import MigrationError
from ..plan import row_id
from ..postgres import databases, driver
from ..postgres.quote import ident
from ..snapshot.manifest import Dumped, Manifest
from ..state import rolled_back
from ..state.control import Migration


def refuse(context: Context, services: Sequence[str], migration: Migration, read: Manifest | None, allowed: int) -> None:
    """MigrationError when the removal from services has left more of the migration's rows than the operator has agreed to leave."""
    found: dict[str, int] = {}
    for service in services:
        found |= count(context, service, migration, read.database(service) if read else None)
    rows = sum(found.values())
    if rows <= allowed:
        return
    where = ", ".join(f"{number:,} in {table}" for table, number in found.items())
    raise MigrationError(
        f"migration {migration.run_id} stays open: {rows:,} rows with ids of its form are left ({where}); their source rows are gone since, or a service"
        f" makes ids of version 8 itself. Delete them, or say that they stay with -e rollback_discard_rows={rows}; then run playbooks/rollback.yml again"
    )


def count(context: Context, service: str, migration: Migration, dumped: Dumped | None) -> dict[str, int]:
    """Return, by table, the rows with an id that the migration gave or of the form that it gives, beyond the rows of the snapshot."""
    endpoint = context.targets[service]
    found = {}
    kept = f"{ident(rolled_back.kept_schema(migration))}.id_map"
    with (
        contextlib.closing(context.connect_target(service, databases.APPLICATION_NAME, readonly=True, autocommit=True)) as target,
        driver.database_errors(endpoint.place, "looking for rows of the migration that are left"),
    ):
        mapped = driver.scalar(target, "SELECT to_regclass(%s)", (kept,)) is not None
        for item in context.plan.of(service):
            if item.bookkeeping or driver.scalar(target, "SELECT to_regclass(%s)", (item.qualified,)) is None:
                continue
            before = dumped.content.table(item.schema, item.table) if dumped else None
            ids = [f"row.{ident(cell.name)}" for cell in item.parts[0].identity_cells if cell.is_id]  # its own, or those of rows that it belongs to
            tells = [f"get_byte(uuid_send({own}), 6) >> 4 = 8" for own in ids if row_id.spread(item)]
            tells += [f"EXISTS (SELECT FROM {kept} AS given WHERE given.id = {own})" for own in ids if mapped]
            statement = f"SELECT count(*), count(*) FILTER (WHERE {' OR '.join(tells) or 'false'}) FROM {item.qualified} AS row"
            rows, ours = driver.rows(target, statement)[0]
            left = min(int(ours), int(rows) - (before.rows if before else 0))
            if left > 0:
                found[item.name] = left
    return found
