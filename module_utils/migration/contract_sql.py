# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a service's own SQL files into a contract, with PostgreSQL's own parser (pglast); only a controller needs it.

What is not understood is refused, never skipped: a contract that left something out would prove too little. Names that
the SQL leaves out are chosen as PostgreSQL chooses them (src/backend/commands/indexcmds.c, ChooseIndexName and
makeObjectName).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from .contract import (
    ColumnSpec,
    ConstraintSpec,
    Contract,
    DomainSpec,
    ForeignKey,
    IndexElement,
    IndexSpec,
    Statement,
    TableSpec,
)
from .errors import MigrationError
from .quote import ident, qualified

try:
    import pglast
    from pglast import ast, enums
    from pglast.keywords import COL_NAME_KEYWORDS, RESERVED_KEYWORDS, TYPE_FUNC_NAME_KEYWORDS
    from pglast.stream import RawStream
    from pglast.visitors import Visitor

    IMPORT_ERROR: str | None = None
except ImportError as exc:  # only a controller parses; a runner never gets here
    IMPORT_ERROR = str(exc)

# The parser's names of built-in types, as format_type() writes them.
_BUILT_IN = {
    "bool": "boolean",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "varchar": "character varying",
    "bpchar": "character",
    "varbit": "bit varying",
    "bit": "bit",
    "numeric": "numeric",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
    "time": "time without time zone",
    "timetz": "time with time zone",
    "interval": "interval",
}
_SAME_NAME = frozenset(
    (
        "uuid",
        "text",
        "date",
        "json",
        "jsonb",
        "bytea",
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
        "xml",
        "money",
        "oid",
        "point",
        "line",
        "lseg",
        "box",
        "path",
        "polygon",
        "circle",
        "tsvector",
        "tsquery",
        "int4range",
        "int8range",
        "numrange",
        "tsrange",
        "tstzrange",
        "daterange",
    )
)
_SERIAL = {"serial", "serial4", "bigserial", "serial8", "smallserial", "serial2"}
_EXTENSION_WIRE = {"citext": "text"}
_ACTIONS = {"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}
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
    )
)


def parse_contract(service: str, folder: Path) -> Contract:
    """Return the contract that the SQL files of `folder` describe, in the order of their names.

    MigrationError, with file and line, for whatever is not understood.
    """
    if IMPORT_ERROR is not None:
        raise MigrationError(f"pglast is missing on the controller ({IMPORT_ERROR}); install requirements.txt there")
    if not folder.is_dir():
        raise MigrationError(f"{folder}: there is no such folder; the SQL of {service} belongs there, in files named *.sql")
    files = sorted(folder.glob("*.sql"), key=lambda file: file.name)
    if not files:
        raise MigrationError(f"{folder}: no file named *.sql; the SQL of {service} belongs there")
    try:
        texts = [(file.as_posix(), file.read_text(encoding="utf-8")) for file in files]
    except (OSError, UnicodeDecodeError) as exc:
        raise MigrationError(f"{folder}: cannot be read as UTF-8: {exc}") from exc
    return parse_texts(service, texts)


def parse_texts(service: str, texts: Iterable[tuple[str, str]]) -> Contract:
    """Return the contract of the given (path, SQL) pairs."""
    reader = _Reader(service)
    for path, text in texts:
        reader.read(path, text)
    return reader.contract()


def deparse(node: Any) -> str:
    """Return an expression as SQL that parses to the same tree; ValueError when it would not."""
    text = str(RawStream(special_functions=True)(node))
    again: Any = pglast.parse_sql(f"SELECT {text}")[0].stmt
    again = again.targetList[0].val
    if _shape(again) != _shape(node):
        raise ValueError(text)
    return text


def _shape(node: Any) -> str:
    """Return a tree as text, without what only says how it was written."""
    return re.sub(r" (funcformat|rexpr_list_start|rexpr_list_end|typemod)=(<[^>]*>|\d+)", "", repr(node))


@dataclass
class _Table:
    """A table while its SQL is being read."""

    schema: str
    name: str
    path: str
    line: int
    columns: dict[str, ColumnSpec] = field(default_factory=dict)
    constraints: list[ConstraintSpec] = field(default_factory=list)
    indexes: list[IndexSpec] = field(default_factory=list)


@dataclass(frozen=True)
class _Type:
    """A column's type: how it is written, what goes over the wire, and what it limits."""

    type: str
    wire_type: str
    length: int | None = None
    precision: int | None = None
    scale: int | None = None
    enum_labels: tuple[str, ...] | None = None
    domain: DomainSpec | None = None


