# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a projection and a contract to the questions that preflight asks the source; pure.

Data: a Check is a condition over one row of a part's source; a PartScan all checks of a part with the FROM clause they
share, so that one pass answers them all. A Unique is a question about all parts of a target together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..contract import ColumnSpec, Contract, TableSpec
from ..plan import Cell, Part, Plan, Policy, Target
from ..quote import ident, literal, qualified
from . import casts
from .casts import Condition
from .findings import INFO, STOP, WARN


@dataclass(frozen=True)
class Check:
    """A condition (SQL over a scan's row) that is true for the rows that break `rule` of `column`."""

    place: str
    column: str
    rule: str
    sql: str
    message: str
    level: str = STOP
    policy: Policy | None = None

    @property
    def rejects(self) -> bool:
        """Return whether the operator chose to quarantine the rows."""
        return self.policy is not None and self.policy.policy == "quarantine"


@dataclass(frozen=True)
class Parent:
    """A table or query whose keys a part's column refers to; `alias` is its name in the scan."""

    alias: str
    source: str
    key: str
    child: str
    entity: str | None
    column: str
    place: str
    name: str


@dataclass(frozen=True)
class Values:
    """A cell for checking: `raw` as the source has it, `type` its type (`length`: varchar's n),

    `value` the cast that never raises what is listed."""

    cell: Cell
    raw: str
    type: str
    value: str
    unsafe: tuple[Condition, ...] = ()
    length: int | None = None


@dataclass(frozen=True)
class PartScan:
    """A part with its FROM clause (`base`; `source` with the parents joined) and its checks.

    `tries` are expressions (column, SQL) that no condition proves safe: they are evaluated for every row.
    """

    target: Target
    part: Part
    base: str
    source: str
    checks: tuple[Check, ...]
    parents: tuple[Parent, ...]
    values: Mapping[str, Values]
    tries: tuple[tuple[str, str], ...] = ()

    @property
    def order(self) -> str:
        """Return the ORDER BY list: the key."""
        return ", ".join(f"src.{ident(column)}" for column in self.part.key)


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


def spec_of(plan: Plan, target: Target) -> TableSpec | None:
    """Return the contract's table for a target, or None for the migration's own tables."""
    for service, contract in plan.contracts:
        if service == target.service and not target.bookkeeping:
            return Contract.from_dict(contract).table(target.table, target.schema)
    return None


def raw_sql(cell: Cell, policies: Sequence[Policy]) -> str:
    """Return a cell's expression without its placeholders and its cast to the wire type."""
    sql = cell.sql
    for policy in reversed([item for item in policies if item.column == cell.name and item.placeholder is not None]):
        head, found, tail = sql.partition(f" THEN (\n{policy.placeholder}\n)::{cell.type} ELSE ")
        if found and head.startswith("CASE WHEN (") and tail.endswith(" END"):
            sql = tail.removesuffix(" END")
    return sql.removesuffix(f"::{cell.type}")


def policy_of(target: Target, column: str, rule: str) -> Policy | None:
    """Return the operator's choice for a rule of a column, or None (block)."""
    return next((item for item in target.policies if item.column == column and item.rule == rule), None)


def minting_part(plan: Plan, entity: str) -> tuple[Target, Part] | None:
    """Return the target and part that mint an entity; a service's own table before the migration's."""
    found = [(target, part) for target in plan.targets for part in target.parts if part.entity == entity]
    found.sort(key=lambda item: (item[0].bookkeeping, item[0].table == "id_map"))
    return found[0] if found else None


def scanned(plan: Plan) -> tuple[tuple[Target, Part], ...]:
    """Return the parts to scan: all but those of the id map that another part covers."""
    covered = {part.entity for target in plan.targets if not (target.bookkeeping and target.table == "id_map") for part in target.parts}
    return tuple(
        (target, part) for target in plan.targets for part in target.parts if not (target.bookkeeping and target.table == "id_map" and part.entity in covered)
    )


def raw_expressions(target: Target, part: Part) -> tuple[str, ...]:
    """Return what must be described before a part's checks can be built: each cell's raw SQL, or an id's key."""
    return tuple(str(cell.key or f"src.{ident(part.key[0])}") if cell.is_id else raw_sql(cell, target.policies) for cell in part.cells)


