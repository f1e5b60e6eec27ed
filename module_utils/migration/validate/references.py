# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that each id of another table has its row there, also where that table is in another database."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from ..plan import row_id
from ..plan.embedded_ids import Embedded, whole_number
from ..plan.model import Cell, Part, Plan, Target
from ..plan.null_references import becomes_null
from ..postgres import driver
from ..postgres.quote import ident, literal
from .excluded import Rejects, without
from .readers import ForeignKeys, Rows, Sides
from .result import MISSING, Finding, Reference
from .slices import range_of

_TEXTS = (25, 1042, 1043)  # oids of text, character and character varying, which no server has otherwise
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
Ranges = Mapping[tuple[str, str], Sequence[tuple[int | None, int | None]]]  # target, part -> where it is cut

@dataclass(frozen=True)
class Check:
    """One column whose ids live in `other`, with the statements that look at it on the source, under way."""

    target: Target
    column: str
    other: Target
    null: bool  # what hangs was carried as NULL
    jobs: tuple[Future[tuple[Rows, float]], ...]
    embedded: Embedded | None = None

    @property
    def label(self) -> str:
        """Return the column, with the place inside its values."""
        return f"{self.column} {self.embedded.path}" if self.embedded else self.column


def start(sides: Sides, plan: Plan, targets: Sequence[Target], rejects: Rejects, ranges: Ranges, keys_of_source: ForeignKeys) -> list[Check]:
    """Begin to check, on the source and by its integer keys, each column that refers to another table against what that table's part yields.

    That holds for rows that are proven equal. A part is read in the ranges in which it is scanned.
    """
    entities = {entity.name: entity for entity in plan.entities}
    by_table = {(target.service, target.table): target for target in plan.targets}
    checks = []
    for target in targets:
        if target.bookkeeping:
            continue
        for column in target.columns:
            cells = [(part, cell) for part in target.parts for cell in part.cells if cell.name == column and cell.is_id and cell.key]
            for entity in dict.fromkeys(cell.entity for _, cell in cells):
                other = by_table.get((entities[str(entity)].service, entities[str(entity)].target))
                if other is None:  # minted without a table of its own: its id map is what others hold
                    continue
                home = next(part for part in other.parts if part.entity == entity)
                statements = [
                    _statement(sides.schema, part, _comparable(sides, part, cell, home), home, rejects[target.name], rejects.get(other.name, {}), low_high)
                    for part, cell in cells
                    if cell.entity == entity and not (_by_foreign_key(part, cell, home, keys_of_source) and not rejects.get(other.name))
                    for low_high in ranges[target.name, part.name]
                ]
                jobs = tuple(sides.source(statement, f"checking {target.name}.{column}") for statement in statements)
                checks.append(Check(target, column, other, any(becomes_null(target, cell) for _, cell in cells), jobs))
            for place, parts in _places(target, column).items():
                entity, item = place[0], parts[0][1]
                other = by_table.get((entities[entity].service, entities[entity].target))
                if other is None:
                    continue
                home = next(part for part in other.parts if part.entity == entity)
                statements = [
                    _each(sides.schema, part, own, home, rejects[target.name], rejects.get(other.name, {}), low_high)
                    for part, own in parts
                    for low_high in ranges[target.name, part.name]
                ]
                jobs = tuple(sides.source(statement, f"checking {target.name}.{column} {item.path}") for statement in statements)
                checks.append(Check(target, column, other, False, jobs, item))
    return checks


def _comparable(sides: Sides, part: Part, cell: Cell, home: Part) -> str:
    """Return the SQL of a reference's key as it can be held against the other table's: an integer may be written as text."""
    if home.key_types[0] != "integer":
        return str(cell.key)
    place, connection = next(iter(sides.leaders().items()))
    with driver.database_errors(place, f"describing {cell.name}"), connection.cursor() as cursor:
        cursor.execute(f"{part.select_columns([str(cell.key)], sides.schema)} LIMIT 0")
        code = cursor.description[0].type_code
    return whole_number(f"({cell.key})::text") if code in _TEXTS else str(cell.key)


def _places(target: Target, column: str) -> dict[tuple[str, str], list[tuple[Part, Embedded]]]:
    """Return the places inside a column's values where ids are, by entity and path, with what each part has there."""
    found: dict[tuple[str, str], list[tuple[Part, Embedded]]] = {}
    for part in target.parts:
        for cell in part.cells:
            for item in cell.embedded if cell.name == column else ():
                found.setdefault((item.entity, item.path), []).append((part, item))
    return found


def finish(sides: Sides, checks: Sequence[Check], findings: Mapping[str, Sequence[Finding]]) -> list[Reference]:
    """Return what the checks came to; ids of rows that were not proven equal, and rows that miss in the other table, are looked up in the targets."""
    found = []
    for check in checks:
        checked = dangling = nulled = 0
        keys: list[str] = []
        for job in check.jobs:
            for count, bad, some in job.result()[0]:
                checked += count
                if check.null:
                    nulled += bad
                else:
                    dangling += bad
                    keys += some or []
        bad, some_ids = _look_up(sides, check, findings)
        by = "join" if check.jobs else "foreign key"
        found.append(Reference(check.target.name, check.label, check.other.name, checked, dangling + bad, (*keys, *some_ids)[:20], by, nulled))
    return found