class _Reader:
    """Reads statements one after the other; remembers where it stands for its errors."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.path = ""
        self.text = ""
        self.offset = 0
        self.schemas = {service}
        self.tables: dict[tuple[str, str], _Table] = {}
        self.enums: dict[tuple[str, str], tuple[str, ...]] = {}
        self.domains: dict[tuple[str, str], tuple[DomainSpec, _Type]] = {}
        self.extensions: set[str] = set()
        self.relations: set[tuple[str, str]] = set()
        self.preamble: list[Statement] = []
        self.epilogue: list[Statement] = []

    # The whole.

    def read(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        try:
            statements = pglast.parse_sql(text)
        except pglast.parser.ParseError as exc:
            self.offset = exc.args[1] if len(exc.args) > 1 and exc.args[1] is not None else 0
            self.fail(str(exc.args[0]), "correct the SQL")
        for raw in statements:
            self.offset = raw.stmt_location or 0
            end = self.offset + raw.stmt_len if raw.stmt_len else len(text)
            self._statement(raw.stmt, text[self.offset : end].strip())

    def contract(self) -> Contract:
        if not any(statement.kind == "schema" and statement.object == (self.service,) for statement in self.preamble):
            self.preamble.insert(0, Statement("schema", (self.service,), f"CREATE SCHEMA {ident(self.service)}"))
        return Contract(
            service=self.service,
            tables=tuple(self._finished(table) for table in self.tables.values()),
            preamble=tuple(self.preamble),
            epilogue=tuple(self.epilogue),
            domains=tuple(domain for domain, _ in self.domains.values()),
        )

    def _finished(self, table: _Table) -> TableSpec:
        self.path = table.path
        return TableSpec(
            service=self.service,
            schema=table.schema,
            name=table.name,
            columns=tuple(table.columns.values()),
            constraints=tuple(self._resolved(table, constraint) for constraint in table.constraints),
            indexes=tuple(table.indexes),
            path=table.path,
            line=table.line,
        )

    def _resolved(self, table: _Table, constraint: ConstraintSpec) -> ConstraintSpec:
        """Return a foreign key with the columns it refers to: the far table's primary key when none are named."""
        if constraint.foreign is None:
            return constraint
        foreign = constraint.foreign
        far = self.tables.get((foreign.schema, foreign.table))
        where = f"{table.path}:{constraint.line}: {constraint.name}"
        if far is None:
            raise MigrationError(
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
        if unknown or len(columns) != len(constraint.columns):
            fault = f"has no column {unknown[0]}" if unknown else f"needs {len(columns)} columns, not {len(constraint.columns)}"
            raise MigrationError(f"{where} refers to {foreign.schema}.{foreign.table}, which {fault}; correct the reference")
        complete = replace(foreign, columns=tuple(columns))
        return replace(constraint, foreign=complete, definition=_foreign_key_definition(constraint, complete))

    # Statements.

    def _statement(self, node: Any, sql: str) -> None:
        handlers: dict[str, Callable[[Any, str], None]] = {
            "CreateSchemaStmt": self._schema,
            "CreateExtensionStmt": self._extension,
            "CreateEnumStmt": self._enum,
            "CreateDomainStmt": self._domain,
            "CreateSeqStmt": self._sequence,
            "CreateFunctionStmt": self._function,
            "CreateStmt": self._table,
            "AlterTableStmt": self._alter,
            "IndexStmt": self._index,
            "CreateTrigStmt": self._trigger,
            "CommentStmt": self._comment,
            "GrantStmt": self._grant,
            "ViewStmt": self._view,
            "VariableSetStmt": self._setting,
            "TransactionStmt": self._transaction,
        }
        handler = handlers.get(type(node).__name__)
        if handler is None:
            self.fail(
                f"a statement that a contract has no meaning for ({' '.join(sql.split()[:3])} ...)",
                "keep to CREATE SCHEMA, EXTENSION, TYPE ... AS ENUM, DOMAIN, SEQUENCE, FUNCTION, TABLE, INDEX, TRIGGER, VIEW,"
                " ALTER TABLE ... ADD, COMMENT and GRANT",
            )
        handler(node, sql)

    def _schema(self, node: Any, sql: str) -> None:
        name = node.schemaname
        if not name or node.schemaElts:
            self.fail("CREATE SCHEMA with a list of objects or without a name", "write CREATE SCHEMA name; and the objects after it")
        if node.authrole is not None:
            self.fail("CREATE SCHEMA ... AUTHORIZATION", "leave it out: the role in session_role owns what is created")
        if name in _RESERVED_SCHEMAS or name.startswith("pg_"):
            self.fail(f"schema {name} is reserved", "choose another name; `migration` is where the migration keeps its ledger")
        self.schemas.add(name)
        self._before("schema", (name,), f"CREATE SCHEMA {ident(name)}")

    def _extension(self, node: Any, sql: str) -> None:
        self.extensions.add(node.extname)
        self._before("extension", (node.extname,), sql)

    def _enum(self, node: Any, sql: str) -> None:
        name = self._type_name(node.typeName)
        labels = tuple(value.sval for value in node.vals or ())
        self.enums[name] = labels
        self._before("type", name, sql, about=labels)

    def _domain(self, node: Any, sql: str) -> None:
        name = self._type_name(node.domainname)
        base = self._type(node.typeName)
        checks: list[str] = []
        not_null = base.domain.not_null if base.domain else False
        for item in node.constraints or ():
            if item.contype == enums.ConstrType.CONSTR_NOTNULL:
                not_null = True
            elif item.contype == enums.ConstrType.CONSTR_CHECK:
                checks.append(self._expression(item.raw_expr))
            elif item.contype not in (enums.ConstrType.CONSTR_NULL, enums.ConstrType.CONSTR_DEFAULT):
                self.fail(f"domain {name[1]}: a constraint of this kind", "keep to NOT NULL and CHECK")
        inherited = base.domain.checks if base.domain else ()
        spec = DomainSpec(name[0], name[1], base.domain.base if base.domain else base.type, not_null, (*inherited, *checks))
        self.domains[name] = (spec, base)
        self._before("domain", name, sql, about=(base.type, str(not_null), *checks))

    def _sequence(self, node: Any, sql: str) -> None:
        name = self._relation(node.sequence)
        self._new_relation(name)
        self._before("sequence", name, sql)

    def _function(self, node: Any, sql: str) -> None:
        names = [part.sval for part in node.funcname]
        schema, name = (names[-2] if len(names) > 1 else self.service), names[-1]
        self._known_schema(schema)
        modes = enums.FunctionParameterMode
        inputs = [self._spelled(item.argType) for item in node.parameters or () if item.mode not in (modes.FUNC_PARAM_OUT, modes.FUNC_PARAM_TABLE)]
        body = next((option.arg for option in node.options or () if option.defname == "as"), None)
        source = body[0].sval if body else ""
        self._before("function", (schema, name, ", ".join(inputs)), sql, about=(source,))

    def _trigger(self, node: Any, sql: str) -> None:
        schema, table = self._known_table(node.relation)
        self._after("trigger", (schema, table, node.trigname), sql)

    def _view(self, node: Any, sql: str) -> None:
        name = self._relation(node.view)
        self._new_relation(name)
        self._after("view", name, sql)

    def _comment(self, node: Any, sql: str) -> None:
        text = node.comment or ""
        if node.objtype == enums.ObjectType.OBJECT_TABLE:
            parts = [part.sval for part in node.object]
            name = self._known_name(parts)
            self._after("comment", name, sql, about=(text,))
        elif node.objtype == enums.ObjectType.OBJECT_COLUMN:
            parts = [part.sval for part in node.object]
            schema, table = self._known_name(parts[:-1])
            self._known_columns(self.tables[schema, table], parts[-1:])
            self._after("comment", (schema, table, parts[-1]), sql, about=(text,))
        else:
            self.fail("COMMENT ON something other than a table or a column", "leave it out, or comment the table")

    def _grant(self, node: Any, sql: str) -> None:
        if not node.is_grant or node.objtype != enums.ObjectType.OBJECT_TABLE or node.grant_option:
            self.fail("GRANT or REVOKE of another kind", "keep to GRANT privileges ON table TO role")
        if node.targtype != enums.GrantTargetType.ACL_TARGET_OBJECT:
            self.fail("GRANT ... ON ALL TABLES", "name the tables")
        if any(item.cols for item in node.privileges or ()):
            self.fail("GRANT on single columns", "grant on the table")
        privileges = [item.priv_name for item in node.privileges or ()] or ["all"]
        for item in node.objects:
            schema, table = self._known_table(item)
            for grantee in node.grantees:
                role = grantee.rolename or "public"
                target = "PUBLIC" if grantee.rolename is None else ident(role)
                for privilege in privileges:
                    words = f"GRANT {privilege.upper()} ON {qualified(schema, table)} TO {target}"
                    self._after("grant", (schema, table, role, privilege), words)

    def _setting(self, node: Any, sql: str) -> None:
        if node.name == "search_path":
            names = [argument.val.sval for argument in node.args or ()]
            if names[:1] != [self.service]:
                self.fail("SET search_path to another schema", f"leave it out: {self.service} comes first here")
        elif node.name not in _HARMLESS_SETTINGS:
            self.fail(f"SET {node.name}", "leave it out: a contract describes objects")

    def _transaction(self, node: Any, sql: str) -> None:
        kinds = enums.TransactionStmtKind
        if node.kind not in (kinds.TRANS_STMT_BEGIN, kinds.TRANS_STMT_START, kinds.TRANS_STMT_COMMIT):
            self.fail("a transaction command", "leave it out: each phase chooses its transactions")

    def _before(self, kind: str, name: Sequence[str], sql: str, about: Sequence[str] = ()) -> None:
        self.preamble.append(Statement(kind, tuple(name), sql, self.path, self.line(), tuple(about)))

    def _after(self, kind: str, name: Sequence[str], sql: str, about: Sequence[str] = ()) -> None:
        self.epilogue.append(Statement(kind, tuple(name), sql, self.path, self.line(), tuple(about)))

    # Tables.

    def _table(self, node: Any, sql: str) -> None:
        schema, name = self._relation(node.relation)
        self._new_relation((schema, name))
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
                self.fail(f"{schema}.{name}: {what}", "make it an ordinary table")
        table = _Table(schema, name, self.path, self.line())
        self.tables[schema, name] = table
        pending: list[tuple[Any, str | None]] = []
        for element in node.tableElts or ():
            if isinstance(element, ast.ColumnDef):
                pending += [(item, element.colname) for item in self._column(table, element)]
            elif isinstance(element, ast.Constraint):
                pending.append((element, None))
            else:
                self.fail(f"{schema}.{name}: LIKE", "write the columns")
        self._constraints(table, pending)

    def _column(self, table: _Table, node: Any) -> list[Any]:
        """Add a column; return the constraints written beside it that belong to the table."""
        self.offset = node.location if node.location is not None and node.location >= 0 else self.offset
        if node.colname in table.columns:
            self.fail(f"{table.schema}.{table.name}: column {node.colname} is there twice", "keep one of them")
        if node.storage_name or node.compression:
            self.fail(f"column {node.colname}: STORAGE or COMPRESSION", "leave it out")
        kind = self._type(node.typeName)
        column = ColumnSpec(
            name=node.colname,
            type=kind.type,
            wire_type=kind.wire_type,
            length=kind.length,
            precision=kind.precision,
            scale=kind.scale,
            enum_labels=kind.enum_labels,
            domain=kind.domain,
            collation=_dotted(node.collClause.collname) if node.collClause else None,
            line=self.line(),
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
                    column = replace(column, default=self._expression(item.raw_expr))
                case kinds.CONSTR_IDENTITY:
                    if item.options:
                        self.fail(f"column {node.colname}: identity with sequence options", "leave the options out")
                    column = replace(column, identity="always" if item.generated_when == "a" else "by default", not_null=True)
                case kinds.CONSTR_GENERATED:
                    if item.generated_kind == "v":
                        self.fail(f"column {node.colname}: a VIRTUAL generated column", "write STORED")
                    column = replace(column, generated=self._expression(item.raw_expr))
                case _:
                    own.append(item)
        table.columns[node.colname] = column
        return own

    def _constraints(self, table: _Table, pending: Sequence[tuple[Any, str | None]]) -> None:
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
                    self.fail("DEFERRABLE without a constraint before it", "put it after the constraint")
                real[-1][2].update(attributes[node.contype])
            elif node.contype == kinds.CONSTR_NOTNULL and column is None:
                for name in self._known_columns(table, _strings(node.keys)):
                    table.columns[name] = replace(table.columns[name], not_null=True)
            elif node.contype in order:
                real.append((node, column, {"deferrable": bool(node.deferrable), "initdeferred": bool(node.initdeferred)}))
            else:
                self.offset = node.location if node.location is not None and node.location >= 0 else self.offset
                self.fail(
                    f"{table.schema}.{table.name}: a constraint of a kind that nothing here checks (EXCLUDE, NOT ENFORCED)",
                    "keep to PRIMARY KEY, UNIQUE, FOREIGN KEY, CHECK and NOT NULL",
                )
        for node, column, flags in sorted(real, key=lambda item: order[item[0].contype]):
            self.offset = node.location if node.location is not None and node.location >= 0 else self.offset
            self._constraint(table, node, column, flags)

    def _constraint(self, table: _Table, node: Any, column: str | None, flags: dict[str, bool]) -> None:
        kinds = enums.ConstrType
        if node.indexspace or node.options or node.indexname:
            self.fail(f"{table.schema}.{table.name}: a constraint with USING INDEX, TABLESPACE or WITH", "write the columns and nothing else")
        if node.without_overlaps or node.fk_with_period:
            self.fail(f"{table.schema}.{table.name}: WITHOUT OVERLAPS or PERIOD", "leave it out")
        if node.is_enforced is False and node.contype in (kinds.CONSTR_CHECK, kinds.CONSTR_FOREIGN) and _says_not_enforced(self.text, node):
            self.fail(f"{table.schema}.{table.name}: NOT ENFORCED", "leave it out, or drop the constraint")
        match node.contype:
            case kinds.CONSTR_CHECK:
                spec = self._check(table, node, column)
            case kinds.CONSTR_FOREIGN:
                spec = self._foreign_key(table, node, column)
            case _:
                spec = self._key(table, node, column)
        if any(existing.name == spec.name for existing in table.constraints):
            self.fail(f"{table.schema}.{table.name}: the constraint name {spec.name} is used twice", "rename one of them")
        spec = replace(spec, deferrable=flags["deferrable"], deferred=flags["initdeferred"], line=self.line())
        if spec.foreign is None:
            spec = replace(spec, definition=spec.definition + _deferral(spec))
        table.constraints.append(spec)

    def _key(self, table: _Table, node: Any, column: str | None) -> ConstraintSpec:
        primary = node.contype == enums.ConstrType.CONSTR_PRIMARY
        columns = self._known_columns(table, [column] if column else _strings(node.keys))
        include = self._known_columns(table, _strings(node.including))
        if primary:
            if any(item.kind == "primary_key" for item in table.constraints):
                self.fail(f"{table.schema}.{table.name}: two primary keys", "keep one of them")
            for name in columns:
                table.columns[name] = replace(table.columns[name], not_null=True)
        name = node.conname or self._free(table.schema, table.name, None if primary else [*columns, *include], "pkey" if primary else "key")
        self._new_relation((table.schema, name))
        words = "PRIMARY KEY" if primary else "UNIQUE NULLS NOT DISTINCT" if node.nulls_not_distinct else "UNIQUE"
        return ConstraintSpec(
            name=name,
            kind="primary_key" if primary else "unique",
            columns=columns,
            definition=f"{words} ({_list(columns)})" + (f" INCLUDE ({_list(include)})" if include else ""),
            include=include,
            nulls_not_distinct=bool(node.nulls_not_distinct),
        )

    def _check(self, table: _Table, node: Any, column: str | None) -> ConstraintSpec:
        expression = self._expression(node.raw_expr)
        used = self._known_columns(table, _columns_of(node.raw_expr))
        name = node.conname or self._free_constraint(table, list(used) if len(used) == 1 else [], "check")
        no_inherit = " NO INHERIT" if node.is_no_inherit else ""
        return ConstraintSpec(name=name, kind="check", columns=used, definition=f"CHECK ({expression}){no_inherit}", expression=expression)

    def _foreign_key(self, table: _Table, node: Any, column: str | None) -> ConstraintSpec:
        columns = self._known_columns(table, [column] if column else _strings(node.fk_attrs))
        schema, name = self._relation(node.pktable)
        if node.fk_matchtype == "p" or node.fk_del_set_cols:
            self.fail("MATCH PARTIAL, or ON DELETE SET ... (columns)", "leave it out")
        foreign = ForeignKey(
            schema=schema,
            table=name,
            columns=tuple(_strings(node.pk_attrs)),
            on_update=_ACTIONS[node.fk_upd_action or "a"],
            on_delete=_ACTIONS[node.fk_del_action or "a"],
            full_match=node.fk_matchtype == "f",
        )
        chosen = node.conname or self._free_constraint(table, list(columns), "fkey")
        return ConstraintSpec(name=chosen, kind="foreign_key", columns=columns, definition="", foreign=foreign)

    def _alter(self, node: Any, sql: str) -> None:
        if node.objtype != enums.ObjectType.OBJECT_TABLE:
            self.fail("ALTER of something that is not a table", "create it as it shall be")
        table = self.tables[self._known_table(node.relation)]
        kinds = enums.AlterTableType
        for command in node.cmds:
            match command.subtype:
                case kinds.AT_AddConstraint:
                    self._constraints(table, [(command.def_, None)])
                case kinds.AT_AddColumn:
                    pending = self._column(table, command.def_)
                    self._constraints(table, [(item, command.def_.colname) for item in pending])
                case kinds.AT_SetNotNull | kinds.AT_DropNotNull:
                    self._known_columns(table, [command.name])
                    not_null = command.subtype == kinds.AT_SetNotNull
                    table.columns[command.name] = replace(table.columns[command.name], not_null=not_null)
                case kinds.AT_ColumnDefault:
                    self._known_columns(table, [command.name])
                    default = self._expression(command.def_) if command.def_ is not None else None
                    table.columns[command.name] = replace(table.columns[command.name], default=default)
                case _:
                    self.fail(
                        f"ALTER TABLE {table.schema}.{table.name} in a way that a contract has no meaning for",
                        "keep to ADD COLUMN, ADD CONSTRAINT, SET DEFAULT and SET NOT NULL, or write the table as it shall be",
                    )

    def _index(self, node: Any, sql: str) -> None:
        table = self.tables[self._known_table(node.relation)]
        if node.options or node.tableSpace:
            self.fail("an index WITH (storage options) or TABLESPACE", "leave it out")
        elements = tuple(self._element(table, item) for item in node.indexParams)
        include = self._known_columns(table, [item.name for item in node.indexIncludingParams or ()])
        predicate = self._expression(node.whereClause) if node.whereClause is not None else None
        if node.whereClause is not None:
            self._known_columns(table, _columns_of(node.whereClause))
        names = [*(item.name or _expression_name(item.expr) for item in node.indexParams), *include]
        name = node.idxname or self._free(table.schema, table.name, _numbered(names), "idx")
        self._new_relation((table.schema, name))
        method = node.accessMethod or "btree"
        columns = [element.column for element in elements if element.column is not None]
        definition = f"USING {_spell(method)} ({', '.join(element.sql for element in elements)})"
        if include:
            definition += f" INCLUDE ({_list(include)})"
        if node.nulls_not_distinct:
            definition += " NULLS NOT DISTINCT"
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
                line=self.line(),
            )
        )

    def _element(self, table: _Table, node: Any) -> IndexElement:
        if node.opclassopts:
            self.fail("an operator class with options", "leave the options out")
        if node.name:
            self._known_columns(table, [node.name])
        else:
            self._known_columns(table, _columns_of(node.expr))
        descending = node.ordering == enums.SortByDir.SORTBY_DESC
        nulls = node.nulls_ordering
        default = nulls in (None, enums.SortByNulls.SORTBY_NULLS_DEFAULT)
        return IndexElement(
            column=node.name,
            expression=None if node.name else self._expression(node.expr),
            opclass=_dotted(node.opclass) if node.opclass else None,
            collation=_dotted(node.collation) if node.collation else None,
            descending=descending,
            nulls_first=descending if default else nulls == enums.SortByNulls.SORTBY_NULLS_FIRST,
        )

    # Types.

    def _type(self, node: Any) -> _Type:
        if node.setof or node.pct_type:
            self.fail("SETOF or %TYPE", "write the type itself")
        one = self._element_type(node)
        if not node.arrayBounds:
            return one
        if one.enum_labels is not None or one.domain is not None or (one.wire_type in _EXTENSION_WIRE.values() and one.type != one.wire_type):
            self.fail(f"an array of {one.type}: its binary form names a type that the source does not have", "use an array of a built-in type")
        wire = {"bpchar": "bpchar"}.get(one.wire_type, one.wire_type)
        bare = one.type.split("(")[0] if one.wire_type == "bit varying" and one.type.startswith("bit(") else wire
        if bare == "bit":
            self.fail("an array of bit(n)", "use bit varying(n)[]")
        return _Type(type=f"{one.type}[]", wire_type=f"{wire}[]", length=one.length, precision=one.precision, scale=one.scale)

    def _element_type(self, node: Any) -> _Type:
        names = [part.sval for part in node.names]
        schema, name = (names[-2] if len(names) > 1 else None), names[-1]
        modifiers = [self._integer(item) for item in node.typmods or ()]
        own = (schema or self.service, name)
        if own in self.domains:
            spec, base = self.domains[own]
            return replace(base, type=self._own_type(own), domain=spec)
        if own in self.enums:
            return _Type(self._own_type(own), "text", enum_labels=self.enums[own])
        if schema in (None, "pg_catalog"):
            if name in _BUILT_IN:
                return self._built_in(name, modifiers)
            if name in _SAME_NAME:
                return _Type(name, name)
            if name in _SERIAL:
                self.fail(f"the type {name}", "write integer or bigint GENERATED BY DEFAULT AS IDENTITY")
        if name in _EXTENSION_WIRE and name in self.extensions:
            return _Type(self._spelled(node), _EXTENSION_WIRE[name])
        hint = "create it before the table" if name not in _EXTENSION_WIRE else f"write CREATE EXTENSION {name}; before the table"
        self.fail(f"the type {'.'.join(names)} is not known here", f"{hint}, or use a built-in type")
        return None

    def _built_in(self, name: str, modifiers: list[int]) -> _Type:
        plain = _BUILT_IN[name]
        match name:
            case "varchar" | "bpchar":
                wire = "bpchar" if name == "bpchar" else plain
                length = modifiers[0] if modifiers else (1 if name == "bpchar" else None)
                return _Type(f"{plain}({length})" if length else plain, wire, length=length)
            case "bit" | "varbit":
                length = modifiers[0] if modifiers else (1 if name == "bit" else None)
                return _Type(f"{plain}({length})" if length else plain, "bit varying", length=length)
            case "numeric":
                if not modifiers:
                    return _Type(plain, plain)
                precision, scale = modifiers[0], modifiers[1] if len(modifiers) > 1 else 0
                return _Type(f"{plain}({precision},{scale})", plain, precision=precision, scale=scale)
            case "interval":
                if len(modifiers) == 2 and modifiers[0] == 0x7FFF:
                    return _Type(f"{plain}({modifiers[1]})", plain, precision=modifiers[1])
                if modifiers:
                    self.fail("interval with fields", "write interval, or interval(precision)")
                return _Type(plain, plain)
            case "timestamp" | "timestamptz" | "time" | "timetz":
                if not modifiers:
                    return _Type(plain, plain)
                first, rest = plain.split(" ", 1)
                return _Type(f"{first}({modifiers[0]}) {rest}", plain, precision=modifiers[0])
        return _Type(plain, plain)

    def _integer(self, node: Any) -> int:
        value = node
        negative = False
        if isinstance(node, ast.A_Expr) and node.lexpr is None:
            negative, value = True, node.rexpr
        if isinstance(value, ast.A_Const) and isinstance(value.val, ast.Integer):
            number = int(value.val.ival or 0)
            return -number if negative else number
        self.fail("a type modifier that is no number", "write a number")
        return None

    def _own_type(self, name: tuple[str, str]) -> str:
        return f"{_spell(name[0])}.{_spell(name[1])}"

    def _spelled(self, node: Any) -> str:
        """Return a type as an argument list or a column of an extension's type names it."""
        names = [part.sval for part in node.names]
        if names[0] == "pg_catalog" or len(names) == 1:
            text = _BUILT_IN.get(names[-1], names[-1] if names[-1] in _SAME_NAME else _spell(names[-1]))
        else:
            text = ".".join(_spell(name) for name in names)
        return text + ("[]" if node.arrayBounds else "")

    # Names and places.

    def _type_name(self, node: Any) -> tuple[str, str]:
        names = [part.sval for part in node]
        schema = names[-2] if len(names) > 1 else self.service
        self._known_schema(schema)
        name = (schema, names[-1])
        if name in self.enums or name in self.domains:
            self.fail(f"the type {schema}.{names[-1]} is created twice", "keep one of them")
        return name

    def _relation(self, node: Any) -> tuple[str, str]:
        if node.catalogname:
            self.fail("a name with a database in it", "write schema.name")
        schema = node.schemaname or self.service
        self._known_schema(schema)
        return (schema, node.relname)

    def _known_schema(self, schema: str) -> None:
        if schema not in self.schemas:
            known = ", ".join(sorted(self.schemas))
            self.fail(f"schema {schema} is not created here", f"write CREATE SCHEMA {schema}; before, or use one of: {known}")

    def _known_table(self, node: Any) -> tuple[str, str]:
        name = self._relation(node)
        return self._known_name(name)

    def _known_name(self, parts: Sequence[str]) -> tuple[str, str]:
        name = (parts[-2] if len(parts) > 1 else self.service, parts[-1])
        if name not in self.tables:
            known = ", ".join(sorted(".".join(table) for table in self.tables)) or "none yet"
            self.fail(f"there is no table {'.'.join(name)}", f"create it before; known here: {known}")
        return name

    def _known_columns(self, table: _Table, names: Sequence[str]) -> tuple[str, ...]:
        for name in names:
            if name not in table.columns:
                self.fail(f"{table.schema}.{table.name} has no column {name}", f"its columns are: {', '.join(table.columns)}")
        return tuple(names)

    def _new_relation(self, name: tuple[str, str]) -> None:
        if name in self.relations:
            self.fail(f"the name {'.'.join(name)} is used twice", "rename one of them (tables, indexes and keys share one set of names)")
        self.relations.add(name)

    def _free(self, schema: str, table: str, columns: Sequence[str] | None, label: str) -> str:
        """Return the name that PostgreSQL would choose for an index or a key: the first that is free."""
        return self._choose(table, columns, label, lambda name: (schema, name) in self.relations)

    def _free_constraint(self, table: _Table, columns: Sequence[str], label: str) -> str:
        return self._choose(table.name, columns, label, lambda name: any(item.name == name for item in table.constraints))

    def _choose(self, table: str, columns: Sequence[str] | None, label: str, taken: Callable[[str], bool]) -> str:
        middle = "_".join(columns or ()) or None
        if middle is not None:
            middle = middle.encode()[:63].decode(errors="ignore")
        number = 0
        while True:
            name = _object_name(table, middle, f"{label}{number or ''}")
            if not taken(name):
                return name
            number += 1

    def _expression(self, node: Any) -> str:
        try:
            return deparse(node)
        except (ValueError, pglast.Error) as exc:
            self.fail("an expression that cannot be written back faithfully", f"write it in a simpler way ({exc})")

    def line(self) -> int:
        """Return the line of the present place, counted from 1, past comments and blanks before a statement."""
        rest = self.text[self.offset :]
        skipped = re.match(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/)*", rest, re.DOTALL)
        return self.text.count("\n", 0, self.offset + (skipped.end() if skipped else 0)) + 1

    def fail(self, fault: str, remedy: str) -> NoReturn:
        raise MigrationError(f"{self.path}:{self.line()}: {fault}; {remedy}")


