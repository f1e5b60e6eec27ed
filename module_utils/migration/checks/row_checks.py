# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a projection and a contract to the questions that preflight asks the source; pure.

Data: a Check is a condition over one row of a part's source; a PartScan all checks of a part with the FROM clause they
share, so that one pass answers them all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..contract.model import ColumnSpec, Contract, TableSpec
from ..plan.embedded_ids import WHOLE, whole_number
from ..plan.model import Cell, Part, Plan, Policy, Target
from ..plan.null_references import becomes_null
from ..plan.predicates import Predicate, beyond_years, endless, replaced
from ..postgres.quote import ident, literal
from . import casts, index_checks
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
    index: str = ""  # that it is about

    @property
    def rejects(self) -> bool:
        """Return whether the operator chose to quarantine the rows."""
        return self.policy is not None and self.policy.policy == "quarantine"


@dataclass(frozen=True)
class Parent:
    """A table or query whose keys a part's column refers to; `alias` is its name in the scan.

    `textual` keys make ids of their text, so a reference must be written as the key is: 1.0 equals 1.00, with another id.
    """

    alias: str
    source: str
    key: str
    child: str
    entity: str | None
    column: str
    place: str
    name: str
    textual: bool = False
    null: bool = False  # what refers to nothing becomes NULL


@dataclass(frozen=True)
class Values:
    """A cell for checking: `raw` as the source has it, `type` its type (`length`: varchar's n), `value` the cast that never

    raises what is listed in `unsafe`; `proven` when that is all that it can raise.
    """

    cell: Cell
    raw: str
    type: str
    value: str
    unsafe: tuple[Condition, ...] = ()
    length: int | None = None
    proven: bool = False
    column: ColumnSpec | None = None

    @property
    def stored(self) -> str:
        """Return the value as an expression of the target sees it: an id as uuid, char(n) and bit(n) padded."""
        if self.cell.is_id:
            return f"encode({self.value}, 'hex')::uuid"
        return self.value if self.column is None else padded(self.value, self.column)


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

    def within(self, schema: str, predicate: Predicate | None) -> str:
        """Return `source` with only the rows whose chunk_by meets the predicate."""
        if predicate is None:
            return self.source
        return f"(SELECT * FROM {self.part.source(schema, predicate)}) AS src{self.source.removeprefix(self.base)}"

    @property
    def order(self) -> str:
        """Return the ORDER BY list: the key."""
        return ", ".join(f"src.{ident(column)}" for column in self.part.key)


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
        if found and head.startswith("CASE WHEN ") and tail.endswith(" END"):
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
    return tuple(str(cell.key or f"src.{ident(part.keep or part.key[0])}") if cell.is_id else raw_sql(cell, target.policies) for cell in part.cells)


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
    parents = _parents(plan, target, part, schema, primary_keys, [kind for kind, _ in types])
    checks: list[Check] = []
    values: dict[str, Values] = {}
    unique = single_unique(spec) if spec else frozenset()
    for cell, raw, (kind, length) in zip(part.cells, raw_expressions(target, part), types, strict=True):
        column = spec.column(cell.name) if spec else None
        place = cell.place or part.label
        if cell.is_id:
            spelled = kind in casts.TEXTS and _keyed(plan, part, cell) == "integer"
            guarded = f"(CASE WHEN ({raw})::text ~ {literal(WHOLE)} THEN {cell.sql} END)" if spelled else cell.sql
            values[cell.name] = Values(cell, raw, kind, guarded)
            checks += _id_checks(target, part, cell, column is not None and column.not_null, place)
            checks += _key_checks(plan, target, part, values[cell.name], place)
            continue
        if column is None:
            values[cell.name] = Values(cell, raw, kind, cell.sql)
            continue
        impossible = casts.impossible(raw, kind, column, version) if not cell.constant or column.enum_labels is not None else ()
        impossible = (*impossible, *map(casts.embedded, cell.embedded))
        unsafe = (*casts.unrepresentable(raw, kind, encodings), *impossible) if not cell.constant else impossible
        guard = " OR ".join(f"({item.sql})" for item in unsafe)
        value = f"(CASE WHEN {guard} THEN NULL ELSE {cell.sql} END)" if unsafe else f"({cell.sql})"
        values[cell.name] = Values(cell, raw, kind, value, unsafe, length, casts.proves(impossible, kind, version), column)
        checks += _column_checks(target, values[cell.name], column, guard, cell.name in unique, place)
    if spec:
        for column in spec.columns:
            if column.generated is not None:
                values[column.name] = _generated(spec, column, values)
                checks += _column_checks(target, values[column.name], column, "", column.name in unique, part.label)
    for name, constant in part.counted:
        cell = values[name].cell
        checks.append(Check(cell.place or part.label, name, "counted", f"({values[name].value})::text = {literal(constant)}", f"get {constant!r}", INFO))
    for parent in parents:
        policy = policy_of(target, parent.column, "foreign_key")
        sql = f"({parent.child} IS NOT NULL AND {parent.alias}.key IS NULL)"
        checks.append(Check(parent.place, parent.column, "foreign_key", sql, f"refers to a row of {parent.name} that is not there", STOP, policy))
        if parent.textual:
            policy = None if parent.null else policy  # a reference that is written otherwise is meant
            sql = f"({parent.alias}.key::text <> {parent.child}::text)"
            said = f"equals a key of {parent.name} that is written otherwise, so its id would be another; write both alike, by a cast in 'sql' or in a query"
            checks.append(Check(parent.place, parent.column, "foreign_key", sql, said, STOP, policy))
    if spec:
        checks += _table_checks(target, part, spec, values)
        row = {name: item.stored for name, item in values.items()}
        for large in index_checks.too_large(spec, row):
            said = f"is too large for the index {large.name}: a B-tree takes {index_checks.LARGEST} bytes"
            policy = policy_of(target, large.column, "length") if large.column else None
            checks.append(Check(part.label, large.column, "length", large.sql, said, STOP, policy, large.name))
    base = part.source(schema)
    tries = [*_tries(target, part, values, encodings if spec else None), *(index_checks.tries(spec, row) if spec else ())]
    return PartScan(target, part, base, f"{base}{_joins(parents)}", tuple(checks), parents, values, tuple(tries))


