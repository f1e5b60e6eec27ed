# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make these keys equal: the one way in which rows are written where rows may already be.

The projection of the given source keys goes into a staging table in the target; rows that differ are updated, absent ones are
inserted, and the given ids that the projection no longer yields are deleted. Resume, repair and catch-up all call this.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from . import driver
from .driver import database_errors
from .errors import MigrationError
from .plan import Part, Target, one_of
from .pump import pump
from .quote import ident

STAGE = "pg_temp.migration_stage"
BATCH = 5000  # keys; the fastest size measured for a re-read


@dataclass(frozen=True)
class Equalized:
    """How many rows a call wrote."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    def __add__(self, other: Equalized) -> Equalized:
        return Equalized(self.inserted + other.inserted, self.updated + other.updated, self.deleted + other.deleted)

    @property
    def rows(self) -> int:
        """Return how many rows were written."""
        return self.inserted + self.updated + self.deleted


def equalize(
    source: driver.Connection,
    connection: driver.Connection,
    schema: str,
    target: Target,
    part: Part,
    source_keys: Sequence[str],
    ids: Sequence[str] = (),
) -> Equalized:
    """Make the target's rows of some source keys what the projection says, and delete those of `ids` that it does not yield.

    `source_keys` are texts of the part's key (a JSON array for a composite key); `ids` are UUIDs as text. Works in the
    target's current transaction, which the caller ends. `source` was connected with the plan's settings.
    """
    done = Equalized()
    with staging(connection, target):
        for start in range(0, max(len(source_keys), 1), BATCH):
            keys = source_keys[start : start + BATCH]
            if keys:
                pump(source, _select(part, schema, keys), connection, f"COPY {STAGE} FROM STDIN (FORMAT binary)")
                done += _upsert(connection, target)
            done += _delete(connection, target, ids if start == 0 else ())
            driver.rows(connection, f"TRUNCATE {STAGE}")
    return done


def yielded_ids(source: driver.Connection, schema: str, part: Part, source_keys: Sequence[str]) -> set[str]:
    """Return the ids (UUIDs as text) that the projection yields for some source keys."""
    found: set[str] = set()
    for start in range(0, len(source_keys), BATCH):
        head = f"SELECT encode({part.id_cell.sql}, 'hex')::uuid::text"
        found.update(row[0] for row in driver.rows(source, _select(part, schema, source_keys[start : start + BATCH], head)))
    return found


def carry_staged(source: driver.Connection, select: str, connection: driver.Connection, target: Target) -> tuple[int, int]:
    """Carry the rows of a projection into a table that others may use: staged, then upserted; return rows and bytes."""
    with staging(connection, target):
        carried = pump(source, select, connection, f"COPY {STAGE} FROM STDIN (FORMAT binary)")
        _upsert(connection, target)
    return carried


def staged(connection: driver.Connection, target: Target, copy: Callable[[str], int]) -> int:
    """Upsert what `copy(relation)` puts into the staging relation; return how many rows that were."""
    with staging(connection, target):
        rows = copy(STAGE)
        _upsert(connection, target)
    return rows


@contextlib.contextmanager
def staging(connection: driver.Connection, target: Target) -> Iterator[None]:
    """Have an empty staging table like the target for the length of the block."""
    driver.rows(connection, f"DROP TABLE IF EXISTS {STAGE}")
    columns = ", ".join(ident(name) for name in target.columns)
    driver.rows(connection, f"CREATE TEMPORARY TABLE migration_stage AS SELECT {columns} FROM {target.qualified} WITH NO DATA")
    yield
    driver.rows(connection, f"DROP TABLE IF EXISTS {STAGE}")


def _select(part: Part, schema: str, keys: Sequence[str], head: str | None = None) -> str:
    """Return the projection for some keys; a composite key is compared by its text, within the rows that its first column picks."""
    chosen = head or _head(part)
    predicate = one_of(keys)
    if len(part.key) == 1:
        return f"{chosen} FROM {part.source_where(schema, part.key[0], predicate)}"
    first = sorted({_first(key) for key in keys})
    return f"{chosen} FROM {part.source_where(schema, part.key[0], one_of(first))} AND {predicate(part.key_text)}"


def _head(part: Part) -> str:
    return "SELECT " + ", ".join(f"{cell.sql} AS {ident(cell.name)}" for cell in part.cells)


def _first(key: str) -> str:
    return str(json.loads(key)[0])


def _upsert(connection: driver.Connection, target: Target) -> Equalized:
    """Upsert the staged rows, telling inserts from updates; a swap of unique values is settled by parking them first."""
    driver.rows(connection, "SAVEPOINT equalize")
    try:
        return _merge(connection, target)
    except Exception as exc:
        if getattr(exc, "pgcode", None) != "23505":
            raise
    driver.rows(connection, "ROLLBACK TO SAVEPOINT equalize")
    _park(connection, target)
    with database_errors(target.name, "making rows equal (another row holds the same unique value; validate names it)"):
        return _merge(connection, target)


def _merge(connection: driver.Connection, target: Target) -> Equalized:
    names = [ident(column) for column in target.columns]
    own = ident(target.id_column)
    kept = () if _by_key(target) else (own,)  # the id map's id is a value like any other
    changes = ", ".join(f"{name} = s.{name}" for name in names if name not in kept) or f"{own} = s.{own}"
    updated = _count(
        connection,
        f"UPDATE {target.qualified} AS t SET {changes} FROM {STAGE} AS s WHERE {_same_row(target)}"
        f" AND ROW({', '.join('t.' + n for n in names)})::text <> ROW({', '.join('s.' + n for n in names)})::text",
    )
    inserted = _count(
        connection,
        f"INSERT INTO {target.qualified} ({', '.join(names)}) SELECT {', '.join('s.' + n for n in names)} FROM {STAGE} AS s"
        f" WHERE NOT EXISTS (SELECT FROM {target.qualified} AS t WHERE {_same_row(target)})",
    )
    return Equalized(inserted=inserted, updated=updated)


def _by_key(target: Target) -> bool:
    return target.bookkeeping and target.table == "id_map"


def _same_row(target: Target) -> str:
    """Return the condition that staged and stored row have the same identity; the id map's is its key."""
    if _by_key(target):
        return "t.source_key = s.source_key AND t.entity = s.entity"
    return f"t.{ident(target.id_column)} = s.{ident(target.id_column)}"