def _foreign_key_definition(constraint: ConstraintSpec, foreign: ForeignKey) -> str:
    words = f"FOREIGN KEY ({_list(constraint.columns)}) REFERENCES {qualified(foreign.schema, foreign.table)} ({_list(foreign.columns)})"
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


def _says_not_enforced(text: str, node: Any) -> bool:
    start = node.location if node.location is not None and node.location >= 0 else 0
    return re.search(r"\bNOT\s+ENFORCED\b", text[start:].split(";")[0], re.IGNORECASE) is not None


def _strings(nodes: Any) -> list[str]:
    return [node.sval for node in nodes or ()]


def _dotted(nodes: Any) -> str:
    return ".".join(_spell(name) if name != "C" else '"C"' for name in _strings(nodes))


def _list(names: Sequence[str]) -> str:
    return ", ".join(ident(name) for name in names)


def _spell(name: str) -> str:
    """Return a name as quote_identifier() spells it: quoted only where it must be."""
    keywords = (RESERVED_KEYWORDS, COL_NAME_KEYWORDS, TYPE_FUNC_NAME_KEYWORDS)
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name) and not any(name in words for words in keywords):
        return name
    return ident(name)


def _columns_of(node: Any) -> list[str]:
    """Return the columns that an expression names, once each, in order."""
    found: list[str] = []

    class Columns(Visitor):
        def visit_ColumnRef(self, ancestors: Any, ref: Any) -> None:
            last = ref.fields[-1]
            if isinstance(last, ast.String) and last.sval is not None and last.sval not in found:
                found.append(last.sval)

    Columns()(node)
    return found


