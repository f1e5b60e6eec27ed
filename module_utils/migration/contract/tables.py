# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CREATE TABLE and ALTER TABLE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .constraints import add_constraints
from .default_names import choose
from .draft import Draft, DraftTable
from .dumped import OWNER, ROW_SECURITY, STORAGE, leave_out
from .model import ColumnSpec
from .parser import ast, enums
from .trees import dotted, strings
from .types import read_type

_ROW_SECURITY = ("AT_EnableRowSecurity", "AT_ForceRowSecurity", "AT_NoForceRowSecurity", "AT_DisableRowSecurity")
_STORAGE = (
    *("AT_SetStorage", "AT_SetCompression", "AT_SetStatistics", "AT_SetOptions", "AT_SetRelOptions"),
    *("AT_ReplicaIdentity", "AT_ClusterOn", "AT_SetTableSpace", "AT_SetAccessMethod"),
)


def create_table(draft: Draft, node: Any, sql: str) -> None:
    """Add the table of a CREATE TABLE."""
    draft.unread(node.relation.relname)  # until it is read
    schema, name = draft.relation(node.relation)
    draft.new_relation((schema, name))
    if node.inhRelations or node.partspec:
        leave_out(draft, (schema, name), "CREATE TABLE with PARTITION BY" if node.partspec else "CREATE TABLE as a partition or with INHERITS")
        draft.mistakes.unread.discard(f"{draft.service}.{name}")
        return
    for present, what in (
        (node.ofTypename, "CREATE TABLE OF"),
        (node.relation.relpersistence != "p", "a temporary or unlogged table"),
        (node.accessMethod not in (None, "heap"), "USING access method"),
    ):
        if present:
            raise draft.refusal(f"{schema}.{name}: {what}", "make it an ordinary table")
    if node.options or node.tablespacename:
        draft.ignore("storage options or TABLESPACE of a table", STORAGE)
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
        draft.ignore("STORAGE or COMPRESSION of a column", STORAGE)
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
                _plain_identity(draft, table, node.colname, item)
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


def _plain_identity(draft: Draft, table: DraftTable, column: str, node: Any) -> None:
    """Refuse an identity whose sequence counts otherwise than PostgreSQL's own: the schema phase would make another one."""
    own = {"start": 1, "increment": 1, "cache": 1, "minvalue": None, "maxvalue": None, "cycle": False}
    for option in node.options or ():
        if option.defname == "sequence_name":
            if strings(option.arg)[-1] != choose(table.name, [column], "seq", lambda name: False):
                draft.ignore("the name of an identity's sequence", "PostgreSQL chooses it")
        elif option.defname not in own or _plain(option.arg) != own[option.defname]:
            raise draft.refusal(
                f"column {column}: an identity whose sequence has {option.defname.upper()} {_plain(option.arg)}",
                "leave the option out, and change the sequence after the migration",
            )


def _plain(value: Any) -> Any:
    return value.ival or 0 if isinstance(value, ast.Integer) else value.boolval if isinstance(value, ast.Boolean) else value


def _attach(draft: Draft, node: Any) -> None:
    """Leave out a partition with its table; that of an index went with its table."""
    child = node.cmds[0].def_.name
    if node.objtype == enums.ObjectType.OBJECT_TABLE and draft.relation(node.relation) not in draft.left_out:
        draft.known_table(node.relation)
    if node.objtype == enums.ObjectType.OBJECT_TABLE:
        leave_out(draft, draft.relation(child), "ATTACH PARTITION")


def alter_table(draft: Draft, node: Any, sql: str) -> None:
    """Change a table as an ALTER TABLE says."""
    kinds = enums.AlterTableType
    if all(command.subtype == kinds.AT_ChangeOwner for command in node.cmds):
        draft.ignore("OWNER TO", OWNER)
        return
    if node.cmds[0].subtype == kinds.AT_AttachPartition:
        _attach(draft, node)
        return
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
        case kinds.AT_AddIdentity:
            draft.known_columns(table, [command.name])
            _plain_identity(draft, table, command.name, command.def_)
            identity = "always" if command.def_.generated_when == "a" else "by default"
            table.columns[command.name] = replace(table.columns[command.name], identity=identity, not_null=True)
        case kinds.AT_ChangeOwner:
            draft.ignore("OWNER TO", OWNER)
        case subtype if subtype.name in _ROW_SECURITY:
            draft.ignore("ROW LEVEL SECURITY", ROW_SECURITY)
        case subtype if subtype.name in _STORAGE:
            draft.ignore("ALTER TABLE of how it is stored or replicated", STORAGE)
        case _:
            raise draft.refusal(
                f"ALTER TABLE {table.schema}.{table.name} in a way that a contract has no meaning for",
                "keep to ADD COLUMN, ADD CONSTRAINT, SET DEFAULT and SET NOT NULL, or write the table as it shall be",
            )
