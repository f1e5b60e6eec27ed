# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make these keys equal: the one way in which rows are written where rows may already be.

The projection of the given source keys goes into a staging table beside each target; then rows that the projection does not yield
any more are deleted, rows that differ are updated and absent ones inserted. Resume, repair and catch-up all call equalize().

Rows may exchange unique values, however far apart and along whatever chain: all rows of a table are staged before one is written. The
plain way (update, insert) comes first; where a key stands in its way, all differing rows are replaced in one statement, at whose
end only the keys are judged; where a delete would take other rows along, values are parked instead (parking.py).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import MigrationError
from ..plan import ownership, row_id
from ..plan.model import Part, Target
from ..plan.predicates import one_of
from ..postgres import driver
from ..postgres.driver import redact
from ..postgres.pump import pump
from ..postgres.quote import ident
from ..postgres.temporary_indexes import lent_indexes
from .unique_values import make_room

BATCH = 5000  # keys; the fastest size measured for a re-read
MANY = 1000  # rows that go: from there on it pays to index what may refer to them
_FOREIGN_KEY = "23503"
_KEYS = (_FOREIGN_KEY, "23505", "23P01")  # foreign key, unique, exclusion


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


@dataclass(frozen=True)
class Work:
    """What is to be made equal in one target: source keys by the name of the part, and ids that go when the source keys do not yield them.

    A key is the text of the part's key (a JSON array for a composite key), an id the name of a row (row_id.py). Both may be read once only.
    """

    target: Target
    keys: Mapping[str, Iterable[str]] = field(default_factory=dict)
    ids: Iterable[str] = ()


def equalize(source: driver.Connection, connection: driver.Connection, schema: str, work: Sequence[Work]) -> Equalized:
    """Make the rows of these keys what the projection says; `work` belongs to one database, parents before those that refer to them.

    Works in the target's current transaction, which the caller ends. `source` was connected with the plan's settings.
    MigrationError when a row that is none of these stands in the way.
    """
    with contextlib.ExitStack() as stack:
        stages = [stack.enter_context(staging(connection, item.target, f"migration_stage_{number}")) for number, item in enumerate(work)]
        for stage, item in zip(stages, work, strict=True):
            for part in item.target.parts:
                stage.read(source, schema, part, item.keys.get(part.name, ()))
            stage.doom(item.ids)
        stack.enter_context(lent_indexes(connection, [stage.target.qualified for stage in stages if stage.doomed >= MANY]))
        try:
            with _savepoint(connection, "equalize_order"):
                return _sum(stage.delete() for stage in reversed(stages)) + _sum(stage.write() for stage in stages)
        except Exception as exc:  # a row still refers to one that goes
            if getattr(exc.__cause__ or exc, "pgcode", None) != _FOREIGN_KEY:
                raise
        return _sum(stage.write() for stage in stages) + _sum(stage.delete() for stage in reversed(stages))


def carry_staged(source: driver.Connection, select: str, connection: driver.Connection, target: Target) -> tuple[int, int]:
    """Carry the rows of a chunk into a table that others may use: staged, then upserted; return rows and bytes."""
    with staging(connection, target) as stage:
        carried = pump(source, select, connection, f"COPY {stage.name} FROM STDIN (FORMAT binary)")
        stage.write(whole=False)
    return carried


def staged(connection: driver.Connection, target: Target, copy: Callable[[str], int]) -> int:
    """Upsert the rows of a chunk that `copy(relation)` puts into the staging relation; return how many rows that were."""
    with staging(connection, target) as stage:
        rows = copy(stage.name)
        stage.write(whole=False)
    return rows


@contextlib.contextmanager
def staging(connection: driver.Connection, target: Target, name: str = "migration_stage") -> Iterator[Stage]:
    """Have an empty stage for a target for the length of the block."""
    columns = ", ".join(ident(column) for column in target.columns)
    driver.rows(connection, f"DROP TABLE IF EXISTS pg_temp.{name}, pg_temp.{name}_gone")
    driver.rows(connection, f"CREATE TEMPORARY TABLE {name} AS SELECT {columns} FROM {target.qualified} WITH NO DATA")
    driver.rows(connection, f"CREATE TEMPORARY TABLE {name}_gone (id {'uuid' if row_id.single(target) else 'jsonb'})")
    yield Stage(connection, target, f"pg_temp.{name}")
    driver.rows(connection, f"DROP TABLE pg_temp.{name}, pg_temp.{name}_gone")