def _park(connection: driver.Connection, target: Target) -> None:
    """Give the staged rows' unique texts a value that nobody has, so that two rows can swap theirs."""
    columns = [
        row[0]
        for row in driver.rows(
            connection,
            "SELECT DISTINCT a.attname FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)"
            " WHERE i.indrelid = %s::regclass AND i.indisunique AND NOT i.indisprimary AND a.atttypid IN ('text'::regtype, 'varchar'::regtype)",
            (target.qualified,),
        )
    ]
    own = ident(target.id_column)
    if not columns:
        raise MigrationError(f"{target.name}: another row holds the same unique value; validate names it, playbooks/repair.yml can remove it")
    changes = ", ".join(f"{ident(column)} = '~' || t.{own}::text" for column in columns)
    driver.rows(connection, f"UPDATE {target.qualified} AS t SET {changes} FROM {STAGE} AS s WHERE {_same_row(target)}")


def _delete(connection: driver.Connection, target: Target, ids: Sequence[str]) -> Equalized:
    if not ids:
        return Equalized()
    own = ident(target.id_column)
    return Equalized(
        deleted=_count(
            connection,
            f"DELETE FROM {target.qualified} AS t WHERE t.{own} = ANY (%s::uuid[])"
            f" AND NOT EXISTS (SELECT FROM {STAGE} AS s WHERE s.{own} = t.{own})",
            (list(ids),),
        )
    )


def _count(connection: driver.Connection, statement: str, arguments: Sequence[object] | None = None) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        return int(cursor.rowcount)
