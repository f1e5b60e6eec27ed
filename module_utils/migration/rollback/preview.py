# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollback would do, found out by reading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..context import Context
from ..errors import MigrationError
from ..postgres import databases, driver
from ..snapshot.manifest import Manifest
from ..state import control, rolled_back
from ..state.control import Migration
from . import delete_rows, rename, service_rows
from .evidence import verified
from .run import (
    AS_BEFORE,
    RollbackOptions,
    RolledBack,
    has_sessions,
    limits,
    names,
    nothing,
    refuse_after_cutover,
    refuse_other_plan,
    services,
    state,
)


def preview(context: Context, options: RollbackOptions) -> RolledBack:
    """Return what roll_back() and close() would do; writes nothing."""
    chosen = services(context, options)
    with contextlib.closing(control.connect(context.control, readonly=True)) as records:
        migration = control.current(records)
        if migration is None or migration.state != "open":
            return nothing(migration)
        if migration.snapshot is None:
            return RolledBack(True, migration.run_id, (f"would close migration {migration.run_id}, which has written nothing",))
        refuse_after_cutover(records, migration)
        refuse_other_plan(context, options, migration)
        read = verified(context, records, migration) if options.scope == "databases" else None
        sessions = has_sessions(records, migration)
        back = {service for service in context.plan.services if state(context, options, migration, service) != AS_BEFORE}
        lines = [line for service in chosen if service not in back for line in _would(context, options, migration, read, service)]
        left = [service for service in context.plan.services if service not in {*chosen, *back}]
        if sessions:
            lines.append("would delete the sessions that the migration wrote to the session store")
        if not left:
            lines.append(f"would close migration {migration.run_id} as rolled back")
        return RolledBack(True, migration.run_id, tuple(lines), tuple(limits(left)), sessions=sessions, complete=not left)


def _would(context: Context, options: RollbackOptions, migration: Migration, read: Manifest | None, service: str) -> Iterator[str]:
    endpoint = context.targets[service]
    own = names(endpoint, migration.run_id)
    mapped = [(item.schema, item.table) for item in context.plan.of(service) if not item.bookkeeping]
    held = service_rows.count_rows(endpoint, mapped)
    if read is None:
        try:
            ours = sum(delete_rows.foresee(context, service, migration).values())
        except MigrationError as exc:
            yield f"would stop: {exc}"
            return
        yield f"would delete {ours:,} migrated rows from {service} and leave {held - ours:,} others in the same tables"
        yield f"would keep the ledger of {service} as schema {rolled_back.kept_schema(migration)}"
        return
    dumped = read.database(service)
    rows = sum(item.rows for item in service_rows.unaccounted(context, service, migration.plan_time, dumped, None))
    in_snapshot = sum(table.rows for table in dumped.content.tables)
    yield f"would restore {service} ({in_snapshot:,} rows in {len(dumped.content.tables)} tables) as {own.fresh} and prove it against the manifest"
    yield f"would rename {own.live} ({held:,} rows in the mapped tables) to {own.kept}, and {own.fresh} to {own.live}, ending the sessions in it"
    with contextlib.closing(databases.admin(endpoint, options.restore.maintenance_db)) as connection, driver.database_errors(endpoint.place, "looking at it"):
        slots, standing = rename.slots(connection, own.live), rename.standing(connection, own.live)
    if slots:
        yield f"would leave the logical slots {', '.join(slots)} to {own.kept}: drop them there afterwards, their readers begin anew"
    if standing:
        yield f"would stop: {'; '.join(standing)}"
    if rows:
        yield f"would need -e rollback_discard_rows={rows}: {service} holds rows that are neither in the snapshot nor migrated"