class Stage:
    """Wanted rows of one target in a temporary table `name`, and the ids of rows that may have to go beside it."""

    def __init__(self, connection: driver.Connection, target: Target, name: str) -> None:
        self.connection, self.target, self.name = connection, target, name
        self._batches = 0
        by_key = target.bookkeeping and target.table == "id_map"  # whose id is a value like any other
        self._identity = ("source_key", "entity") if by_key else target.identity
        self._columns = [ident(column) for column in target.columns]

    def read(self, source: driver.Connection, schema: str, part: Part, keys: Iterable[str]) -> None:
        """Add the rows that a part yields for some source keys."""
        for batch in _batches(keys):
            pump(source, _select(part, schema, batch), self.connection, f"COPY {self.name} FROM STDIN (FORMAT binary)")
            self._batches += 1
        if self._batches > 1:  # a key that was named twice
            same = " AND ".join(f"a.{ident(name)} = b.{ident(name)}" for name in self._identity)
            driver.rows(self.connection, f"DELETE FROM {self.name} AS a USING {self.name} AS b WHERE {same} AND a.ctid < b.ctid")
            driver.rows(self.connection, f"ANALYZE {self.name}")

    def doom(self, ids: Iterable[str]) -> None:
        """Add ids whose rows go unless they are among the wanted ones."""
        with self.connection.cursor() as cursor:
            for batch in _batches(ids):
                cursor.copy_expert(f"COPY {self.name}_gone FROM STDIN", io.StringIO("".join(f"{driver.copy_text(value)}\n" for value in batch)))

    @property
    def doomed(self) -> int:
        """Return how many rows are to go."""
        return int(driver.scalar(self.connection, f"SELECT count(*) FROM {self.target.qualified} AS t WHERE {self._leaves}"))

    def delete(self) -> Equalized:
        """Delete the rows that are to go and that no wanted row replaces."""
        return Equalized(deleted=_count(self.connection, f"DELETE FROM {self.target.qualified} AS t WHERE {self._leaves}"))

    def write(self, *, whole: bool = True) -> Equalized:
        """Make the target's rows of the same identity equal to the wanted ones, whatever they exchange among themselves.

        With `whole` the stage has all that is to change; without it others hold the rest of the migration's own rows, so one of
        those in the way is parked too, and is written again with its own chunk or by the comparison of the snapshots.
        """
        ways: list[Callable[[], Equalized]] = [self._merge, self._replace, lambda: self._merge_with_room(whole)]
        if self._deletes_spread():
            del ways[1]
        for way in ways[:-1]:
            try:
                with _savepoint(self.connection, "equalize_way"):
                    return way()
            except Exception as exc:
                if getattr(exc, "pgcode", None) not in _KEYS:
                    raise
        try:
            return ways[-1]()
        except Exception as exc:
            if not str(getattr(exc, "pgcode", None) or "").startswith("23"):
                raise
            raise MigrationError(f"{self.target.name}: making rows equal: {redact(exc)}; playbooks/validate.yml names the rows in the way") from exc

    def _merge(self) -> Equalized:
        own = self._own
        changes = ", ".join(f"{name} = s.{name}" for name in self._columns if name not in own) or f"{own[0]} = s.{own[0]}"
        updated = _count(self.connection, f"UPDATE {self.target.qualified} AS t SET {changes} FROM {self.name} AS s WHERE {self._same} AND {self._differs}")
        absent = f"NOT EXISTS (SELECT FROM {self.target.qualified} AS t WHERE {self._same})"
        return Equalized(inserted=_count(self.connection, f"{self._insert} WHERE {absent}"), updated=updated)

    def _replace(self) -> Equalized:
        """Delete the differing rows and insert the wanted ones in one statement: keys are judged at its end, deleted rows do not count.

        The insert waits for the whole delete, because its one-time condition counts the deleted rows.
        """
        table = self.target.qualified
        equal = f"EXISTS (SELECT FROM {table} AS t WHERE {self._same} AND NOT ({self._differs}))"
        gone, put = driver.rows(
            self.connection,
            f"WITH gone AS (DELETE FROM {table} AS t USING {self.name} AS s WHERE {self._same} AND {self._differs} RETURNING 1),"
            f" put AS ({self._insert} WHERE (SELECT count(*) FROM gone) >= 0 AND NOT {equal} RETURNING 1)"
            " SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM put)",
        )[0]
        return Equalized(inserted=put - gone, updated=gone)

    def _merge_with_room(self, whole: bool) -> Equalized:
        written = f"EXISTS (SELECT FROM {self.name} AS s WHERE {self._same})"
        ours = ownership.condition(self.target, "t")
        make_room(self.connection, self.target, self.name, " OR ".join([written, f"({self._leaves})", *([] if whole else [ours])]))
        return self._merge()

    def _deletes_spread(self) -> bool:
        """Tell whether deleting a row would be refused at once, or change or delete rows that refer to it."""
        return bool(
            driver.scalar(
                self.connection,
                "SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = %s::regclass AND confdeltype <> 'a')",
                (self.target.qualified,),
            )
        )

    @property
    def _own(self) -> tuple[str, ...]:
        return tuple(ident(name) for name in self._identity)

    @property
    def _same(self) -> str:
        """Return the condition that wanted and stored row have the same identity."""
        return " AND ".join(f"t.{name} = s.{name}" for name in self._own)

    @property
    def _differs(self) -> str:
        return " <> ".join(f"ROW({', '.join(f'{alias}.{name}' for name in self._columns)})::text" for alias in ("t", "s"))

    @property
    def _leaves(self) -> str:
        return (
            f"({row_id.columns(self.target, 't')}) IN (SELECT {self._named} FROM {self.name}_gone AS g)"
            f" AND NOT EXISTS (SELECT FROM {self.name} AS s WHERE {self._same})"  # an id under another key than its own goes too
        )

    @property
    def _named(self) -> str:
        return "g.id" if row_id.single(self.target) else row_id.values_of(self.target, "g.id")

    @property
    def _insert(self) -> str:
        listed = ", ".join(self._columns)
        return f"INSERT INTO {self.target.qualified} ({listed}) SELECT {', '.join('s.' + name for name in self._columns)} FROM {self.name} AS s"


