# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each statement that a contract may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..postgres.quote import ident, qualified
from .draft import Draft
from .dumped import HANDLERS, RIGHTS, leave_out, reads_left_out
from .indexes import create_index
from .model import DomainSpec
from .parser import enums
from .tables import alter_table, create_table
from .trees import strings
from .types import read_type, spelled

_RESERVED_SCHEMAS = ("migration", "pg_catalog", "information_schema", "pg_toast")
_HARMLESS_SETTINGS = frozenset(
    (
        "client_encoding",
        "client_min_messages",
        "statement_timeout",
        "lock_timeout",
        "standard_conforming_strings",
        "check_function_bodies",
        "idle_in_transaction_session_timeout",
        "transaction_timeout",
        "row_security",
        "xmloption",
        "default_table_access_method",
        "default_tablespace",
        "default_with_oids",
        "default_toast_compression",
    )
)


def _schema(draft: Draft, node: Any, sql: str) -> None:
    name = node.schemaname
    if not name or node.schemaElts:
        raise draft.refusal("CREATE SCHEMA with a list of objects or without a name", "write CREATE SCHEMA name; and the objects after it")
    if node.authrole is not None:
        raise draft.refusal("CREATE SCHEMA ... AUTHORIZATION", "leave it out: the role in session_role owns what is created")
    if name in _RESERVED_SCHEMAS or name.startswith("pg_"):
        raise draft.refusal(f"schema {name} is reserved", "choose another name; `migration` is where the migration keeps its ledger")
    draft.schemas.add(name)
    draft.before("schema", (name,), f"CREATE SCHEMA {ident(name)}")


def _extension(draft: Draft, node: Any, sql: str) -> None:
    schema = next((option.arg.sval for option in node.options or () if option.defname == "schema"), None)
    draft.extensions[node.extname] = schema
    draft.before("extension", (node.extname,), sql)


def _enum(draft: Draft, node: Any, sql: str) -> None:
    name = draft.new_type_name(node.typeName)
    labels = tuple(strings(node.vals))
    draft.enums[name] = labels
    draft.before("type", name, sql, about=labels)


def _domain(draft: Draft, node: Any, sql: str) -> None:
    name = draft.new_type_name(node.domainname)
    base = read_type(draft, node.typeName)
    checks: list[str] = []
    not_null = base.domain.not_null if base.domain else False
    for item in node.constraints or ():
        if item.contype == enums.ConstrType.CONSTR_NOTNULL:
            not_null = True
        elif item.contype == enums.ConstrType.CONSTR_CHECK:
            checks.append(draft.expression(item.raw_expr))
        elif item.contype not in (enums.ConstrType.CONSTR_NULL, enums.ConstrType.CONSTR_DEFAULT):
            raise draft.refusal(f"domain {name[1]}: a constraint of this kind", "keep to NOT NULL and CHECK")
    inherited = base.domain.checks if base.domain else ()
    spec = DomainSpec(name[0], name[1], base.domain.base if base.domain else base.type, not_null, (*inherited, *checks))
    draft.domains[name] = (spec, base)
    draft.before("domain", name, sql, about=(base.type, str(not_null), *checks))


def _sequence(draft: Draft, node: Any, sql: str) -> None:
    name = draft.relation(node.sequence)
    draft.new_relation(name)
    draft.before("sequence", name, sql)


def _function(draft: Draft, node: Any, sql: str) -> None:
    names = strings(node.funcname)
    schema, name = (names[-2] if len(names) > 1 else draft.service), names[-1]
    draft.known_schema(schema)
    modes = enums.FunctionParameterMode
    inputs = [spelled(item.argType) for item in node.parameters or () if item.mode not in (modes.FUNC_PARAM_OUT, modes.FUNC_PARAM_TABLE)]
    body = next((option.arg for option in node.options or () if option.defname == "as"), None)
    source = body[0].sval if body else ""
    draft.before("function", (schema, name, ", ".join(inputs)), sql, about=(source,))


def _trigger(draft: Draft, node: Any, sql: str) -> None:
    schema, table = draft.known_table(node.relation)
    draft.after("trigger", (schema, table, node.trigname), sql)


