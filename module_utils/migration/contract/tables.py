# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CREATE TABLE and ALTER TABLE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .constraints import add_constraints
from .draft import Draft, DraftTable
from .model import ColumnSpec
from .parser import ast, enums
from .trees import dotted
from .types import read_type


def create_table(draft: Draft, node: Any, sql: str) -> None:
    """Add the table of a CREATE TABLE."""
    draft.unread(node.relation.relname)  # until it is read
    schema, name = draft.relation(node.relation)
    draft.new_relation((schema, name))
    for present, what in (
        (node.inhRelations and not node.partbound, "INHERITS"),
        (node.partbound or node.partspec, "a partitioned table or a partition"),
        (node.ofTypename, "CREATE TABLE OF"),
        (node.relation.relpersistence != "p", "a temporary or unlogged table"),
        (node.options, "WITH (storage options)"),
        (node.tablespacename, "TABLESPACE"),
        (node.accessMethod, "USING access method"),
    ):
        if present:
            raise draft.refusal(f"{schema}.{name}: {what}", "make it an ordinary table")
    table = DraftTable(schema, name, draft.place.path, draft.place.line)
    draft.tables[schema, name] = table
    pending: list[tuple[Any, str | None]] = []
    for element in node.tableElts or ():
        with draft.mistakes:
            if isinstance(element, ast.ColumnDef):
                pending += [(item, element.colname) for item in _column(draft, table, element)]
            elif isinstance(element, ast.Constraint):
                pending.append((element, None))
            else:
                raise draft.refusal(f"{schema}.{name}: LIKE", "write the columns")
    draft.mistakes.unread.discard(f"{draft.service}.{name}")
    add_constraints(draft, table, pending)


def _column(draft: Draft, table: DraftTable, node: Any) -> list[Any]:
    """Add a column; return the constraints written beside it that belong to the table."""
    draft.place.move(node)
    draft.unread(table.name, node.colname)  # until it is read
    if node.colname in table.columns:
        raise draft.refusal(f"{table.schema}.{table.name}: column {node.colname} is there twice", "keep one of them")
    if node.storage_name or node.compression:
        raise draft.refusal(f"column {node.colname}: STORAGE or COMPRESSION", "leave it out")
    kind = read_type(draft, node.typeName)
    column = ColumnSpec(
        name=node.colname,
        type=kind.type,
        wire_type=kind.wire_type,
        length=kind.length,
        precision=kind.precision,
        scale=kind.scale,
        enum_labels=kind.enum_labels,
        domain=kind.domain,
        collation=dotted(node.collClause.collname) if node.collClause else None,
        line=draft.place.line,
    )
    kinds = enums.ConstrType
    own: list[Any] = []
    for item in node.constraints or ():
        match item.contype:
            case kinds.CONSTR_NOTNULL:
                column = replace(column, not_null=True)
            case kinds.CONSTR_NULL:
                pass  # NULL is what a column is anyway
            case kinds.CONSTR_DEFAULT:
                column = replace(column, default=draft.expression(item.raw_expr))
            case kinds.CONSTR_IDENTITY:
                if item.options:
                    raise draft.refusal(f"column {node.colname}: identity with sequence options", "leave the options out")
                column = replace(column, identity="always" if item.generated_when == "a" else "by default", not_null=True)
            case kinds.CONSTR_GENERATED:
                if item.generated_kind == "v":
                    raise draft.refusal(f"column {node.colname}: a VIRTUAL generated column", "write STORED")
                column = replace(column, generated=draft.expression(item.raw_expr))
            case _:
                own.append(item)
    table.columns[node.colname] = column
    draft.mistakes.unread.discard(f"{draft.service}.{table.name}.{node.colname}")
    return own


def alter_table(draft: Draft, node: Any, sql: str) -> None:
    """Change a table as an ALTER TABLE says."""
    if node.objtype != enums.ObjectType.OBJECT_TABLE:
        raise draft.refusal("ALTER of something that is not a table", "create it as it shall be")
    table = draft.tables[draft.known_table(node.relation)]
    for command in node.cmds:
        with draft.mistakes:
            _alter(draft, table, command)


def _alter(draft: Draft, table: DraftTable, command: Any) -> None:
    kinds = enums.AlterTableType
    match command.subtype:
        case kinds.AT_AddConstraint:
            add_constraints(draft, table, [(command.def_, None)])
        case kinds.AT_AddColumn:
            pending = _column(draft, table, command.def_)
            add_constraints(draft, table, [(item, command.def_.colname) for item in pending])
        case kinds.AT_SetNotNull | kinds.AT_DropNotNull:
            draft.known_columns(table, [command.name])
            not_null = command.subtype == kinds.AT_SetNotNull
            table.columns[command.name] = replace(table.columns[command.name], not_null=not_null)
        case kinds.AT_ColumnDefault:
            draft.known_columns(table, [command.name])
            default = draft.expression(command.def_) if command.def_ is not None else None
            table.columns[command.name] = replace(table.columns[command.name], default=default)
        case _:
            raise draft.refusal(
                f"ALTER TABLE {table.schema}.{table.name} in a way that a contract has no meaning for",
                "keep to ADD COLUMN, ADD CONSTRAINT, SET DEFAULT and SET NOT NULL, or write the table as it shall be",
            )
