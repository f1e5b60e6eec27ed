# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What building an index asks of a row besides being unique: expressions that can be computed, an entry that fits a page; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..contract.model import ColumnSpec, IndexElement, IndexSpec, TableSpec
from ..postgres.quote import ident
from . import casts

LARGEST = 2704 - 8  # bytes of a B-tree's key (BTMaxItemSize of 8 kB pages, access/nbtree.h) without the tuple's header
# Comparisons of columns with constants, which raise for no row.
_PLAIN = r"""(NOT )?"?\w+"?( (=|<>|<|>|<=|>=) (TRUE|FALSE|-?\d+(\.\d+)?|'[^']*')| IS (NOT )?(NULL|TRUE|FALSE))?"""
_HARMLESS = re.compile(rf"{_PLAIN}( (AND|OR) {_PLAIN})*", re.IGNORECASE)
WIDEST = 4  # bytes of a character in UTF8


@dataclass(frozen=True)
class Large:
    """An index whose keys may be too large: the SQL condition for the rows of which they are."""

    name: str
    column: str
    sql: str


def tries(spec: TableSpec, row: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (index, SQL) of what each index computes; it raises where the index could not be built. `row` are the columns as the target sees them."""
    found = []
    for index in spec.indexes:
        computed = [item.expression for item in index.elements if item.expression is not None]
        if computed or (index.predicate is not None and not _HARMLESS.fullmatch(index.predicate)):
            wanted = f"ROW({', '.join(f'({text})' for text in computed)}) IS NOT NULL" if computed else "true"
            found.append((index.name, f"({_one(spec, row, wanted)}{f' WHERE {index.predicate}' if index.predicate is not None else ''})"))
    return found


def too_large(spec: TableSpec, row: Mapping[str, str]) -> list[Large]:
    """Return the B-trees whose key may be larger than a page takes, and for which rows it is."""
    keys = [
        IndexSpec(item.name, item.columns, True, None, "", tuple(IndexElement(name) for name in item.columns), include=item.include)
        for item in spec.constraints
        if item.kind in ("unique", "primary_key")
    ]
    found = []
    for index in (*keys, *(item for item in spec.indexes if item.method == "btree")):
        names = [*(item.column for item in index.elements if item.column), *index.include]
        bounds = [_most_bytes(spec.column(name)) for name in names]
        if None not in bounds and all(item.column for item in index.elements) and sum(size or 0 for size in bounds) <= LARGEST:
            continue
        parts = [ident(item.column) if item.column else f"({item.expression})" for item in index.elements] + [ident(name) for name in index.include]
        size = " + ".join(_size(part, number < len(parts)) for number, part in enumerate(parts, 1))
        if len(parts) > 1:
            size += f" + CASE WHEN num_nulls({', '.join(parts)}) > 0 THEN 8 ELSE 0 END"
        where = f" WHERE {index.predicate}" if index.predicate is not None else ""
        column = names[0] if names else ""
        found.append(Large(index.name, column, f"coalesce(({_one(spec, row, f'{size} > {LARGEST}')}{where}), false)"))
    return found


def _size(part: str, followed: bool) -> str:
    """Return the SQL of a value's bytes in an index entry: one that lies outside its row (TOAST, from 2 kB) is told without its header."""
    told = f"coalesce(pg_column_size({part}), 0)"
    size = f"({told} + CASE WHEN {told} > 1996 THEN 4 ELSE 0 END)"
    return f"({size} + 3) / 4 * 4" if followed else size


def _one(spec: TableSpec, row: Mapping[str, str], wanted: str) -> str:
    listed = ", ".join(f"{value} AS {ident(name)}" for name, value in row.items())
    return f"SELECT {wanted} FROM (SELECT {listed}) AS {ident(spec.name)}"


def _most_bytes(column: ColumnSpec | None) -> int | None:
    """Return how many bytes a value takes at most, or None where nothing limits it."""
    if column is None:
        return None
    if column.wire_type in casts.TEXTS:
        if column.enum_labels is not None:
            return 4
        return None if column.length is None else column.length * WIDEST + 4
    limited = column.wire_type.startswith(("timestamp", "time")) or column.wire_type in (
        *casts.INTEGERS, *casts.FLOATS, "uuid", "boolean", "date", "interval", "inet", "cidr", "macaddr", "macaddr8", "money", "oid",
    )  # fmt: skip
    return 32 if limited or (column.wire_type == "numeric" and column.precision is not None) else None
