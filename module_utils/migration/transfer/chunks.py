# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cut the source into chunks: ranges of a part's chunk_by column that yield about the same number of rows.

A part that yields less than one chunk is one chunk. A table is walked along its index, a chunk's length at a time, so a gap in
the ids, however wide, costs nothing. A query is walked along the tables that its refresh ties to chunk_by, in
steps of a quarter chunk, and the planner's estimate of each step decides how many make a chunk: a range in which every user
has twenty permissions gives shorter chunks than one in which nobody has any. Statistics may be old: where a table turns out to have
more rows than they say, the estimates grow by as much, and no step counts for less than half of the average.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..plan.model import Part, Plan, Target
from ..plan.predicates import between
from ..postgres import driver
from ..postgres.quote import ident, literal, qualified
from ..state.ledger import Chunk

_STEPS_A_CHUNK = 4
_MOST_ESTIMATES = 4000
_LEAST_SHARE = 400  # of a chunk's rows: no step is shorter, however few rows the statistics know of


@dataclass(frozen=True)
class Unit:
    """What is carried together: a part of a target, and the part of the id map that its rows mint, if any."""

    target: Target
    part: Part
    id_map: Target | None
    id_map_part: Part | None


def units(plan: Plan, service: str) -> tuple[Unit, ...]:
    """Return everything that goes into one target database."""
    targets = plan.of(service)
    id_map = next((target for target in targets if target.bookkeeping and target.table == "id_map"), None)
    riders = {part.entity: part for part in id_map.parts} if id_map else {}
    result = []
    for target in targets:
        if target is id_map:
            continue
        for part in target.parts:
            rider = riders.pop(part.entity, None) if part.minted else None
            result.append(Unit(target, part, id_map if rider else None, rider))
    if id_map is not None:
        result += [Unit(id_map, part, None, None) for part in id_map.parts if part.entity in riders]
    return tuple(result)