def _expression_name(node: Any) -> str:
    """Return the name that PostgreSQL gives to an index key that is an expression (FigureIndexColname)."""
    kind = type(node).__name__
    if kind == "FuncCall":
        return str(node.funcname[-1].sval)
    if kind == "TypeCast":
        inner = _expression_name(node.arg)
        return inner if inner != "expr" else str(node.typeName.names[-1].sval)
    if kind == "ColumnRef":
        return str(node.fields[-1].sval)
    return "coalesce" if kind == "CoalesceExpr" else "expr"


def _numbered(names: Sequence[str]) -> list[str]:
    """Return index column names made distinct, as ChooseIndexColumnNames does."""
    result: list[str] = []
    for name in names:
        chosen, number = name, 0
        while chosen in result:
            number += 1
            chosen = f"{name}{number}"
        result.append(chosen)
    return result


def _object_name(first: str, second: str | None, label: str) -> str:
    """Return `first_second_label`, the longer of the two cut until it fits (makeObjectName)."""
    one, two = first.encode(), second.encode() if second is not None else b""
    overhead = len(label) + 1 + (1 if second is not None else 0)
    while len(one) + len(two) > 63 - overhead:
        if len(one) > len(two):
            one = one[:-1]
        else:
            two = two[:-1]
    parts = [one.decode(errors="ignore")]
    if second is not None:
        parts.append(two.decode(errors="ignore"))
    return "_".join([*parts, label])