def build_scan(
    plan: Plan,
    target: Target,
    part: Part,
    schema: str,
    types: Sequence[tuple[str, int | None]],
    primary_keys: Mapping[str, str],
    version: int,
    encodings: tuple[str, str] = ("UTF8", "UTF8"),
) -> PartScan:
    """Return a part's scan; `types` are those of raw_expressions(), `primary_keys` those of the source's tables.

    `encodings` are the source's and the target's.
    """
    spec = spec_of(plan, target)
    parents = _parents(plan, part, schema, primary_keys)
    checks: list[Check] = []
    values: dict[str, Values] = {}
    unique = single_unique(spec) if spec else frozenset()
    for cell, raw, (kind, length) in zip(part.cells, raw_expressions(target, part), types, strict=True):
        column = spec.column(cell.name) if spec else None
        place = cell.place or part.label
        if cell.is_id:
            values[cell.name] = Values(cell, raw, kind, cell.sql)
            checks += _id_checks(target, part, cell, column is not None and column.not_null, place)
            continue
        if column is None:
            values[cell.name] = Values(cell, raw, kind, cell.sql)
            continue
        unsafe = (*casts.unrepresentable(raw, kind, encodings), *casts.impossible(raw, kind, column, version)) if not cell.constant else ()
        guard = " OR ".join(f"({item.sql})" for item in unsafe)
        value = f"(CASE WHEN {guard} THEN NULL ELSE {cell.sql} END)" if unsafe else f"({cell.sql})"
        values[cell.name] = Values(cell, raw, kind, value, unsafe, length)
        checks += _column_checks(target, values[cell.name], column, guard, cell.name in unique, place)
    for parent in parents:
        policy = policy_of(target, parent.column, "foreign_key")
        sql = f"({parent.child} IS NOT NULL AND {parent.alias}.key IS NULL)"
        checks.append(Check(parent.place, parent.column, "foreign_key", sql, f"refers to a row of {parent.name} that is not there", STOP, policy))
    if spec:
        checks += _table_checks(target, part, spec, values)
    base = part.source(schema)
    return PartScan(target, part, base, f"{base}{_joins(parents)}", tuple(checks), parents, values, _tries(target, part, values, spec))


def _column_checks(target: Target, values: Values, column: ColumnSpec, guard: str, unique: bool, place: str) -> list[Check]:
    """Return what one column demands of its values; `guard` is true where there is no value to speak of."""
    name, raw, value = values.cell.name, values.raw, values.value
    found = list(values.unsafe)
    if not _fits(values, column):
        found += [*casts.refused(value, column), *casts.changed(raw, values.type, value, column)]
    if column.not_null or (column.domain is not None and column.domain.not_null):
        safe = f"NOT coalesce({guard}, false) AND " if guard else ""
        found.append(Condition("not_null", f"{safe}{value} IS NULL", "is NULL, the column is NOT NULL"))
        if unique and column.wire_type in casts.TEXTS:
            found.append(Condition("blank", f"btrim(({value})::text) = ''", "is blank, and the column is unique"))
    if column.domain is not None:
        typed = f"({value})::{_bare(column.domain.base)}"
        for number, check in enumerate(column.domain.checks, 1):
            sql = f"EXISTS (SELECT FROM (SELECT {typed} AS value) AS one WHERE ({check}) IS FALSE)"
            found.append(Condition("check", sql, f"breaks CHECK {number} of the domain {column.type}"))
    checks = [Check(place, name, item.rule, item.sql, item.message, STOP, policy_of(target, name, item.rule)) for item in found]
    if column.wire_type in casts.STAMPS or column.wire_type == "date":
        checks.append(Check(place, name, "range", f"NOT isfinite({value})", "is infinity, which Python's datetime cannot hold", WARN))
    for policy in target.policies:
        if policy.column == name and policy.placeholder is not None:
            blank = f" OR btrim(({raw})::text) = ''" if policy.rule == "blank" else ""
            checks.append(Check(policy.place, name, policy.rule, f"(({raw}) IS NULL{blank})", "gets the placeholder", INFO, policy))
    return checks