def _column_checks(target: Target, values: Values, column: ColumnSpec, guard: str, unique: bool, place: str) -> list[Check]:
    """Return what one column demands of its values; `guard` is true where there is no value to speak of."""
    name, raw, value = values.cell.name, values.raw, values.value
    found = list(values.unsafe)
    required = column.not_null or (column.domain is not None and column.domain.not_null)
    if not _fits(values, column):
        found += [*casts.refused(value, column), *casts.changed(raw, values.type, value, column)]
    if required:
        safe = f"NOT coalesce({guard}, false) AND " if guard else ""
        found.append(Condition("not_null", f"{safe}{value} IS NULL", "is NULL, the column is NOT NULL"))
    if column.wire_type in casts.TEXTS and ((unique and required) or policy_of(target, name, "blank")):
        found.append(Condition("blank", f"btrim(({value})::text) = ''", "is blank, and the column is unique" if unique else "is blank"))
    if column.domain is not None:
        typed = padded(value, column)
        for number, check in enumerate(column.domain.checks, 1):
            sql = f"EXISTS (SELECT FROM (SELECT {typed} AS value) AS one WHERE ({check}) IS FALSE)"
            found.append(Condition("check", sql, f"breaks CHECK {number} of the domain {column.type}"))
    checks = [Check(place, name, item.rule, item.sql, item.message, STOP, policy_of(target, name, item.rule)) for item in found]
    if (condition := endless(value, column.wire_type)) and values.type not in casts.INTEGERS and not values.cell.constant:
        said = "is infinity or NaN, which JSON cannot hold" if column.wire_type in casts.NUMBERS else "is infinity, which Python's datetime cannot hold"
        checks.append(Check(place, name, "infinity", condition, said, WARN, policy_of(target, name, "infinity")))
    if (condition := beyond_years(value, column.wire_type)) and not values.cell.constant:
        said = "lies before the year 1 or after 9999, which Python's datetime and other drivers cannot hold"
        checks.append(Check(place, name, "year", condition, said, WARN, policy_of(target, name, "year")))
    for policy in target.policies:
        if policy.column == name and policy.placeholder is not None:
            old = f"({raw})::{column.wire_type}" if policy.rule in ("infinity", "year") else raw
            checks.append(Check(policy.place, name, policy.rule, f"({replaced(policy.rule, old, column.wire_type)})", "gets the placeholder", INFO, policy))
    return checks