def plan_chunks(source: driver.Connection, schema: str, unit: Unit, size: int, mode: str) -> list[Chunk]:
    """Return the chunks of one unit, without numbers; `source` is in the snapshot that will be read."""
    part = unit.part
    total = estimate(source, part.source(schema))
    along = walked(part)
    if not along:
        return [_chunk(unit, None, None, total, mode)]  # no table says where to cut
    if total < size and not _larger_than(source, part.source(schema), size):
        return [_chunk(unit, None, None, total, mode)]
    if part.query is None:
        bounds = _bounds(source, schema, [(*along[0], size)])
        share = max(1, total // (len(bounds) + 1))
        return [_chunk(unit, low, high, share, mode) for low, high in _ranges(bounds)]
    known = {tied: max(1, estimate(source, f"{qualified(schema, tied[0])} AS src")) for tied in along}
    if total < size:  # which has just been seen to be wrong
        total = max(size, *known.values())
    steps = {
        tied: max(1, size * rows // max(total, size) // _STEPS_A_CHUNK, rows // _MOST_ESTIMATES, size // _LEAST_SHARE) for tied, rows in known.items()
    }
    bounds = _bounds(source, schema, [(*tied, step) for tied, step in steps.items()])
    surprise = max(1.0, len(bounds) / sum(rows / steps[tied] for tied, rows in known.items()))
    coarse = bounds[:: len(bounds) // _MOST_ESTIMATES + 1]
    return list(_merged(source, schema, unit, list(_ranges(coarse)), size, mode, surprise, total))


def numbered(chunks: list[Chunk]) -> list[Chunk]:
    """Return the chunks with ids in the order in which they are best carried: the largest table first, and a table's parts together.

    So the keys that take longest are built while other tables are still copied.
    """
    tables: dict[str, int] = {}
    parts: dict[tuple[str, str], int] = {}
    for chunk in chunks:
        tables[chunk.target] = tables.get(chunk.target, 0) + chunk.estimate
        parts[chunk.target, chunk.part] = parts.get((chunk.target, chunk.part), 0) + chunk.estimate
    ordered = sorted(chunks, key=lambda chunk: (-tables[chunk.target], chunk.target, -parts[chunk.target, chunk.part]))
    return [replace(chunk, id=number) for number, chunk in enumerate(ordered, start=1)]


def estimate(source: driver.Connection, from_item: str) -> int:
    """Return the planner's estimate of the rows of a FROM item."""
    plan = driver.scalar(source, f"EXPLAIN (FORMAT JSON) SELECT 1 FROM {from_item}")
    return int((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]["Plan Rows"])


def _larger_than(source: driver.Connection, from_item: str, size: int) -> bool:
    """Tell whether there are more rows than twice a chunk, whatever the estimate says; reads no more than that."""
    count = driver.scalar(source, f"SELECT count(*) FROM (SELECT 1 FROM {from_item} LIMIT {2 * size + 1}) AS counted")
    return int(count) > 2 * size


def _chunk(unit: Unit, low: str | None, high: str | None, rows: int, mode: str) -> Chunk:
    return Chunk(0, unit.target.name, unit.part.name, low, high, low is None, rows, mode)


def walked(part: Part) -> list[tuple[str, str]]:
    """Return the tables, each with the column, along which the part is walked."""
    if part.query is None:
        return [(str(part.table), part.chunk_by)]
    return [(touch.table, touch.column) for touch in part.touches if touch.result == part.chunk_by]


def _bounds(source: driver.Connection, schema: str, walks: Sequence[tuple[str, str, int]]) -> list[str]:
    """Return every step-th value of the columns (table, column, step), as text, ascending and without repetition."""
    each = " UNION ".join(f"({_walk(source, qualified(schema, table), column, step)})" for table, column, step in walks)
    return [value for (value,) in driver.rows(source, f"SELECT k::text FROM ({each}) AS bounds (k) ORDER BY bounds.k")]


def _walk(source: driver.Connection, relation: str, column: str, step: int) -> str:
    """Return the query for every step-th value of a column."""
    name = ident(column)
    if indexed(source, relation, column):
        return (
            f"WITH RECURSIVE walk(k) AS ((SELECT {name} FROM {relation} WHERE {name} IS NOT NULL ORDER BY {name} OFFSET {step} LIMIT 1)"
            f" UNION ALL SELECT (SELECT t.{name} FROM {relation} AS t WHERE t.{name} > walk.k ORDER BY t.{name} OFFSET {step - 1} LIMIT 1)"
            " FROM walk WHERE walk.k IS NOT NULL) SELECT k FROM walk WHERE k IS NOT NULL"
        )
    return (
        f"SELECT DISTINCT k FROM (SELECT {name} AS k, row_number() OVER (ORDER BY {name}) AS n"
        f" FROM {relation} WHERE {name} IS NOT NULL) AS numbered WHERE n % {step} = 0"
    )


def indexed(source: driver.Connection, relation: str, column: str) -> bool:
    """Tell whether a table has an index that begins with the column."""
    return bool(
        driver.scalar(
            source,
            "SELECT EXISTS (SELECT FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
            " JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS m ON m.oid = c.relam AND m.amname = 'btree'"
            f" WHERE i.indrelid = {literal(relation)}::regclass AND a.attname = %s AND i.indisvalid AND i.indpred IS NULL)",
            (column,),
        )
    )


def _ranges(bounds: list[str]) -> Iterator[tuple[str | None, str | None]]:
    edges: list[str | None] = [None, *bounds, None]
    yield from pairwise(edges)


def _merged(
    source: driver.Connection, schema: str, unit: Unit, fine: list[tuple[str | None, str | None]], size: int, mode: str, surprise: float, total: int
) -> Iterator[Chunk]:
    low, rows = fine[0][0], 0
    least = total // (2 * len(fine))  # of a step: old statistics call ranges empty that they have never seen
    for position, (start, high) in enumerate(fine):
        rows += int(surprise * max(least, estimate(source, unit.part.source(schema, between(start, high, nulls=start is None)))))
        if rows >= size * (_STEPS_A_CHUNK - 1) // _STEPS_A_CHUNK or position == len(fine) - 1:
            yield _chunk(unit, low, high, rows, mode)
            low, rows = high, 0
