# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Constraints, named and ordered as PostgreSQL does, and what foreign keys refer to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import MigrationError
from ..mistakes import Consequence
from ..postgres.quote import qualified
from .draft import Draft, DraftTable, Place
from .model import ConstraintSpec, ForeignKey
from .parser import enums
from .trees import columns_of, name_list, strings

_ACTIONS = {"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}

def add_constraints(draft: Draft, table: DraftTable, pending: Sequence[tuple[Any, str | None]]) -> None:
    """Add constraints in the order in which PostgreSQL makes and names them: CHECK, primary key, UNIQUE, foreign keys."""
    kinds = enums.ConstrType
    order = {kinds.CONSTR_CHECK: 0, kinds.CONSTR_PRIMARY: 1, kinds.CONSTR_UNIQUE: 2, kinds.CONSTR_FOREIGN: 3}
    attributes = {
        kinds.CONSTR_ATTR_DEFERRABLE: {"deferrable": True},
        kinds.CONSTR_ATTR_NOT_DEFERRABLE: {"deferrable": False, "initdeferred": False},
        kinds.CONSTR_ATTR_DEFERRED: {"deferrable": True, "initdeferred": True},
        kinds.CONSTR_ATTR_IMMEDIATE: {"initdeferred": False},
    }
    real: list[tuple[Any, str | None, dict[str, bool]]] = []
    for node, column in pending:
        if node.contype in attributes:  # beside a column, these follow the constraint that they qualify
            if not real:
                raise draft.refusal("DEFERRABLE without a constraint before it", "put it after the constraint")
            real[-1][2].update(attributes[node.contype])
        elif node.contype == kinds.CONSTR_NOTNULL and column is None:
            for name in draft.known_columns(table, strings(node.keys)):
                table.columns[name] = replace(table.columns[name], not_null=True)
        elif node.contype in order:
            real.append((node, column, {"deferrable": bool(node.deferrable), "initdeferred": bool(node.initdeferred)}))
        else:
            draft.place.move(node)
            raise draft.refusal(
                f"{table.schema}.{table.name}: a constraint of a kind that nothing here checks (EXCLUDE, NOT ENFORCED)",
                "keep to PRIMARY KEY, UNIQUE, FOREIGN KEY, CHECK and NOT NULL",
            )
    for node, column, flags in sorted(real, key=lambda item: order[item[0].contype]):
        draft.place.move(node)
        with draft.mistakes:
            _constraint(draft, table, node, column, flags)


def _constraint(draft: Draft, table: DraftTable, node: Any, column: str | None, flags: dict[str, bool]) -> None:
    kinds = enums.ConstrType
    if node.indexspace or node.options or node.indexname:
        raise draft.refusal(f"{table.schema}.{table.name}: a constraint with USING INDEX, TABLESPACE or WITH", "write the columns and nothing else")
    if node.without_overlaps or node.fk_with_period:
        raise draft.refusal(f"{table.schema}.{table.name}: WITHOUT OVERLAPS or PERIOD", "leave it out")
    if node.is_enforced is False and node.contype in (kinds.CONSTR_CHECK, kinds.CONSTR_FOREIGN) and _says_not_enforced(draft.place, node):
        raise draft.refusal(f"{table.schema}.{table.name}: NOT ENFORCED", "leave it out, or drop the constraint")
    match node.contype:
        case kinds.CONSTR_CHECK:
            spec = _check(draft, table, node)
        case kinds.CONSTR_FOREIGN:
            spec = _foreign_key(draft, table, node, column)
        case _:
            spec = _key(draft, table, node, column)
    if any(existing.name == spec.name for existing in table.constraints):
        raise draft.refusal(f"{table.schema}.{table.name}: the constraint name {spec.name} is used twice", "rename one of them")
    spec = replace(spec, deferrable=flags["deferrable"], deferred=flags["initdeferred"], line=draft.place.line)
    if spec.foreign is None:
        spec = replace(spec, definition=spec.definition + _deferral(spec))
    table.constraints.append(spec)


def _key(draft: Draft, table: DraftTable, node: Any, column: str | None) -> ConstraintSpec:
    primary = node.contype == enums.ConstrType.CONSTR_PRIMARY
    columns = draft.known_columns(table, [column] if column else strings(node.keys))
    include = draft.known_columns(table, strings(node.including))
    if primary:
        if any(item.kind == "primary_key" for item in table.constraints):
            raise draft.refusal(f"{table.schema}.{table.name}: two primary keys", "keep one of them")
        for name in columns:
            table.columns[name] = replace(table.columns[name], not_null=True)
    name = node.conname or draft.free_relation(table.schema, table.name, None if primary else [*columns, *include], "pkey" if primary else "key")
    draft.new_relation((table.schema, name))
    words = "PRIMARY KEY" if primary else "UNIQUE NULLS NOT DISTINCT" if node.nulls_not_distinct else "UNIQUE"
    return ConstraintSpec(
        name=name,
        kind="primary_key" if primary else "unique",
        columns=columns,
        definition=f"{words} ({name_list(columns)})" + (f" INCLUDE ({name_list(include)})" if include else ""),
        include=include,
        nulls_not_distinct=bool(node.nulls_not_distinct),
    )


def _check(draft: Draft, table: DraftTable, node: Any) -> ConstraintSpec:
    expression = draft.expression(node.raw_expr)
    used = draft.known_columns(table, columns_of(node.raw_expr))
    name = node.conname or draft.free_constraint(table, list(used) if len(used) == 1 else [], "check")
    no_inherit = " NO INHERIT" if node.is_no_inherit else ""
    return ConstraintSpec(name=name, kind="check", columns=used, definition=f"CHECK ({expression}){no_inherit}", expression=expression)


def _foreign_key(draft: Draft, table: DraftTable, node: Any, column: str | None) -> ConstraintSpec:
    columns = draft.known_columns(table, [column] if column else strings(node.fk_attrs))
    schema, name = draft.relation(node.pktable)
    if node.fk_matchtype == "p" or node.fk_del_set_cols:
        raise draft.refusal("MATCH PARTIAL, or ON DELETE SET ... (columns)", "leave it out")
    foreign = ForeignKey(
        schema=schema,
        table=name,
        columns=tuple(strings(node.pk_attrs)),
        on_update=_ACTIONS[node.fk_upd_action or "a"],
        on_delete=_ACTIONS[node.fk_del_action or "a"],
        full_match=node.fk_matchtype == "f",
    )
    chosen = node.conname or draft.free_constraint(table, list(columns), "fkey")
    return ConstraintSpec(name=chosen, kind="foreign_key", columns=columns, definition="", foreign=foreign)


def resolved(draft: Draft, table: DraftTable, constraint: ConstraintSpec) -> ConstraintSpec:
    """Return a foreign key with the columns it refers to: the far table's primary key when none are named."""
    if constraint.foreign is None:
        return constraint
    foreign = constraint.foreign
    far = draft.tables.get((foreign.schema, foreign.table))
    where = f"{table.path}:{constraint.line}: {constraint.name}"
    if far is None:
        whole = {draft.service, f"{draft.service}.{foreign.table}"}
        raise (Consequence if whole & draft.mistakes.unread else MigrationError)(
            f"{where} refers to {foreign.schema}.{foreign.table}, which these files do not create;"
            " create it there, or drop the reference (the ids of another service have no foreign key)"
        )
    columns = foreign.columns
    if not columns:
        primary = next((item for item in far.constraints if item.kind == "primary_key"), None)
        if primary is None:
            raise MigrationError(f"{where} refers to {foreign.schema}.{foreign.table}, which has no primary key; name the columns")
        columns = primary.columns
    unknown = [name for name in columns if name not in far.columns]
    if any(f"{draft.service}.{foreign.table}.{name}" in draft.mistakes.unread for name in unknown):
        raise Consequence(f"{where} refers to a column that has a mistake")
    if unknown or len(columns) != len(constraint.columns):
        fault = f"has no column {unknown[0]}" if unknown else f"needs {len(columns)} columns, not {len(constraint.columns)}"
        raise MigrationError(f"{where} refers to {foreign.schema}.{foreign.table}, which {fault}; correct the reference")
    complete = replace(foreign, columns=tuple(columns))
    return replace(constraint, foreign=complete, definition=_foreign_key_definition(constraint, complete))


def _foreign_key_definition(constraint: ConstraintSpec, foreign: ForeignKey) -> str:
    words = f"FOREIGN KEY ({name_list(constraint.columns)}) REFERENCES {qualified(foreign.schema, foreign.table)} ({name_list(foreign.columns)})"
    if foreign.full_match:
        words += " MATCH FULL"
    for event, action in (("UPDATE", foreign.on_update), ("DELETE", foreign.on_delete)):
        if action != "NO ACTION":
            words += f" ON {event} {action}"
    return words + _deferral(constraint)


def _deferral(constraint: ConstraintSpec) -> str:
    if not constraint.deferrable:
        return ""
    return " DEFERRABLE INITIALLY DEFERRED" if constraint.deferred else " DEFERRABLE"


def _says_not_enforced(place: Place, node: Any) -> bool:
    start = place.base + max(node.location or 0, 0)
    return re.search(r"\bNOT\s+ENFORCED\b", place.text[start:].split(";")[0], re.IGNORECASE) is not None