@contextlib.contextmanager
def _savepoint(connection: driver.Connection, name: str) -> Iterator[None]:
    """Undo what the block did when it fails."""
    driver.rows(connection, f"SAVEPOINT {name}")
    try:
        yield
    except Exception:
        driver.rows(connection, f"ROLLBACK TO SAVEPOINT {name}")
        raise
    driver.rows(connection, f"RELEASE SAVEPOINT {name}")


def _select(part: Part, schema: str, keys: Sequence[str]) -> str:
    """Return the projection for some keys; a composite key is compared by its text, within the rows that its first column picks."""
    chosen = "SELECT " + ", ".join(f"{cell.sql} AS {ident(cell.name)}" for cell in part.cells)
    predicate = one_of(keys)
    if len(part.key) == 1:
        return f"{chosen} FROM {part.source_where(schema, part.key[0], predicate)}"
    first = sorted({str(json.loads(key)[0]) for key in keys})
    return f"{chosen} FROM {part.source_where(schema, part.key[0], one_of(first))} AND {predicate(part.key_text)}"


def _batches(values: Iterable[str]) -> Iterator[list[str]]:
    """Yield the values, BATCH at a time."""
    left = iter(values)
    while batch := list(itertools.islice(left, BATCH)):
        yield batch


def _sum(done: Iterable[Equalized]) -> Equalized:
    return sum(done, Equalized())


def _count(connection: driver.Connection, statement: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return int(cursor.rowcount)
