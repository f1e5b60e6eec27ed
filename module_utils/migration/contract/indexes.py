# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CREATE INDEX."""

from __future__ import annotations

from typing import Any

from ..postgres.quote import literal
from .default_names import expression_name, numbered
from .draft import Draft, DraftTable
from .dumped import STORAGE
from .model import IndexElement, IndexSpec
from .parser import ast, enums
from .trees import columns_of, dotted, name_list, spell, strings


def create_index(draft: Draft, node: Any, sql: str) -> None:
    """Add the index of a CREATE INDEX."""
    table = draft.tables[draft.known_table(node.relation)]
    if node.tableSpace:
        draft.ignore("TABLESPACE of an index", STORAGE)
    elements = tuple(_element(draft, table, item) for item in node.indexParams)
    include = draft.known_columns(table, [item.name for item in node.indexIncludingParams or ()])
    predicate = draft.expression(node.whereClause) if node.whereClause is not None else None
    if node.whereClause is not None:
        draft.known_columns(table, columns_of(node.whereClause))
    names = [*(item.name or expression_name(item.expr) for item in node.indexParams), *include]
    name = node.idxname or draft.free_relation(table.schema, table.name, numbered(names), "idx")
    draft.new_relation((table.schema, name))
    method = node.accessMethod or "btree"
    columns = [element.column for element in elements if element.column is not None]
    definition = f"USING {spell(method)} ({', '.join(element.sql for element in elements)})"
    if include:
        definition += f" INCLUDE ({name_list(include)})"
    if node.nulls_not_distinct:
        definition += " NULLS NOT DISTINCT"
    if node.options:
        definition += f" WITH ({', '.join(_option(draft, option) for option in node.options)})"
    if predicate is not None:
        definition += f" WHERE {predicate}"
    table.indexes.append(
        IndexSpec(
            name=name,
            columns=tuple(columns) if len(columns) == len(elements) else (),
            unique=bool(node.unique),
            predicate=predicate,
            definition=definition,
            elements=elements,
            method=method,
            include=include,
            nulls_not_distinct=bool(node.nulls_not_distinct),
            line=draft.place.line,
        )
    )


def _option(draft: Draft, node: Any) -> str:
    """Return a storage parameter (fillfactor, lists, ef_construction) as CREATE INDEX takes it."""
    value = node.arg
    if isinstance(value, ast.Integer):
        return f"{spell(node.defname)}={value.ival or 0}"
    text = value.fval if isinstance(value, ast.Float) else strings(value.names)[-1] if isinstance(value, ast.TypeName) else value.sval if value else "true"
    return f"{spell(node.defname)}={literal(str(text))}"


def _element(draft: Draft, table: DraftTable, node: Any) -> IndexElement:
    if node.opclassopts:
        raise draft.refusal("an operator class with options", "leave the options out")
    if node.name:
        draft.known_columns(table, [node.name])
    else:
        draft.known_columns(table, columns_of(node.expr))
    descending = node.ordering == enums.SortByDir.SORTBY_DESC
    nulls = node.nulls_ordering
    default = nulls in (None, enums.SortByNulls.SORTBY_NULLS_DEFAULT)
    return IndexElement(
        column=node.name,
        expression=None if node.name else draft.expression(node.expr),
        opclass=dotted(node.opclass) if node.opclass else None,
        collation=dotted(node.collation) if node.collation else None,
        descending=descending,
        nulls_first=descending if default else nulls == enums.SortByNulls.SORTBY_NULLS_FIRST,
    )
