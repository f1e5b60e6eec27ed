# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Indexes of the source against its tables: the transfer reads ranges by an index, and what that lacks it would leave behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..plan.model import Part
from ..postgres import driver, without_indexes
from ..postgres.quote import ident, literal, qualified
from .findings import STOP, Finding

_FOUND = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_am AS m ON m.oid = c.relam
JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = to_regclass(%s) AND a.attname = %s AND m.amname = 'btree' AND i.indisvalid AND i.indpred IS NULL ORDER BY 1
"""
_AMCHECK = "SELECT quote_ident(n.nspname) FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'amcheck'"


@dataclass(frozen=True)
class Damaged:
    """An index that has not the rows of its table; the `step` is for the source's owner."""

    table: str
    indexes: tuple[str, ...]
    rows: int
    indexed: int
    step: str

    @property
    def message(self) -> str:
        """Return the fault."""
        return f"has {self.rows} rows, but {self.indexed} by its index ({' or '.join(self.indexes)}): the index is damaged"


def damaged(connection: driver.Connection, parts: Iterable[Part], schema: str) -> Iterator[Damaged]:
    """Yield the indexes along which these parts are read that disagree with their tables, in the transaction that is open."""
    walks: set[tuple[str, str]] = set()
    for part in parts:
        walks |= {(part.table, part.chunk_by)} if part.table is not None else set()
        walks |= {(touch.table, touch.column) for touch in part.touches if touch.result == part.chunk_by}
    for table, column in sorted(walks):
        relation, name = qualified(schema, table), ident(column)
        indexes = tuple(row[0] for row in driver.rows(connection, _FOUND, (relation, column)))
        if not indexes:
            continue
        held = without_indexes.scalar(connection, f"SELECT count(*) FROM {relation} WHERE {name} IS NOT NULL")
        driver.rows(connection, "SET LOCAL enable_seqscan TO off; SET LOCAL enable_bitmapscan TO off; SET LOCAL enable_sort TO off")
        indexed = driver.scalar(connection, f"SELECT count(*) FROM (SELECT {name} FROM {relation} WHERE {name} IS NOT NULL ORDER BY {name} OFFSET 0) AS walked")
        driver.rows(connection, "SET LOCAL enable_seqscan TO DEFAULT; SET LOCAL enable_bitmapscan TO DEFAULT; SET LOCAL enable_sort TO DEFAULT")
        if held != indexed:
            yield Damaged(table, indexes, int(held), int(indexed), _step(connection, relation, indexes))


def _step(connection: driver.Connection, relation: str, indexes: tuple[str, ...]) -> str:
    home = driver.scalar(connection, _AMCHECK)
    shown = "".join(f"; SELECT {home}.bt_index_check({literal(index)}::regclass, true) says more" for index in indexes[:1] if home)
    return f"as its owner in the monolith: REINDEX {f'INDEX {indexes[0]}' if len(indexes) == 1 else f'TABLE {relation}'}{shown}"


def check(connection: driver.Connection, parts: Iterable[Part], schema: str) -> list[Finding]:
    """Return a finding for each index that disagrees with its table."""
    with driver.database_errors("the source", "comparing its indexes with its tables"):
        driver.rows(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        try:
            found = list(damaged(connection, parts, schema))
        finally:
            driver.rows(connection, "ROLLBACK")
    return [Finding(STOP, item.table, "index", item.message, item.step) for item in found]
