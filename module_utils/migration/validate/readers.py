# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read all databases at one consistent point each, with several connections a side that share an exported snapshot."""

from __future__ import annotations

import contextlib
import io
import queue
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from ..context import Context
from ..errors import MigrationError
from ..plan.model import Target
from ..postgres import driver
from ..postgres.quote import array, ident, literal, qualified

APPLICATION_NAME = "edulink-migration validate"
SETTINGS: Mapping[str, str] = {"work_mem": "64MB", "jit": "off"}

Rows = list[tuple[Any, ...]]
Ask = Callable[[str], Rows]
Result = TypeVar("Result")
_SHORT, _LONG, _COPY_HEADER = struct.Struct("!h"), struct.Struct("!i"), 19
ForeignKeys = frozenset[tuple[str, str, str, str]]  # table, column, referenced table, its column
POSITION = (
    "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text,"
    " txid_current_snapshot()::text, now()::text, current_setting('server_version')"
)
_READABLE = (
    "SELECT name FROM unnest({names}::text[]) AS named (name), to_regclass(name) AS found"
    " WHERE found IS NOT NULL AND has_any_column_privilege(found, 'SELECT') AND NOT row_security_active(found)"
)
LOCK_SECONDS = 30


@dataclass
class _Database:
    """One database: its connections, the first of which holds the snapshot, and the threads that use them."""

    name: str
    place: str
    connections: list[driver.Connection] = field(default_factory=list)
    free: queue.SimpleQueue[driver.Connection] = field(default_factory=queue.SimpleQueue)
    spare: driver.Connection | None = None
    given: str | None = None
    tables: tuple[str, ...] = ()


