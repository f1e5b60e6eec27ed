# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the source has, read once: tables, columns, keys, sizes, foreign keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..postgres import driver


@dataclass(frozen=True)
class SourceColumn:
    """A column of the source."""

    name: str
    type: str
    not_null: bool


@dataclass(frozen=True)
class SourceTable:
    """A table (or view) of the source; `rows` is the planner's estimate, -1 before the first ANALYZE; `size` (bytes) is as old.

    No function that measures a relation is asked: it would wait for a lock.
    """

    name: str
    kind: str
    columns: Mapping[str, SourceColumn]
    primary_key: tuple[str, ...]
    rows: float
    size: int
    readable: bool


    @property
    def width(self) -> float:
        """Return the bytes of a row, roughly; 0 before the first ANALYZE."""
        return self.size / self.rows if self.rows > 0 else 0.0


@dataclass(frozen=True)
class Reference:
    """A foreign key into the schema; `valid` is false for NOT VALID, `schema` and `rows` (an estimate) are its own table's."""

    name: str
    table: str
    columns: tuple[str, ...]
    parent: str
    valid: bool
    schema: str = ""
    rows: float = -1


@dataclass(frozen=True)
class SourceCatalog:
    """One schema of the source."""

    schema: str
    tables: Mapping[str, SourceTable]
    references: tuple[Reference, ...]
    role: str = "the reading role"

    @property
    def primary_keys(self) -> dict[str, str]:
        """Return the primary key column of each table that has one of one column."""
        return {name: table.primary_key[0] for name, table in self.tables.items() if len(table.primary_key) == 1}


def read(connection: driver.Connection, schema: str) -> SourceCatalog:
    """Return what the schema holds."""
    columns: dict[str, dict[str, SourceColumn]] = {}
    for table, name, kind, not_null in driver.rows(connection, _COLUMNS, (schema,)):
        columns.setdefault(table, {})[name] = SourceColumn(name, kind, not_null)
    keys: dict[str, tuple[str, ...]] = {}
    for table, names in driver.rows(connection, _KEYS, (schema,)):
        keys[table] = tuple(names)
    tables = {
        name: SourceTable(name, kind, columns.get(name, {}), keys.get(name, ()), float(count), int(size), readable)
        for name, kind, count, size, readable in driver.rows(connection, _TABLES, (schema,))
    }
    references = tuple(
        Reference(name, table, tuple(own), parent, valid, home, float(count))
        for name, table, own, parent, valid, home, count in driver.rows(connection, _REFERENCES, (schema,))
    )
    return SourceCatalog(schema, tables, references, str(driver.scalar(connection, "SELECT current_user::text")))


_TABLES = """
SELECT c.relname, c.relkind::text, c.reltuples, (c.relpages + coalesce(t.relpages, 0))::bigint * current_setting('block_size')::int,
       has_any_column_privilege(c.oid, 'SELECT')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1
"""
_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, NULL), a.attnotnull
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, a.attnum
"""
_KEYS = """
SELECT c.relname, array_agg(a.attname::text ORDER BY k.place)
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
WHERE n.nspname = %s AND i.indisprimary AND i.indisvalid AND k.place <= i.indnkeyatts
GROUP BY c.relname ORDER BY 1
"""
_REFERENCES = """
SELECT r.conname, c.relname, own.names, p.relname, r.convalidated, h.nspname, c.reltuples
FROM pg_constraint r JOIN pg_class c ON c.oid = r.conrelid JOIN pg_namespace h ON h.oid = c.relnamespace
JOIN pg_class p ON p.oid = r.confrelid JOIN pg_namespace n ON n.oid = p.relnamespace
CROSS JOIN LATERAL (SELECT array_agg(a.attname::text ORDER BY k.place) AS names FROM unnest(r.conkey) WITH ORDINALITY AS k(n, place)
    JOIN pg_attribute a ON a.attrelid = r.conrelid AND a.attnum = k.n) AS own
WHERE n.nspname = %s AND r.contype = 'f' AND r.conparentid = 0 ORDER BY 6, 2, 1
"""
