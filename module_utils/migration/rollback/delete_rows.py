# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Delete exactly the rows that the migration wrote: those whose ids it computes, and those in its id map."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence

from ..context import Context
from ..errors import MigrationError
from ..plan import row_id
from ..plan.model import BOOKKEEPING, Target
from ..postgres import databases, driver
from ..postgres.driver import Endpoint
from ..postgres.quote import ident, literal
from ..postgres.temporary_indexes import lent_indexes
from ..state import rolled_back
from ..state.control import Migration

LOCK_WAIT = "60s"
_IDS = "migration_rollback_ids"  # a temporary table


def is_removed(endpoint: Endpoint, migration: Migration) -> bool:
    """Return whether the migration's rows were removed: the ledger got its other name in the same transaction."""
    connection = driver.connect(endpoint, application_name=databases.APPLICATION_NAME, readonly=True)
    with contextlib.closing(connection), driver.database_errors(endpoint.place, "looking for the ledger"):
        return driver.scalar(connection, "SELECT to_regnamespace(%s) IS NOT NULL", (ident(rolled_back.kept_schema(migration)),)) is True


def remove(context: Context, service: str, migration: Migration) -> dict[str, int]:
    """Delete the migration's rows of one service in one transaction; return how many from each table."""
    endpoint = context.targets[service]
    removed = {}
    with (
        contextlib.closing(context.connect_source(databases.APPLICATION_NAME, plan_time=migration.plan_time)) as source,
        contextlib.closing(context.connect_target(service, databases.APPLICATION_NAME)) as target,
        driver.database_errors(endpoint.place, "removing the migration's rows"),
    ):
        source.set_session(isolation_level="REPEATABLE READ", readonly=True)
        _shut_out_transfer(target, endpoint)
        with_map = driver.scalar(target, "SELECT to_regclass('migration.id_map')") is not None
        mapped = [item for item in context.plan.of(service) if not item.bookkeeping]
        ordered = children_first(target, mapped)
        with lent_indexes(target, [item.qualified for item in mapped]):
            for number, item in enumerate(ordered):
                if driver.scalar(target, "SELECT to_regclass(%s)", (item.qualified,)) is None:
                    _refuse_lost(target, endpoint, item)
                    continue
                _load_ids(context, source, target, item, with_map)
                _refuse_referrers(target, endpoint, item, ordered[number + 1 :])
                with target.cursor() as cursor:
                    ours = f"(SELECT DISTINCT {row_id.columns(item)} FROM {_IDS}) AS ours"
                    cursor.execute(f"DELETE FROM {item.qualified} AS row USING {ours} WHERE {row_id.same(item, 'row', 'ours')}")
                    removed[item.name] = cursor.rowcount
                driver.rows(target, f"DROP TABLE {_IDS}")
        if driver.scalar(target, "SELECT to_regnamespace(%s)", (BOOKKEEPING,)) is None:
            driver.rows(target, f"CREATE SCHEMA {ident(rolled_back.kept_schema(migration))}")
        else:
            driver.rows(target, f"ALTER SCHEMA {ident(BOOKKEEPING)} RENAME TO {ident(rolled_back.kept_schema(migration))}")
        target.commit()
    return removed


def _refuse_lost(target: driver.Connection, endpoint: Endpoint, item: Target) -> None:
    """MigrationError when a table that the migration filled is not there: under another name its rows would be left."""
    if driver.scalar(target, "SELECT to_regclass('migration.chunks')") is None:
        return
    rows = driver.scalar(target, "SELECT coalesce(sum(rows), 0)::bigint FROM migration.chunks WHERE target = %s", (item.name,))
    if rows:
        raise MigrationError(
            f"{endpoint.place}: {item.name} is not there, and the ledger has {rows:,} rows in it; nothing was removed. Give the table its name back"
            " (ALTER TABLE ... RENAME, SET SCHEMA); if it was dropped, make an empty one of its definition, or use rollback_scope=databases"
        )


def foresee(context: Context, service: str, migration: Migration) -> dict[str, int]:
    """Return how many rows remove() would delete from each table; only temporary tables are written, for the while.

    MigrationError when it would stop because rows that stay refer to migrated ones.
    """
    endpoint = context.targets[service]
    found = {}
    with (
        contextlib.closing(context.connect_source(databases.APPLICATION_NAME, plan_time=migration.plan_time)) as source,
        contextlib.closing(context.connect_target(service, databases.APPLICATION_NAME)) as target,
        driver.database_errors(endpoint.place, "looking for rows that refer to migrated ones"),
    ):
        source.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with_map = driver.scalar(target, "SELECT to_regclass('migration.id_map')") is not None
        ordered = children_first(target, [item for item in context.plan.of(service) if not item.bookkeeping])
        gone: dict[int, tuple[str, Target]] = {}
        for number, item in enumerate(ordered):
            oid = driver.scalar(target, "SELECT to_regclass(%s)::oid::bigint", (item.qualified,))
            if oid is None:
                continue
            _load_ids(context, source, target, item, with_map)
            _refuse_referrers(target, endpoint, item, ordered[number + 1 :], gone)
            ours = f"SELECT count(*) FROM {item.qualified} AS row WHERE EXISTS (SELECT FROM {_IDS} AS ours WHERE {row_id.same(item, 'ours', 'row')})"
            found[item.name] = int(driver.scalar(target, ours))
            gone[oid] = (f"{_IDS}_{number}", item)
            driver.rows(target, f"ALTER TABLE {_IDS} RENAME TO {_IDS}_{number}")
        target.rollback()
    return found