def _fits(values: Values, column: ColumnSpec) -> bool:
    """Return whether the source's own varchar(n) proves that every value fits the target's."""
    plain = values.cell.sql == f"{values.raw}::{values.cell.type}"
    varchar = values.type == column.wire_type == "character varying"
    return plain and varchar and values.length is not None and column.length is not None and values.length <= column.length


def _tries(target: Target, part: Part, values: Mapping[str, Values], spec: TableSpec | None) -> tuple[tuple[str, str], ...]:
    result = []
    for name, value in values.items():
        if value.cell.constant:
            continue
        column = spec.column(name) if spec else None
        plain = value.raw == f"src.{ident(value.cell.reads[0])}" if len(value.cell.reads) == 1 else False
        if value.cell.is_id:
            safe = value.type in casts.INTEGERS and (len(part.key) == 1 or name != target.id_column)
        else:
            safe = plain and (value.type == value.cell.type or (column is not None and bool(value.unsafe)) or value.cell.type in casts.TEXTS)
        if not safe:
            result.append((name, value.value))
    return tuple(result)


def single_unique(spec: TableSpec) -> frozenset[str]:
    """Return the columns that are unique alone."""
    keys = [item.columns for item in spec.constraints if item.kind in ("unique", "primary_key")]
    keys += [item.columns for item in spec.indexes if item.unique and item.predicate is None]
    return frozenset(columns[0] for columns in keys if len(columns) == 1)


def build_uniques(plan: Plan, target: Target, scans: Sequence[PartScan], proven: frozenset[tuple[str, str]]) -> tuple[Unique, ...]:
    """Return the uniqueness questions of a target; `proven` are (table, column) that the source's own keys make unique."""
    spec = spec_of(plan, target)
    result = [item for scan in scans if (item := _key_unique(target, scan, proven))]
    if spec is None:
        return tuple(result)
    for constraint in spec.constraints:
        if constraint.kind == "unique":
            elements: list[tuple[str, str | None]] = [(ident(column), column) for column in constraint.columns]
            result += _unique(target, spec, scans, constraint.name, elements, None, not constraint.nulls_not_distinct, proven)
    for index in spec.indexes:
        if index.unique:
            elements = [(ident(item.column), item.column) if item.column else (f"({item.expression})", None) for item in index.elements]
            result += _unique(target, spec, scans, index.name, elements, index.predicate, not index.nulls_not_distinct, proven)
    return tuple(result)


def _key_unique(target: Target, scan: PartScan, proven: frozenset[tuple[str, str]]) -> Unique | None:
    part = scan.part
    if part.table is not None and len(part.key) == 1 and (part.table, part.key[0]) in proven:
        return None
    columns = ", ".join(f"src.{ident(name)} AS v{i}" for i, name in enumerate(part.key, 1))
    select = f"SELECT {columns}, {part.key_text} AS source_key, {part.id_cell.sql} AS id, 0 AS place FROM {scan.base}"
    return Unique(
        target, "the key", (target.id_column,), len(part.key), (UniquePart(part, select),), True, False, part.id_cell.place or part.label,
        policy_of(target, target.id_column, "unique"),
    )  # fmt: skip


def _unique(
    target: Target,
    spec: TableSpec,
    scans: Sequence[PartScan],
    name: str,
    elements: Sequence[tuple[str, str | None]],
    predicate: str | None,
    nulls_distinct: bool,
    proven: frozenset[tuple[str, str]],
) -> list[Unique]:
    columns = tuple(column for _, column in elements if column)
    wanted = columns if len(columns) == len(elements) and predicate is None else tuple(column.name for column in spec.columns)
    single = columns[0] if len(elements) == len(columns) == 1 else None
    column = spec.column(single) if single else None
    blank_apart = bool(column and column.not_null and column.wire_type in casts.TEXTS)
    if not blank_apart and len(scans) == 1 and predicate is None and any(_copied(scans[0], name) in proven for name in columns):
        return []
    citext = {item.name for item in spec.columns if item.type.endswith("citext")}
    parts = []
    for number, scan in enumerate(scans):
        inner = ", ".join(f"{scan.values[item].value} AS {ident(item)}" for item in wanted)
        outer = ", ".join(f"{f'lower({sql})' if column in citext else sql} AS v{i}" for i, (sql, column) in enumerate(elements, 1))
        where = f" WHERE ({predicate})" if predicate else (f" WHERE btrim(({ident(single)})::text) <> ''" if single and blank_apart else "")
        body = f"SELECT {inner}, {scan.part.key_text} AS __key, {scan.part.id_cell.sql} AS __id FROM {scan.base}"
        parts.append(UniquePart(scan.part, f"SELECT {outer}, __key AS source_key, __id AS id, {number} AS place FROM ({body}) AS one{where}"))
    first = columns[0] if columns else elements[0][0]
    place = next((cell.place for cell in scans[0].part.cells if cell.name == first), "") or scans[0].part.path
    policy = next((found for column in columns if (found := policy_of(target, column, "unique"))), None)
    return [Unique(target, name, columns or (first,), len(elements), tuple(parts), nulls_distinct, blank_apart, place, policy)]