class Sides:
    """The source and the targets, opened read only; use it in a `with`. Statements run in threads, one connection each."""

    def __init__(self, context: Context, plan_time: str, targets: Sequence[Target], snapshot: str | None, workers: int, parallel: int) -> None:
        settings = {**SETTINGS, "max_parallel_workers_per_gather": str(parallel)}
        services = dict.fromkeys(target.service for target in targets)
        self.schema = context.source.schema
        tables = dict.fromkeys(qualified(self.schema, table) for target in targets for part in target.parts for table in part.every_table)
        self._source = _Database(context.source.name, context.source.place, given=snapshot, tables=tuple(tables))
        self._targets = {
            name: _Database(name, context.targets[name].place, tables=tuple(target.qualified for target in targets if target.service == name))
            for name in services
        }
        try:
            for _ in range(workers):
                self._source.connections.append(context.connect_source(APPLICATION_NAME, plan_time=plan_time, settings=settings))
                for name, database in self._targets.items():
                    database.connections.append(context.connect_target(name, APPLICATION_NAME, readonly=True, settings=settings))
            # Outside any snapshot, to see whether somebody writes.
            self._source.spare = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
            for name, database in self._targets.items():
                database.spare = context.connect_target(name, APPLICATION_NAME, readonly=True, autocommit=True)
        except BaseException:
            self._close()
            raise
        # A pool for each side, not for each database: each side takes `workers` processors at most.
        self._pools = {"source": ThreadPoolExecutor(workers), "targets": ThreadPoolExecutor(workers)}

    def __enter__(self) -> Sides:
        for database in self._databases:
            self._begin(database)
            for connection in database.connections:
                database.free.put(connection)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        if kind is not None:
            for database in self._databases:
                for connection in database.connections:
                    # One that the server has closed cannot be cancelled; what ended the block is what is told.
                    with contextlib.suppress(MigrationError), driver.database_errors(database.place, "cancelling"):
                        connection.cancel()
        for pool in self._pools.values():
            pool.shutdown(wait=True)
        self._close()

    @property
    def _databases(self) -> list[_Database]:
        return [self._source, *self._targets.values()]

    def leaders(self) -> dict[str, driver.Connection]:
        """Return a connection of each database by its name."""
        return {database.place: database.connections[0] for database in self._databases}

    def positions(self) -> dict[str, str]:
        """Return where in its WAL, when and on which version each database is read."""
        found = {}
        for database in self._databases:
            with driver.database_errors(database.place, "reading its position"):
                lsn, snapshot, at, version = driver.rows(database.connections[0], POSITION)[0]
            found[database.name] = f"{lsn} at {at} (snapshot {snapshot}, PostgreSQL {version})"
        return found

    def source(self, statement: str, doing: str) -> Future[tuple[Rows, float]]:
        """Run a statement on the source; the result is its rows and the seconds it took."""
        return self._pools["source"].submit(_run, self._source, statement, doing)

    def target(self, service: str, statement: str, doing: str) -> Future[tuple[Rows, float]]:
        """Run a statement on a target."""
        return self._pools["targets"].submit(_run, self._targets[service], statement, doing)

    def source_copy(self, select: str, doing: str) -> Future[bytes]:
        """Return what a SELECT on the source gives in binary COPY format (rows_of_copy() reads it): a third of the memory of rows."""
        return self._pools["source"].submit(_copy, self._source, select, doing)

    def target_copy(self, service: str, select: str, doing: str) -> Future[bytes]:
        """Return what a SELECT on a target gives in binary COPY format."""
        return self._pools["targets"].submit(_copy, self._targets[service], select, doing)

    def source_job(self, job: Callable[[Ask], Result], doing: str) -> Future[Result]:
        """Run statements one after the other on one connection of the source."""
        return self._pools["source"].submit(_work, self._source, job, doing)

    def target_job(self, service: str, job: Callable[[Ask], Result], doing: str) -> Future[Result]:
        """Run statements one after the other on one connection of a target."""
        return self._pools["targets"].submit(_work, self._targets[service], job, doing)

    def span(self, table: str, column: str) -> tuple[int, int, float] | None:
        """Return the least and greatest value of a source column and the table's rows; None unless it is an integer with an index of its own."""
        relation = qualified(self.schema, table)
        indexed = (
            "SELECT c.reltuples FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid JOIN pg_am AS m ON m.oid = x.relam AND m.amname = 'btree'"
            " JOIN pg_class AS c ON c.oid = i.indrelid JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]"
            f" WHERE c.oid = {literal(relation)}::regclass AND a.attname = {literal(column)} AND i.indisvalid AND i.indpred IS NULL"
            " AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) LIMIT 1"
        )
        doing = f"looking where {table} can be cut"
        found = self.source(indexed, doing).result()[0]
        if not found:
            return None
        low, high = self.source(f"SELECT min({ident(column)}), max({ident(column)}) FROM {relation}", doing).result()[0][0]
        return None if low is None else (low, high, float(found[0][0]))

    def plain_tables(self) -> frozenset[str]:
        """Return the names of the source's relations whose rows' versions can be read: tables, not views, and not column by column."""
        statement = (
            f"SELECT relname FROM pg_class WHERE relnamespace = {literal(ident(self.schema))}::regnamespace"
            " AND relkind IN ('r', 'p') AND has_table_privilege(oid, 'SELECT')"
        )
        return frozenset(row[0] for row in self.source(statement, "looking for the source's tables").result()[0])

    def blocks(self, target: Target) -> int:
        """Return how many pages a target's plain table has; 0 for anything else."""
        return int(self.ask(target.service, _size(target.qualified))[0][0])

    def source_size(self, table: str) -> tuple[int, float]:
        """Return how many pages and about how many rows a source's plain table has; no pages for anything else."""
        blocks, rows = self.source(_size(qualified(self.schema, table)), f"looking how large {table} is").result()[0][0]
        return int(blocks), float(rows)

    def ask(self, service: str, statement: str) -> Rows:
        """Run a short statement on a target."""
        return self.target(service, statement, "reading the migration's tables").result()[0]

    def estimate(self, target: Target) -> float:
        """Return about how many rows a target has or will have, by the statistics of both sides."""
        rows = "CASE WHEN c.reltuples > 0 THEN c.reltuples ELSE pg_relation_size(c.oid) / 100 END"
        own = self.ask(target.service, f"SELECT {rows} FROM pg_class AS c WHERE c.oid = to_regclass({literal(target.qualified)})")
        names = ",".join(literal(table) for table in sorted({table for part in target.parts for table in part.tables[:1]}))
        theirs = driver.scalar(
            self._source.connections[0],
            f"SELECT coalesce(sum({rows}), 0) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            f" WHERE n.nspname = {literal(self.schema)} AND c.relname IN ({names})",
        )
        if not own:
            raise MigrationError(f"{target.name}: the table {target.qualified} does not exist; run playbooks/schema.yml and playbooks/migrate.yml first")
        return max(float(own[0][0]), float(theirs) / 4)  # a part's table is an upper bound only: few users are staff

    def foreign_keys(self) -> ForeignKeys:
        """Return the source's foreign keys of one column that hold for every row: validated, enforced, between tables of its schema."""
        statement = (
            "SELECT one.relname, a.attname, other.relname, b.attname FROM pg_constraint AS c"
            " JOIN pg_class AS one ON one.oid = c.conrelid JOIN pg_class AS other ON other.oid = c.confrelid"
            " JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]"
            " JOIN pg_attribute AS b ON b.attrelid = c.confrelid AND b.attnum = c.confkey[1]"
            " WHERE c.contype = 'f' AND c.convalidated AND cardinality(c.conkey) = 1"
            f" AND coalesce((to_jsonb(c) ->> 'conenforced')::boolean, true) AND c.connamespace = {literal(ident(self.schema))}::regnamespace"
            " AND other.relnamespace = c.connamespace"  # elsewhere there may be another table of that name
            " AND c.conparentid = 0"  # those of partitions are about some of the rows: a value's row may be in another partition
            " AND NOT (one.relkind = 'r' AND one.relhassubclass)"  # tables that inherit have rows that the key does not see
            # A trigger that was disabled, be it a partition's, has not checked what was written since; nor does any fire for what is replicated.
            " AND NOT EXISTS (WITH RECURSIVE whole AS (SELECT c.oid UNION ALL"
            " SELECT one.oid FROM whole JOIN pg_constraint AS one ON one.conparentid = whole.oid)"
            " SELECT FROM whole JOIN pg_trigger AS t ON t.tgconstraint = whole.oid WHERE t.tgenabled IN ('D', 'R'))"
            " AND NOT EXISTS (SELECT FROM pg_subscription_rel AS s WHERE s.srrelid IN (SELECT c.conrelid UNION ALL SELECT c.confrelid"
            " UNION ALL SELECT relid FROM pg_partition_tree(c.conrelid) UNION ALL SELECT relid FROM pg_partition_tree(c.confrelid)))"
        )
        return frozenset(tuple(row) for row in self.source(statement, "reading the source's foreign keys").result()[0])

    def written_to(self) -> bool:
        """Tell whether anybody has written to one of the servers since the snapshots were taken."""
        ask = "SELECT txid_current_snapshot()::text"
        for database in self._databases:
            with driver.database_errors(database.place, "looking whether anybody writes"):
                if driver.scalar(database.connections[0], ask) != driver.scalar(database.spare, ask):
                    return True
        return False

    def renew(self) -> None:
        """Take a newer consistent point; a snapshot that was given is not used again."""
        for database in self._databases:
            database.given = None
            with driver.database_errors(database.place, "ending a consistent point"):
                for connection in database.connections:
                    connection.rollback()
            self._begin(database)

    def _begin(self, database: _Database) -> None:
        with driver.database_errors(database.place, "taking a consistent point"):
            for connection in database.connections:
                connection.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=False)
            leader = database.connections[0]
            if database.given is not None:
                driver.rows(leader, f"SET TRANSACTION SNAPSHOT {literal(database.given)}")
            database.given = driver.scalar(leader, "SELECT pg_export_snapshot()") if len(database.connections) > 1 else None
            for connection in database.connections[1:]:
                driver.rows(connection, f"SET TRANSACTION SNAPSHOT {literal(str(database.given))}")
            holding = _holding([str(row[0]) for row in driver.rows(leader, _READABLE.format(names=array(database.tables)))])
            for connection in database.connections:
                driver.rows(connection, holding)

    def _close(self) -> None:
        for database in self._databases:
            for connection in [*database.connections, database.spare]:
                if connection is not None:
                    connection.close()