def _view(draft: Draft, node: Any, sql: str) -> None:
    name = draft.relation(node.view)
    draft.new_relation(name)
    if reads_left_out(draft, node.query):
        leave_out(draft, name, "VIEW of a relation that is not created")
        return
    draft.after("view", name, sql)


def _comment(draft: Draft, node: Any, sql: str) -> None:
    text = node.comment or ""
    if node.objtype == enums.ObjectType.OBJECT_TABLE:
        name = draft.known_name(strings(node.object))
        draft.after("comment", name, sql, about=(text,))
    elif node.objtype == enums.ObjectType.OBJECT_COLUMN:
        parts = strings(node.object)
        schema, table = draft.known_name(parts[:-1])
        draft.known_columns(draft.tables[schema, table], parts[-1:])
        draft.after("comment", (schema, table, parts[-1]), sql, about=(text,))
    else:
        draft.ignore("COMMENT ON something other than a table or a column", "it is not part of the contract")


def _grant(draft: Draft, node: Any, sql: str) -> None:
    whole = node.is_grant and node.objtype == enums.ObjectType.OBJECT_TABLE and not node.grant_option
    named = node.targtype == enums.GrantTargetType.ACL_TARGET_OBJECT and not any(item.cols for item in node.privileges or ())
    kinds = [(item.schemaname or draft.service, item.relname) for item in node.objects or ()] if whole and named else []
    if not kinds or any(name in draft.relations and name not in draft.tables for name in kinds):  # a view, a sequence
        draft.ignore("GRANT" if node.is_grant else "REVOKE", RIGHTS)
        return
    privileges = [item.priv_name for item in node.privileges or ()] or ["all"]
    for item in node.objects:
        schema, table = draft.known_table(item)
        for grantee in node.grantees:
            role = grantee.rolename or "public"
            target = "PUBLIC" if grantee.rolename is None else ident(role)
            for privilege in privileges:
                words = f"GRANT {privilege.upper()} ON {qualified(schema, table)} TO {target}"
                draft.after("grant", (schema, table, role, privilege), words)


def _setting(draft: Draft, node: Any, sql: str) -> None:
    if node.name == "search_path":
        names = [argument.val.sval for argument in node.args or ()]
        if names[:1] != [draft.service] and names != [""]:
            raise draft.refusal("SET search_path to another schema", f"leave it out: {draft.service} comes first here")
    elif node.name not in _HARMLESS_SETTINGS:
        raise draft.refusal(f"SET {node.name}", "leave it out: a contract describes objects")
    draft.ignore_session()


def _transaction(draft: Draft, node: Any, sql: str) -> None:
    kinds = enums.TransactionStmtKind
    if node.kind not in (kinds.TRANS_STMT_BEGIN, kinds.TRANS_STMT_START, kinds.TRANS_STMT_COMMIT):
        raise draft.refusal("a transaction command", "leave it out: each phase chooses its transactions")


_HANDLERS: dict[str, Callable[[Draft, Any, str], None]] = {
    "CreateSchemaStmt": _schema,
    "CreateExtensionStmt": _extension,
    "CreateEnumStmt": _enum,
    "CreateDomainStmt": _domain,
    "CreateSeqStmt": _sequence,
    "CreateFunctionStmt": _function,
    "CreateStmt": create_table,
    "AlterTableStmt": alter_table,
    "IndexStmt": create_index,
    "CreateTrigStmt": _trigger,
    "CommentStmt": _comment,
    "GrantStmt": _grant,
    "ViewStmt": _view,
    "VariableSetStmt": _setting,
    "TransactionStmt": _transaction,
    **HANDLERS,
}


def add_statement(draft: Draft, node: Any, sql: str) -> None:
    """Add what one statement says; MigrationError when a contract has no meaning for it."""
    handler = _HANDLERS.get(type(node).__name__)
    if handler is None:
        raise draft.refusal(
            f"a statement that a contract has no meaning for ({' '.join(sql.split()[:3])} ...)",
            "keep to CREATE SCHEMA, EXTENSION, TYPE ... AS ENUM, DOMAIN, SEQUENCE, FUNCTION, TABLE, INDEX, TRIGGER, VIEW,"
            " ALTER TABLE ... ADD, COMMENT and GRANT, as docs/mapping.md lists them",
        )
    handler(draft, node, sql)
