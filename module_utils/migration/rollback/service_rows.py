# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the rows in a service that are neither in the snapshot nor migrated: somebody has been using it.

Both sides' ids are compared as sets: first by count and two sums, which settles it for a service that nobody has touched;
else as two sorted streams, so memory is flat however many rows there are.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from ..context import Context
from ..errors import MigrationError
from ..plan import ownership, row_id
from ..plan.model import BOOKKEEPING, Part, Target
from ..postgres import content_digest, databases, driver
from ..postgres.driver import Endpoint
from ..postgres.quote import qualified
from ..snapshot.manifest import Dumped

KEPT_LEDGER = f"{BOOKKEEPING}_rolled_back_"  # rolled_back.kept_schema() of any migration
_STREAMED = 20_000  # rows fetched at a time
_LANES = "count(*), coalesce(sum(('x' || substr(h, 1, 16))::bit(64)::bigint), 0)::text, coalesce(sum(('x' || substr(h, 17, 16))::bit(64)::bigint), 0)::text"


@dataclass(frozen=True)
class Unaccounted:
    """Rows of a table that are nobody's; `computed` of them have an id of version 8, as the migration makes them, or one that the id map has."""

    table: str
    rows: int
    computed: int


def unaccounted(context: Context, service: str, plan_time: str, dumped: Dumped, restored: str | None) -> list[Unaccounted]:
    """Return the tables with rows that are neither in the snapshot (the copy `restored`, if there is one yet) nor migrated."""
    endpoint = context.targets[service]
    found = []
    with (
        contextlib.closing(context.connect_source(databases.APPLICATION_NAME, plan_time=plan_time)) as source,
        contextlib.closing(driver.connect(endpoint, application_name=databases.APPLICATION_NAME, readonly=True)) as target,
        driver.database_errors(endpoint.place, "looking for rows that are not the migration's"),
    ):
        mapped = [item for item in context.plan.of(service) if not item.bookkeeping]
        for item in mapped:
            if driver.scalar(target, "SELECT to_regclass(%s)", (item.qualified,)) is None:
                continue
            before = dumped.content.table(item.schema, item.table)
            foreign = _strangers(context, source, target, item, endpoint, restored, before.rows if before else 0)
            if foreign.rows:
                found.append(foreign)
        found += _other_tables(target, endpoint, dumped, {(item.schema, item.table) for item in mapped})
    return found


def written_since(
    context: Context, service: str, kept: str, live: str, plan_time: str, dumped: Dumped, before: Sequence[Unaccounted]
) -> dict[str, int]:
    """Return, by table, how many rows the database that is `kept` now holds beyond those that were found `before`."""
    endpoint = replace(context.targets[service], dbname=kept)
    found = unaccounted(replace(context, targets={**context.targets, service: endpoint}), service, plan_time, dumped, live)
    known = {item.table: item.rows for item in before}
    return {item.table: item.rows - known.get(item.table, 0) for item in found if item.rows > known.get(item.table, 0)}


def _strangers(
    context: Context, source: driver.Connection, target: driver.Connection, item: Target, endpoint: Endpoint, restored: str | None, before: int
) -> Unaccounted:
    if driver.scalar(target, f"SELECT NOT EXISTS (SELECT FROM {item.qualified})"):
        return Unaccounted(item.name, 0, 0)
    schema = context.source.schema
    stored = f"SELECT encode({row_id.target_bytes(item)}, 'hex') AS h FROM {item.qualified} AS t"
    if _set(target, stored) == _set(source, " UNION ALL ".join(_ids(item, part, schema) for part in item.parts)):
        return Unaccounted(item.name, 0, 0)
    ours = heapq.merge(*(_stream(source, _ids(item, part, schema)) for part in item.parts))
    theirs = _stream(target, stored)
    left = _minus(theirs, ours)
    if before and restored is not None:
        with contextlib.closing(driver.connect(replace(endpoint, dbname=restored), application_name=databases.APPLICATION_NAME, readonly=True)) as copy:
            return _count(item, _minus(left, _stream(copy, stored)), 0, target)
    return _count(item, left, before, target)