def _holding(tables: Sequence[str]) -> str:
    """Return what holds each table (ACCESS SHARE, partitions too) until the transaction's end.

    Done by every connection before any reads: an ALTER TABLE that comes in between would wait for those that have read, and the others for it.
    """
    looks = " UNION ALL ".join(f"(SELECT FROM {table} LIMIT 0)" for table in tables)
    return f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'; {looks or 'SELECT'}; SET LOCAL lock_timeout = 0"


def _size(relation: str) -> str:
    """Return the SELECT of a plain table's pages and about its rows; a table that others inherit from is not only its own pages."""
    found = f"FROM pg_class AS c WHERE c.oid = to_regclass({literal(relation)}) AND c.relkind = 'r' AND NOT c.relhassubclass"
    pages = "pg_relation_size(c.oid) / current_setting('block_size')::int"
    return f"SELECT coalesce((SELECT {pages} {found}), 0), coalesce((SELECT greatest(c.reltuples, pg_relation_size(c.oid) / 1000) {found}), 0)"


def rows_of_copy(data: bytes) -> Iterator[tuple[bytes, ...]]:
    """Yield the rows of binary COPY data (PostgreSQL manual, COPY, "Binary Format"); NULL is read as empty."""
    place = _COPY_HEADER
    (fields,) = _SHORT.unpack_from(data, place)
    while fields != -1:
        place += 2
        row = []
        for _ in range(fields):
            (length,) = _LONG.unpack_from(data, place)
            place += 4
            row.append(data[place : place + max(length, 0)])
            place += max(length, 0)
        yield tuple(row)
        (fields,) = _SHORT.unpack_from(data, place)


def _run(database: _Database, statement: str, doing: str) -> tuple[Rows, float]:
    started = time.monotonic()
    return _work(database, lambda ask: ask(statement), doing), time.monotonic() - started


def _work(database: _Database, job: Callable[[Ask], Result], doing: str) -> Result:
    with _connection(database, doing) as connection:
        return job(lambda statement: driver.rows(connection, statement))


def _copy(database: _Database, select: str, doing: str) -> bytes:
    buffer = io.BytesIO()
    with _connection(database, doing) as connection, connection.cursor() as cursor:
        cursor.copy_expert(f"COPY ({select}) TO STDOUT (FORMAT binary)", buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def _connection(database: _Database, doing: str) -> Iterator[driver.Connection]:
    connection = database.free.get()
    try:
        with driver.database_errors(database.place, doing):
            yield connection
    finally:
        database.free.put(connection)
