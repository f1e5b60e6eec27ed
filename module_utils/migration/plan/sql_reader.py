# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the SQL in mappings reads, by PostgreSQL's own parser. Controller only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..contract.parser import Visitor, ast, enums, pglast, require_parser
from ..errors import MigrationError

# Stable or volatile functions whose result is another one in a second run or on another connection.
UNSTABLE = frozenset(
    (
        *("now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday", "random", "random_normal"),
        *("gen_random_uuid", "uuid_generate_v1", "uuid_generate_v4", "uuidv4", "uuidv7", "nextval", "currval", "lastval", "setval"),
        *("pg_sleep", "txid_current", "pg_current_xact_id", "pg_backend_pid", "inet_client_addr", "current_query", "set_config"),
        *("dblink", "dblink_exec", "lo_import", "lo_export", "pg_read_file", "pg_ls_dir"),
    )
)


@dataclass(frozen=True)
class Read:
    """A column that an SQL text reads, with the tables it may belong to (unqualified names may have several)."""

    tables: tuple[str, ...]
    column: str


@dataclass(frozen=True)
class Reads:
    """All that a text reads; `star` lists the tables of which it reads every column."""

    tables: tuple[str, ...]
    columns: tuple[Read, ...]
    star: tuple[str, ...]
    repeated: tuple[str, ...] = ()
    qualified: tuple[tuple[str, str], ...] = ()  # (schema, table) where the text names the schema


def read_expression(sql: str, place: str) -> tuple[str, ...]:
    """Return the source columns that a scalar expression reads; MigrationError when it is not one."""
    statement = single_select(f"SELECT (\n{sql}\n)", place, sql)
    targets: tuple[Any, ...] = statement.targetList or ()
    clauses = ("fromClause", "whereClause", "groupClause", "havingClause", "sortClause", "limitCount", "limitOffset", "distinctClause", "windowClause", "op")
    plain = not any(getattr(statement, clause) for clause in clauses)
    if len(targets) != 1 or not plain or targets[0].name:
        raise MigrationError(f"{place}: {_short(sql)}: must be one scalar SQL expression over the source row")
    collector = _collect(statement, place, sql)
    if collector.selects > 1:
        raise MigrationError(f"{place}: {_short(sql)}: a subquery needs a 'source: {{query: ..., refresh: ...}}', so that changes can be followed")
    columns = []
    for names in collector.columns:
        if len(names) != 1 or names[0] == "*":
            raise MigrationError(f"{place}: {'.'.join(names)}: name the source column alone, without a table")
        columns.append(names[0])
    return tuple(dict.fromkeys(columns))


def read_query(sql: str, place: str) -> Reads:
    """Return what a mapping's query reads; MigrationError when it is not one SELECT."""
    statement = single_select(sql, place)
    collector = _collect(statement, place, sql)
    tables = tuple(dict.fromkeys(table for table in collector.aliases.values() if table))
    every = tuple(dict.fromkeys(tables))
    columns: list[Read] = []
    star: list[str] = []
    for names in collector.columns:
        *qualifier, column = names
        owners = tuple(sorted(collector.by_alias.get(qualifier[-1], ()))) if qualifier else every
        if column == "*":
            star.extend(owners)
        elif owners:
            columns.append(Read(owners, column))
    used = [table for table in collector.aliases.values() if table]
    repeated = tuple(table for table in tables if used.count(table) > 1)
    return Reads(tables, tuple(dict.fromkeys(columns)), tuple(dict.fromkeys(star)), repeated, tuple(dict.fromkeys(collector.qualified)))


def output_columns(sql: str, place: str) -> tuple[str, ...] | None:
    """Return the names of a query's result columns, or None when a star hides them."""
    statement = single_select(sql, place)
    while statement.op != enums.SetOperation.SETOP_NONE:
        statement = statement.larg
    names = []
    targets: tuple[Any, ...] = statement.targetList or ()
    for target in targets:
        fields: tuple[Any, ...] | None = target.val.fields if isinstance(target.val, ast.ColumnRef) else None
        if target.name:
            names.append(target.name)
        elif fields and isinstance(fields[-1], ast.String):
            names.append(str(fields[-1].sval))
        elif fields:
            return None
        else:
            raise MigrationError(f"{place}: every result column of a query needs a name (AS ...)")
    return tuple(names)


def single_select(text: str, place: str, shown: str | None = None) -> Any:
    """Return the parsed SELECT that a text is (`shown` is how messages call it); MigrationError when it is anything else."""
    require_parser()
    try:
        statements = pglast.parse_sql(text)
    except pglast.parser.ParseError as exc:
        raise MigrationError(f"{place}: {_short(shown or text)}: {exc.args[0]}") from exc
    first: Any = statements[0].stmt if len(statements) == 1 else None
    if not isinstance(first, ast.SelectStmt) or first.intoClause:
        raise MigrationError(f"{place}: {_short(shown or text)}: must be one SELECT and nothing else")
    return first


def _short(sql: str) -> str:
    line = " ".join(sql.split())
    return line if len(line) <= 60 else line[:57] + "..."


class _Collector(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.columns: list[tuple[str, ...]] = []
        self.aliases: dict[int, str] = {}
        self.by_alias: dict[str, set[str]] = {}
        self.functions: list[str] = []
        self.ctes: set[str] = set()
        self.qualified: list[tuple[str, str]] = []
        self.volatile: list[str] = []
        self.selects = 0
        self.locks = False

    def visit_SelectStmt(self, _ancestors: Any, node: Any) -> None:
        self.selects += 1 if node.op == enums.SetOperation.SETOP_NONE else 0
        self.locks = self.locks or bool(node.lockingClause)

    def visit_CommonTableExpr(self, _ancestors: Any, node: Any) -> None:
        self.ctes.add(node.ctename)

    def visit_RangeVar(self, _ancestors: Any, node: Any) -> None:
        alias = node.alias.aliasname if node.alias else node.relname
        self.aliases[len(self.aliases)] = node.relname
        if node.schemaname:
            self.qualified.append((node.schemaname, node.relname))
        self.by_alias.setdefault(alias, set()).add(node.relname)

    def visit_ColumnRef(self, _ancestors: Any, node: Any) -> None:
        fields: tuple[Any, ...] = node.fields
        self.columns.append(tuple(str(part.sval) if isinstance(part, ast.String) else "*" for part in fields))

    def visit_FuncCall(self, _ancestors: Any, node: Any) -> None:
        self.functions.append(node.funcname[-1].sval)

    def visit_ParamRef(self, _ancestors: Any, node: Any) -> None:
        self.volatile.append(f"${node.number} (a parameter that nobody gives)")

    def visit_SQLValueFunction(self, _ancestors: Any, node: Any) -> None:
        self.volatile.append("CURRENT_... (the time or the user of the session)")


def _collect(statement: Any, place: str, sql: str) -> _Collector:
    collector = _Collector()
    collector(statement)
    unstable = [name for name in collector.functions if name.lower() in UNSTABLE] + collector.volatile
    if unstable:
        raise MigrationError(
            f"{place}: {_short(sql)}: {unstable[0]} gives another value at every run; use 'value: plan_time' or a source column"
        )
    if collector.locks:
        raise MigrationError(f"{place}: {_short(sql)}: a row lock (FOR UPDATE ...) writes on the source; leave it out")
    for key in [key for key, table in collector.aliases.items() if table in collector.ctes]:
        collector.aliases.pop(key)
    for tables in collector.by_alias.values():
        tables.difference_update(collector.ctes)
    return collector
