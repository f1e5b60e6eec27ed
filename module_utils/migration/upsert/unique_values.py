# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make room for values that must be unique: rows that hold a value which another row is about to get give it up first.

Only rows that are written again in the same transaction, or that are about to go, are asked to: a row of the service itself keeps
what it has, and is named.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from ..errors import MigrationError
from ..plan import row_id
from ..plan.model import Target
from ..postgres import driver
from ..postgres.quote import ident, literal

_SHORT = 20  # characters; a column that takes fewer gets a number without a random part


@dataclass(frozen=True)
class _Column:
    """A column that an index needs."""

    name: str
    nullable: bool
    kind: str
    length: int | None
    refers: bool


@dataclass(frozen=True)
class _Unique:
    """A unique index: the SQL of its values, its predicate, its columns, and whether two NULLs are the same to it."""

    name: str
    values: tuple[str, ...]
    predicate: str
    columns: tuple[_Column, ...]
    nulls_equal: bool


def make_room(connection: driver.Connection, target: Target, stage: str, allowed: str) -> int:
    """Park what stands in the way of the rows of `stage`; return how many rows gave a value up.

    `allowed` is a condition over t (a row of the target) under which it may be parked. MigrationError, with ids and no values, when
    another row stands in the way, or a column has no value to park.
    """
    own = row_id.columns(target)
    parked = 0
    for unique in _uniques(connection, target):
        values = [f"({text}) AS v{number}" for number, text in enumerate(unique.values)]
        where = f" WHERE {unique.predicate}" if unique.predicate else ""
        compare = "IS NOT DISTINCT FROM" if unique.nulls_equal else "="
        equal = " AND ".join(f"t.v{number} {compare} s.v{number}" for number in range(len(values)))
        holders = (
            f"SELECT DISTINCT {row_id.columns(target, 't')} FROM (SELECT {own}, {', '.join(values)} FROM {target.qualified}{where}) AS t"
            f" JOIN (SELECT {own}, {', '.join(values)} FROM {stage}{where}) AS s ON {equal} AND NOT ({row_id.same(target, 't', 's')})"
        )
        held = f"({row_id.columns(target, 't')}) IN ({holders})"
        strangers = driver.rows(connection, f"SELECT {row_id.target_name(target)} FROM {target.qualified} AS t WHERE {held} AND NOT ({allowed}) LIMIT 3")
        if strangers:
            raise MigrationError(
                f"{target.name}: another row holds the same unique value ({unique.name}; id {', id '.join(row[0] for row in strangers)});"
                " playbooks/validate.yml names it, playbooks/repair.yml can remove it when it is not the service's own"
            )
        name, value = _value(target, unique)
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {target.qualified} AS t SET {ident(name)} = {value} FROM (SELECT {own}, row_number() OVER () AS n FROM ({holders}) AS h) AS h"
                f" WHERE {row_id.same(target, 'h', 't')}"
            )
            parked += cursor.rowcount
    return parked


def _value(target: Target, unique: _Unique) -> tuple[str, str]:
    """Return the column of an index and the SQL (h.n counts rows) of a value for it that no row has."""
    for column in unique.columns:
        if column.nullable and not unique.nulls_equal:
            return column.name, "NULL"
    for column in unique.columns:
        if column.refers or column.name in target.identity:  # by which the row is found again
            continue
        if column.kind in ("text", "varchar", "bpchar"):
            mark = "~" if column.length is not None and column.length < _SHORT else f"~{secrets.token_hex(4)}~"
            return column.name, f"{literal(mark)} || to_hex(h.n)"
        if column.kind == "uuid":
            return column.name, "gen_random_uuid()"
        if column.kind in ("int2", "int4", "int8", "numeric"):
            name = ident(column.name)
            return column.name, f"(SELECT least(min(low.{name}), 0) FROM {target.qualified} AS low) - h.n"
    raise MigrationError(
        f"{target.name}: rows exchange values of {unique.name}, whose columns ({', '.join(column.name for column in unique.columns)}) have no"
        " value to park meanwhile; drop that index, run it again and let playbooks/index.yml make it anew"
    )


def _uniques(connection: driver.Connection, target: Target) -> list[_Unique]:
    """Return the unique indexes of a table, its primary key apart."""
    found = []
    for oid, name, count, predicate, nulls_equal in driver.rows(
        connection,
        "SELECT i.indexrelid::int8, i.indexrelid::regclass::text, i.indnkeyatts, coalesce(pg_get_expr(i.indpred, i.indrelid, true), ''),"
        " coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) FROM pg_index AS i"
        " WHERE i.indrelid = %s::regclass AND i.indisunique AND NOT i.indisprimary ORDER BY 2",
        (target.qualified,),
    ):
        values = driver.rows(connection, "SELECT pg_get_indexdef(%s::oid, n, true) FROM generate_series(1, %s) AS n ORDER BY n", (oid, count))
        found.append(_Unique(name, tuple(row[0] for row in values), predicate, _columns(connection, oid), nulls_equal))
    return found


def _columns(connection: driver.Connection, index: int) -> tuple[_Column, ...]:
    """Return the columns of an index's values, those inside expressions included."""
    return tuple(
        _Column(*row)
        for row in driver.rows(
            connection,
            "SELECT a.attname, NOT a.attnotnull, y.typname, CASE WHEN y.typname IN ('varchar', 'bpchar') AND a.atttypmod > 4 THEN a.atttypmod - 4 END,"
            " EXISTS (SELECT FROM pg_constraint AS c WHERE c.conrelid = a.attrelid AND c.contype = 'f' AND a.attnum = ANY (c.conkey))"
            " FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid JOIN pg_type AS y ON y.oid = a.atttypid"
            " WHERE i.indexrelid = %s::oid AND a.attgenerated = '' AND (a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])"
            " OR (i.indexprs IS NOT NULL AND EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass"
            " AND d.objid = i.indexrelid AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum)))"
            " ORDER BY a.attnum",
            (index,),
        )
    )