def _generated(spec: TableSpec, column: ColumnSpec, values: Mapping[str, Values]) -> Values:
    """Return a generated column's value, computed from the others as the target will."""
    row = ", ".join(f"{item.stored} AS {ident(name)}" for name, item in values.items())
    sql = f"(SELECT ({column.generated})::{column.wire_type} FROM (SELECT {row}) AS {ident(spec.name)})"
    reads = tuple(dict.fromkeys(read for item in values.values() for read in item.cell.reads))
    return Values(Cell(column.name, sql, column.wire_type, reads=reads), sql, column.wire_type, sql, column=column)


def _fits(values: Values, column: ColumnSpec) -> bool:
    """Return whether the source's own varchar(n) proves that every value fits the target's."""
    plain = values.cell.sql == f"{values.raw}::{values.cell.type}"
    varchar = values.type == column.wire_type == "character varying"
    return plain and varchar and values.length is not None and column.length is not None and values.length <= column.length


def _tries(target: Target, part: Part, values: Mapping[str, Values], encodings: tuple[str, str] | None) -> tuple[tuple[str, str], ...]:
    result = []
    for name, value in values.items():
        if value.cell.constant:
            continue
        plain = value.raw == f"src.{ident(value.cell.reads[0])}" if len(value.cell.reads) == 1 else False
        if value.cell.is_id:
            own = value.cell.key is None
            safe = (value.type == "uuid") if own and part.keep else (value.type in casts.INTEGERS and (len(part.key) == 1 or not own))
        else:
            safe = plain and (value.type == value.cell.type or value.proven or value.cell.type in casts.TEXTS)
        if not safe:
            result.append((name, value.value))
        if encodings and not value.cell.is_id and (travelling := casts.untried(value.value, value.type, encodings)):
            result.append((name, travelling))
    return tuple(result)


def single_unique(spec: TableSpec) -> frozenset[str]:
    """Return the columns that are unique alone."""
    keys = [item.columns for item in spec.constraints if item.kind in ("unique", "primary_key")]
    keys += [item.columns for item in spec.indexes if item.unique and item.predicate is None]
    return frozenset(columns[0] for columns in keys if len(columns) == 1)


def _id_checks(target: Target, part: Part, cell: Cell, not_null: bool, place: str) -> list[Check]:
    policy = policy_of(target, cell.name, "not_null")
    if target.identity == (cell.name,):
        missing = " OR ".join(f"src.{ident(column)} IS NULL" for column in part.key)
        found = [Check(place, cell.name, "not_null", f"({missing})", "has no key", STOP, policy)]
        if part.keep and part.keep not in part.key:
            found.append(Check(place, cell.name, "not_null", f"(src.{ident(part.keep)} IS NULL)", f"has no UUID to keep ({part.keep} is NULL)", STOP, policy))
        return found
    if not_null:
        return [Check(place, cell.name, "not_null", f"({cell.key}) IS NULL", "is NULL, the column is NOT NULL", STOP, policy)]
    return []