def _count(item: Target, ids: Iterator[str], known: int, target: driver.Connection) -> Unaccounted:
    """Return how many rows there are beyond those `known`; `ids` are the rows' 16 bytes, sorted."""
    rows = computed = 0
    kept = row_id.kind(item) == row_id.KEPT and driver.scalar(target, "SELECT to_regclass('migration.id_map')") is not None
    ours = f"SELECT encode({row_id.target_bytes(item)}, 'hex') AS h FROM {item.qualified} AS t WHERE {ownership.condition(item, 't')}"
    remembered = _stream(target, ours) if kept else iter(())
    other = next(remembered, None)
    for identity in ids:
        while other is not None and other < identity:
            other = next(remembered, None)
        rows += 1
        computed += identity == other if kept else row_id.spread(item) and identity[12] == "8"
    return Unaccounted(item.name, max(0, rows - known), min(computed, max(0, rows - known)))


def _ids(target: Target, part: Part, schema: str) -> str:
    return part.select_columns([f"encode({row_id.source_bytes(target, part)}, 'hex') AS h"], schema)


def _set(connection: driver.Connection, statement: str) -> tuple[object, ...]:
    return driver.rows(connection, f"SELECT {_LANES} FROM ({statement}) AS ids WHERE h IS NOT NULL")[0]


_names = count()


def _stream(connection: driver.Connection, statement: str) -> Iterator[str]:
    with connection.cursor(name=f"ids_{next(_names)}") as cursor:
        cursor.itersize = _STREAMED
        cursor.execute(f'SELECT h COLLATE "C" FROM ({statement}) AS ids WHERE h IS NOT NULL ORDER BY 1')
        for (identity,) in cursor:
            yield identity


def _minus(first: Iterator[str], second: Iterator[str]) -> Iterator[str]:
    """Yield what is only in the first of two sorted streams."""
    other = next(second, None)
    for item in first:
        while other is not None and other < item:
            other = next(second, None)
        if item != other:
            yield item


def _other_tables(target: driver.Connection, endpoint: Endpoint, dumped: Dumped, mapped: set[tuple[str, str]]) -> list[Unaccounted]:
    """Return tables that the plan does not know and that have changed since the snapshot; their rows cannot be told apart."""
    found = []
    for schema, name, readable in content_digest.tables(target):
        if (schema, name) in mapped or schema == BOOKKEEPING or schema.startswith(KEPT_LEDGER):
            continue
        before = dumped.content.table(schema, name)
        if not readable:  # it came after the snapshot, or its rights were taken away since; at least one row is assumed
            found.append(Unaccounted(f"{endpoint.name}.{schema}.{name}, which the role cannot read", 1, 0))
            continue
        table = content_digest.read_table(target, schema, name)
        if before is None and table.rows:
            found.append(Unaccounted(f"{endpoint.name}.{table.name}", table.rows, 0))
        elif before is not None and (before.rows, before.digest) != (table.rows, table.digest):
            found.append(Unaccounted(f"{endpoint.name}.{table.name}", max(1, table.rows - before.rows), 0))
    return found


def count_rows(endpoint: Endpoint, tables: list[tuple[str, str]]) -> int:
    """Return how many rows the tables hold together; those that are not there hold none."""
    connection = driver.connect(endpoint, application_name=databases.APPLICATION_NAME, readonly=True)
    with contextlib.closing(connection), driver.database_errors(endpoint.place, "counting rows"):
        there = [name for name in (qualified(*table) for table in tables) if driver.scalar(connection, "SELECT to_regclass(%s)", (name,)) is not None]
        return sum(int(driver.scalar(connection, f"SELECT count(*) FROM {name}")) for name in there)


def refuse_strangers(found: Sequence[Unaccounted], allowed: int, *, same_plan: bool = True) -> None:
    """MigrationError when more rows would be left behind than the operator has agreed to."""
    rows = sum(item.rows for item in found)
    if rows <= allowed:
        return
    where = ", ".join(f"{item.rows:,} in {item.table}" for item in found)
    computed = sum(item.computed for item in found)
    gone = f"; {computed:,} of them look migrated from source rows that are gone since" if computed else ""
    if not same_plan:  # which rows were migrated is only known to the plan that carried them
        gone = "; this run has another plan than the migration, whose rows it cannot tell: check out the mappings and the namespace that it was made with"
    what = "1 row that is" if rows == 1 else f"{rows:,} rows that are"
    raise MigrationError(
        f"the services hold {what} neither in the snapshot nor migrated ({where}{gone}): somebody has been using them, and the"
        " restored databases would not have these rows (they stay in the kept ones); this run has changed nothing. To leave the rows behind run again"
        f" with -e rollback_discard_rows={rows}, to keep them with -e rollback_scope=data"
    )