_REFERRERS = """
SELECT f.conrelid::bigint, f.conrelid::regclass::text, f.conrelid = f.confrelid, f.confdeltype::text,
    (SELECT string_agg(format('child.%%I = parent.%%I', c.attname, p.attname), ' AND ')
     FROM unnest(f.conkey, f.confkey) AS k (child, parent)
     JOIN pg_attribute c ON c.attrelid = f.conrelid AND c.attnum = k.child JOIN pg_attribute p ON p.attrelid = f.confrelid AND p.attnum = k.parent)
FROM pg_constraint f
WHERE f.contype = 'f' AND f.conparentid = 0 AND f.confrelid = to_regclass(%s)
AND f.conrelid <> ALL(SELECT to_regclass(name) FROM unnest(%s::text[]) AS names (name) WHERE to_regclass(name) IS NOT NULL)
AND (f.confdeltype IN ('c', 'n', 'd') OR has_table_privilege(f.conrelid, 'SELECT'))
ORDER BY 2
"""
_ON_DELETE = {"c": "be deleted with them", "n": "lose the reference", "d": "lose the reference"}


def _refuse_referrers(
    target: driver.Connection, endpoint: Endpoint, item: Target, later: Sequence[Target], gone: Mapping[int, tuple[str, Target]] | None = None
) -> None:
    """MigrationError when rows that stay refer to rows that are about to be deleted: a foreign key would delete or change them too.

    The migration's own rows in the tables that refer to this one are gone already, those in tables still to come (a ring) do not count.
    `gone` has, by the table's oid, the table of ids and the target of those that are only to be deleted.
    """
    found = driver.rows(target, _REFERRERS, (item.qualified, [other.qualified for other in later]))
    for oid, table, itself, action, same in found:
        known = (_IDS, item) if itself else (gone or {}).get(oid)
        own = f" AND NOT EXISTS (SELECT FROM {known[0]} AS ours WHERE {row_id.same(known[1], 'ours', 'child')})" if known else ""
        rows = driver.scalar(
            target,
            f"SELECT count(*) FROM {table} AS child WHERE EXISTS (SELECT FROM {item.qualified} AS parent"
            f" JOIN {_IDS} AS ours ON {row_id.same(item, 'ours', 'parent')} WHERE {same}){own}",
        )
        if rows:
            raise MigrationError(
                f"{endpoint.place}: {rows:,} rows of {table} refer to migrated rows of {item.name} and are not known as migrated (somebody made them, or their"
                f" source rows are gone since): they would {_ON_DELETE.get(action, 'refer to nothing')}; nothing was removed. Delete them or their"
                " references first, or use rollback_scope=databases"
            )


def _shut_out_transfer(target: driver.Connection, endpoint: Endpoint) -> None:
    """Wait for chunks in flight and let no other begin: each commits with its row of the ledger, which is renamed in this very transaction."""
    if driver.scalar(target, "SELECT to_regclass('migration.chunks')") is None:
        return
    driver.rows(target, f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
    try:
        driver.rows(target, "LOCK TABLE migration.chunks IN EXCLUSIVE MODE")
    except Exception as exc:
        if getattr(exc, "pgcode", None) == "55P03":
            raise MigrationError(f"{endpoint.place}: a transfer is under way and its chunk takes more than {LOCK_WAIT}; stop it, then run this again") from exc
        raise
    driver.rows(target, "SET LOCAL lock_timeout = 0")


def children_first(connection: driver.Connection, targets: Sequence[Target]) -> list[Target]:
    """Return the tables so that each comes before those that its foreign keys refer to; rings end in any order."""
    refers = {
        (child, parent)
        for child, parent in driver.rows(
            connection,
            "SELECT format('%I.%I', n.nspname, c.relname), format('%I.%I', m.nspname, d.relname) FROM pg_constraint f"
            " JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_class d ON d.oid = f.confrelid JOIN pg_namespace m ON m.oid = d.relnamespace WHERE f.contype = 'f' AND f.conrelid <> f.confrelid",
        )
    }
    left = {driver.scalar(connection, "SELECT format('%%I.%%I', %s, %s)", (item.schema, item.table)): item for item in targets}
    ordered = []
    while left:
        free = next((name for name in left if not any(parent == name and child in left for child, parent in refers)), next(iter(left)))
        ordered.append(left.pop(free))
    return ordered


def _load_ids(context: Context, source: driver.Connection, target: driver.Connection, item: Target, with_map: bool) -> None:
    """Make the temporary table, with every id (primary key) that the migration can have given to a row of this table."""
    driver.rows(target, f"CREATE TEMPORARY TABLE {_IDS} ON COMMIT DROP AS SELECT {row_id.columns(item)} FROM {item.qualified} WITH NO DATA")
    for part in item.parts:
        select = part.select_columns([cell.sql for cell in part.identity_cells], context.source.schema)
        _pipe(source, f"COPY ({select}) TO STDOUT (FORMAT binary)", target, f"COPY {_IDS} FROM STDIN (FORMAT binary)")
        if with_map and part.minted:
            driver.rows(target, f"INSERT INTO {_IDS} SELECT id FROM migration.id_map WHERE entity = {literal(part.entity)}")
    driver.rows(target, f"ANALYZE {_IDS}")


def _pipe(source: driver.Connection, copy_out: str, target: driver.Connection, copy_in: str) -> None:
    """Copy from one connection to another; Python sees no row."""
    reading, writing = os.pipe()
    failed: list[BaseException] = []

    def send() -> None:
        try:
            with os.fdopen(writing, "wb") as out, source.cursor() as cursor:
                cursor.copy_expert(copy_out, out)
        except BaseException as exc:
            failed.append(exc)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        with os.fdopen(reading, "rb") as file, target.cursor() as cursor:
            cursor.copy_expert(copy_in, file)
    finally:
        sender.join()
    if failed:
        raise failed[0] if not isinstance(failed[0], OSError) else MigrationError("reading the ids from the source broke off; run this again")