def _copied(scan: PartScan, column: str) -> tuple[str, str] | None:
    """Return the source table and column that a cell copies (an id copies its key), or None."""
    part = scan.part
    cell = scan.values[column].cell
    if part.table is None or len(cell.reads) != 1:
        return None
    raw = scan.values[column].raw
    return (part.table, cell.reads[0]) if raw == f"src.{ident(cell.reads[0])}" and not scan.values[column].unsafe else None


def _id_checks(target: Target, part: Part, cell: Cell, not_null: bool, place: str) -> list[Check]:
    if cell.name == target.id_column:
        missing = " OR ".join(f"src.{ident(column)} IS NULL" for column in part.key)
        return [Check(place, cell.name, "not_null", f"({missing})", "has no key", STOP, policy_of(target, cell.name, "not_null"))]
    if not_null:
        return [Check(place, cell.name, "not_null", f"({cell.key}) IS NULL", "is NULL, the column is NOT NULL", STOP, policy_of(target, cell.name, "not_null"))]
    return []


def _parents(plan: Plan, part: Part, schema: str, primary_keys: Mapping[str, str]) -> tuple[Parent, ...]:
    result: list[Parent] = []
    for cell in part.cells:
        if not cell.is_id or cell.key is None or cell.entity is None:
            continue
        minted = minting_part(plan, cell.entity)
        if minted is None:
            continue
        result.append(
            _parent(
                len(result),
                minted[1].source(schema),
                f"src.{ident(minted[1].key[0])}",
                f"({cell.key})",
                cell.entity,
                cell.name,
                cell.place or part.label,
                minted[1].table or minted[1].label,
            )
        )
    for column, table in part.parents:
        key = primary_keys.get(table)
        if key is not None:
            result.append(
                _parent(len(result), f"{qualified(schema, table)} AS src", f"src.{ident(key)}", f"src.{ident(column)}", None, column, part.label, table)
            )
    return tuple(result)


def _parent(number: int, source: str, key: str, child: str, entity: str | None, column: str, place: str, name: str) -> Parent:
    return Parent(f"parent{number}", source, key, child, entity, column, place, name)


def _joins(parents: Sequence[Parent]) -> str:
    return "".join(f" LEFT JOIN (SELECT {item.key} AS key FROM {item.source}) AS {item.alias} ON {item.alias}.key = {item.child}" for item in parents)


def _table_checks(target: Target, part: Part, spec: TableSpec, values: Mapping[str, Values]) -> list[Check]:
    result = []
    for constraint in spec.constraints:
        if constraint.kind != "check" or constraint.expression is None:
            continue
        names = [name for name in (constraint.columns or tuple(values)) if name in values]
        row = ", ".join(f"{values[name].value} AS {ident(name)}" for name in names)
        sql = f"EXISTS (SELECT FROM (SELECT {row}) AS {ident(spec.name)} WHERE ({constraint.expression}) IS FALSE)"
        column = names[0] if names else ""
        policy = next((found for name in names if (found := policy_of(target, name, "check"))), None)
        place = (values[column].cell.place if column else "") or part.label
        result.append(Check(place, column, "check", sql, f"breaks CHECK {constraint.name}", STOP, policy))
    return result


def _bare(base: str) -> str:
    return base.split("(")[0] if not base.startswith(("timestamp", "time", "interval")) else base


def quoted(values: Sequence[str]) -> str:
    """Return a text array."""
    return "ARRAY[" + ", ".join(literal(value) for value in values) + "]::text[]"