def _by_foreign_key(part: Part, cell: Cell, home: Part, foreign_keys: ForeignKeys) -> bool:
    """Tell whether the source itself guarantees that the cell's key has its row, and that row is one of the other table's.

    It does where the key is shown unchanged from columns that have a foreign key to that table's key, or from that key itself. Ids of other
    than integers are made of the key's text, and a foreign key is content with what equals it (1.0 and 1.00, what a collation takes for the same).
    Where a `where` selects the other table's rows, the referenced one may be left out.
    """
    if not home.whole or len(cell.reads) != 1 or cell.key != f"src.{ident(cell.reads[0])}":
        return False
    shown = part.origins_of(cell.reads[0])
    key = (str(home.table), home.key[0])
    return bool(shown) and all(origin == key or (home.key_types[0] == "integer" and (*origin, *key) in foreign_keys) for origin in shown)


def _statement(
    schema: str,
    part: Part,
    key: str,
    home: Part,
    own_rejects: Mapping[str, Sequence[str]],
    other_rejects: Mapping[str, Sequence[str]],
    low_high: tuple[int | None, int | None],
) -> str:
    """Return the SELECT of (checked, dangling, some source keys) for one part's column in a range of chunk_by."""
    predicate = range_of(*low_high)
    # The range holds for the other table's key too when it is the column that is cut by; so neither side is read beyond it.
    same = predicate if key == f"src.{ident(part.chunk_by)}" and home.key[0] == home.chunk_by else None
    inner = home.select_columns([f"src.{ident(home.key[0])} AS home_key"], schema, same) + without(home, other_rejects, same)
    outer = part.select_columns([f"({key}) AS refers", f"{part.key_text} AS key"], schema, predicate) + without(part, own_rejects, predicate)
    # An id of other than an integer is made of its text.
    on = "home.home_key = rows.refers" if home.key_types[0] == "integer" else 'home.home_key::text COLLATE "C" = rows.refers::text COLLATE "C"'
    return (
        "SELECT count(*), count(*) FILTER (WHERE home.home_key IS NULL), (array_agg(rows.key) FILTER (WHERE home.home_key IS NULL))[1:20]"
        f" FROM ({outer}) AS rows LEFT JOIN ({inner}) AS home ON {on} WHERE rows.refers IS NOT NULL"
    )


def _each(
    schema: str,
    part: Part,
    embedded: Embedded,
    home: Part,
    own_rejects: Mapping[str, Sequence[str]],
    other_rejects: Mapping[str, Sequence[str]],
    low_high: tuple[int | None, int | None],
) -> str:
    """Return the same SELECT for the ids inside a column's values."""
    predicate = range_of(*low_high)
    inner = home.select_columns([f"src.{ident(home.key[0])} AS home_key"], schema) + without(home, other_rejects, None)
    listed = f"ARRAY({embedded.items()}) AS refers"
    outer = part.select_columns([listed, f"{part.key_text} AS key"], schema, predicate) + without(part, own_rejects, predicate)
    on = f"home.home_key = {whole_number('each.k')}" if embedded.whole else 'home.home_key::text COLLATE "C" = each.k COLLATE "C"'
    return (
        "SELECT count(*), count(*) FILTER (WHERE home.home_key IS NULL), (array_agg(rows.key) FILTER (WHERE home.home_key IS NULL))[1:20]"
        f" FROM ({outer}) AS rows CROSS JOIN LATERAL unnest(rows.refers) AS each (k) LEFT JOIN ({inner}) AS home ON {on}"
    )


def _look_up(sides: Sides, check: Check, findings: Mapping[str, Sequence[Finding]]) -> tuple[int, list[str]]:
    """Return how many references hang that the source cannot know of, and some ids of their rows."""
    target, column, other = check.target, check.column, check.other
    unproven = [str(item.id) for item in findings.get(target.name, []) if item.kind != MISSING and item.id]
    gone = [str(item.id) for item in findings.get(other.name, []) if item.kind == MISSING and item.id]
    mine, name, held = row_id.target_name(target), f"t.{ident(column)}", f"{target.qualified} AS t"
    if check.embedded is not None:
        held, name = f"{held} CROSS JOIN LATERAL ({check.embedded.items(name)}) AS each", "each.k"
    kind = "text" if check.embedded is not None else "uuid"
    reading = f"looking up {target.name}.{column}"
    pairs: set[tuple[str, str]] = set()
    for own, values in ((True, unproven), (False, gone)):
        for start in range(0, len(values), 50_000):
            some = values[start : start + 50_000]
            where = row_id.among(target, some) if own else f"{name} = ANY ({literal('{' + ','.join(some) + '}')}::{kind}[])"
            statement = f"SELECT {mine}, {name}::text FROM {held} WHERE {where} AND {name} IS NOT NULL"
            pairs.update(sides.target(target.service, statement, reading).result()[0])
    wanted = sorted({refers for _, refers in pairs if _UUID.fullmatch(refers)})
    there: set[str] = set()
    for start in range(0, len(wanted), 50_000):
        listed = literal("{" + ",".join(wanted[start : start + 50_000]) + "}")
        home = f"o.{ident(other.identity[0])}"  # which mints, so its primary key is one uuid
        statement = f"SELECT {home}::text FROM {other.qualified} AS o WHERE {home} = ANY ({listed}::uuid[])"
        there |= {row[0] for row in sides.target(other.service, statement, reading).result()[0]}
    hanging = [id_ for id_, refers in sorted(pairs) if refers not in there]
    return len(hanging), [f"id {id_}" for id_ in hanging[:20]]