def _key_checks(plan: Plan, target: Target, part: Part, values: Values, place: str) -> list[Check]:
    """Return the check of a key that is made an integer: what is rounded, or written otherwise, would mint another key's id."""
    cell = values.cell
    own = cell.key is None
    if own and part.keep:
        return []
    if _keyed(plan, part, cell) != "integer" or values.type in casts.INTEGERS:
        return []
    policy = policy_of(target, cell.name, "changed")
    if values.type in casts.TEXTS:
        sql = f"(({values.raw})::text !~ {literal(WHOLE)})"
        return [Check(place, cell.name, "changed", sql, "is no whole number as PostgreSQL writes it, so it names no row", STOP, policy)]
    sql = f"(({values.raw})::int8) <> ({values.raw})"
    return [Check(place, cell.name, "changed", sql, "is no whole number, so its id would be another's", STOP, policy)]


def _keyed(plan: Plan, part: Part, cell: Cell) -> str | None:
    """Return the type of the keys that a cell's ids are made of, or None where nothing mints them."""
    minted = minting_part(plan, cell.entity) if cell.entity and cell.key is not None else None
    keyed = part if cell.key is None else minted[1] if minted else None
    return keyed.key_types[0] if keyed else None


def _parents(plan: Plan, target: Target, part: Part, schema: str, primary_keys: Mapping[str, str], kinds: Sequence[str]) -> tuple[Parent, ...]:
    result: list[Parent] = []
    for cell, kind in zip(part.cells, kinds, strict=True):
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
                whole_number(f"({cell.key})::text") if kind in casts.TEXTS and minted[1].key_types[0] == "integer" else f"({cell.key})",
                cell.entity,
                cell.name,
                cell.place or part.label,
                minted[1].table or next((touch.table for touch in minted[1].touches if touch.result == minted[1].key[0]), minted[1].label),
                minted[1].key_types[0] == "text",
                becomes_null(target, cell),
            )
        )
    for column, table in part.parents:
        key = primary_keys.get(table)
        if key is not None:
            result.append(
                _parent(len(result), plan.rows_of(table, key, schema), f"src.{ident(key)}", f"src.{ident(column)}", None, column, part.label, table)
            )
    return tuple(result)


def _parent(
    number: int, source: str, key: str, child: str, entity: str | None, column: str, place: str, name: str, textual: bool = False, null: bool = False
) -> Parent:
    return Parent(f"parent{number}", source, key, child, entity, column, place, name, textual, null)


def _joins(parents: Sequence[Parent]) -> str:
    return "".join(f" LEFT JOIN (SELECT {item.key} AS key FROM {item.source}) AS {item.alias} ON {item.alias}.key = {item.child}" for item in parents)


def _table_checks(target: Target, part: Part, spec: TableSpec, values: Mapping[str, Values]) -> list[Check]:
    result = []
    for constraint in spec.constraints:
        if constraint.kind != "check" or constraint.expression is None:
            continue
        names = [name for name in (constraint.columns or tuple(values)) if name in values]
        row = ", ".join(f"{values[name].stored} AS {ident(name)}" for name in names)
        sql = f"EXISTS (SELECT FROM (SELECT {row}) AS {ident(spec.name)} WHERE ({constraint.expression}) IS FALSE)"
        column = names[0] if names else ""
        policy = next((found for name in names if (found := policy_of(target, name, "check"))), None)
        place = (values[column].cell.place if column else "") or part.label
        result.append(Check(place, column, "check", sql, f"breaks CHECK {constraint.name}", STOP, policy))
    return result


def padded(value: str, column: ColumnSpec) -> str:
    """Return a value of a column's wire type with the modifier of types that are stored at their full length."""
    base = column.domain.base if column.domain else column.type
    return f"({value})::{base}" if re.match(r"(character|bpchar|bit)\(", base) else value


def quoted(values: Sequence[str]) -> str:
    """Return a text array."""
    return "ARRAY[" + ", ".join(literal(value) for value in values) + "]::text[]"
