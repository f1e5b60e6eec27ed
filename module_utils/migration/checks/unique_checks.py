# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must be unique in a target, as questions to the source about all parts of the target together; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..contract.model import TableSpec
from ..plan import row_id
from ..plan.model import Part, Plan, Policy, Target
from ..postgres.quote import ident
from . import casts
from .findings import STOP
from .row_checks import PartScan, policy_of, spec_of


@dataclass(frozen=True)
class UniquePart:
    """A part's share in a uniqueness question: a SELECT of v1.., source_key, id, place (the part's number) for its rows."""

    part: Part
    select: str


@dataclass(frozen=True)
class Unique:
    """A key of the target: rows with equal v1..vn break it. `fold`: a text key whose case variants are worth a warning."""

    target: Target
    name: str
    columns: tuple[str, ...]
    width: int
    parts: tuple[UniquePart, ...]
    nulls_distinct: bool
    fold: bool
    place: str
    policy: Policy | None
    elements: tuple[str, ...] = ()  # SQL over the target's own row, as v1..vn are over the projection's
    predicate: str | None = None
    level: str = STOP

    @property
    def rows(self) -> str:
        """Return the SQL of all rows that take part."""
        bodies = " UNION ALL ".join(f"({part.select})" for part in self.parts)
        nulls = " AND ".join(f"v{i} IS NOT NULL" for i in range(1, self.width + 1)) if self.nulls_distinct else "true"
        return f"SELECT * FROM ({bodies}) AS every WHERE {nulls}"

    @property
    def keys(self) -> str:
        """Return v1, v2, ..."""
        return ", ".join(f"v{i}" for i in range(1, self.width + 1))


def build_uniques(plan: Plan, target: Target, scans: Sequence[PartScan]) -> tuple[Unique, ...]:
    """Return the uniqueness questions of a target. That the source has a unique index answers none: a damaged one hides duplicates."""
    spec = spec_of(plan, target)
    result = [_key_unique(target, scan) for scan in scans]
    if spec is None:
        return tuple(result)
    for constraint in spec.constraints:
        # A computed primary key is as unique as the source's key.
        if constraint.kind == "unique" or (constraint.kind == "primary_key" and row_id.kind(target) != row_id.COMPUTED):
            elements: list[tuple[str, str | None]] = [(ident(column), column) for column in constraint.columns]
            result += _unique(target, spec, scans, constraint.name, elements, None, not constraint.nulls_not_distinct)
    for index in spec.indexes:
        if index.unique:
            elements = [(ident(item.column), item.column) if item.column else (f"({item.expression})", None) for item in index.elements]
            result += _unique(target, spec, scans, index.name, elements, index.predicate, not index.nulls_not_distinct)
    return tuple(result)


def _key_unique(target: Target, scan: PartScan) -> Unique:
    part = scan.part
    columns = ", ".join(f"src.{ident(name)} AS v{i}" for i, name in enumerate(part.key, 1))
    select = f"SELECT {columns}, {part.key_text} AS source_key, {part.id_sql} AS id, 0 AS place FROM {scan.base}"
    return Unique(
        target, "the key", target.identity, len(part.key), (UniquePart(part, select),), True, False, part.identity_cells[0].place or part.label,
        policy_of(target, target.identity[0], "unique"),
    )  # fmt: skip


def _unique(
    target: Target,
    spec: TableSpec,
    scans: Sequence[PartScan],
    name: str,
    elements: Sequence[tuple[str, str | None]],
    predicate: str | None,
    nulls_distinct: bool,
) -> list[Unique]:
    columns = tuple(column for _, column in elements if column)
    wanted = tuple(dict.fromkeys(columns)) if len(columns) == len(elements) and predicate is None else tuple(column.name for column in spec.columns)
    single = columns[0] if len(elements) == len(columns) == 1 else None
    column = spec.column(single) if single else None
    blank_apart = bool(column and column.wire_type in casts.TEXTS and (column.not_null or policy_of(target, column.name, "blank")))
    citext = {item.name for item in spec.columns if item.type.endswith("citext")}
    compared = tuple(f"lower({sql})" if column in citext else sql for sql, column in elements)
    parts = []
    for number, scan in enumerate(scans):
        inner = ", ".join(f"{scan.values[item].stored} AS {ident(item)}" for item in wanted)
        outer = ", ".join(f"{sql} AS v{i}" for i, sql in enumerate(compared, 1))
        where = f" WHERE ({predicate})" if predicate else (f" WHERE btrim(({ident(single)})::text) <> ''" if single and blank_apart else "")
        body = f"SELECT {inner}, {scan.part.key_text} AS __key, {scan.part.id_sql} AS __id FROM {scan.base}"
        parts.append(UniquePart(scan.part, f"SELECT {outer}, __key AS source_key, __id AS id, {number} AS place FROM ({body}) AS {ident(spec.name)}{where}"))
    columns = columns or tuple(column.name for column in spec.columns if any(_names(sql, column.name) for sql, _ in elements))
    first = columns[0] if columns else elements[0][0]
    place = next((cell.place for cell in scans[0].part.cells if cell.name == first), "") or scans[0].part.path
    policy = next((found for column in columns if (found := policy_of(target, column, "unique"))), None)
    return [
        Unique(target, name, columns or (first,), len(elements), tuple(parts), nulls_distinct, blank_apart, place, policy, compared, predicate)
    ]


def _names(sql: str, column: str) -> bool:
    return re.search(rf'(?<![\w"])"?{re.escape(column)}"?(?![\w"])', sql) is not None
