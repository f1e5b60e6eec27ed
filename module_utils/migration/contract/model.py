# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract: what a service's own SQL says its tables are.

The model is made by parse.py on the controller and travels to runners as JSON-safe dictionaries, so that nothing
but the controller needs a parser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..postgres.quote import ident, qualified

KINDS = ("primary_key", "unique", "exclude", "check", "foreign_key")


@dataclass(frozen=True)
class DomainSpec:
    """A domain of the contract: its base type (with modifier), and what it demands of VALUE."""

    schema: str
    name: str
    base: str
    not_null: bool = False
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ColumnSpec:
    """A column as the contract has it.

    `type` is written as format_type() writes it. `wire_type` is the type, without a modifier, whose binary form
    the column's receive function accepts: what a projection casts to. It is built in, or an extension's with its schema.
    `length` counts characters (or bits); `precision` and `scale` are those of numeric, `precision` alone the digits of a
    second in a time type. For a domain they are its base type's. `default` and `generated` are SQL expressions; `identity` is `always` or `by default`.
    """

    name: str
    type: str
    wire_type: str
    not_null: bool = False
    default: str | None = None
    length: int | None = None
    precision: int | None = None
    scale: int | None = None
    enum_labels: tuple[str, ...] | None = None
    domain: DomainSpec | None = None
    generated: str | None = None
    identity: str | None = None
    collation: str | None = None
    line: int = 0

    @property
    def server_type(self) -> str | None:
        """Return the type without its modifier when only the server knows it (an extension's), else None."""
        return self.type.partition("(")[0] if "." in self.wire_type else None

    @property
    def definition(self) -> str:
        """Return the column's line in CREATE TABLE; a domain or enum is named with its schema in `type`."""
        parts = [ident(self.name), self.type]
        if self.collation:
            parts.append(f"COLLATE {self.collation}")
        if self.default is not None:
            parts.append(f"DEFAULT {self.default}")
        if self.generated is not None:
            parts.append(f"GENERATED ALWAYS AS ({self.generated}) STORED")
        if self.identity is not None:
            parts.append(f"GENERATED {self.identity.upper()} AS IDENTITY")
        if self.not_null:
            parts.append("NOT NULL")
        return " ".join(parts)


@dataclass(frozen=True)
class ForeignKey:
    """The far side of a foreign key and its rules; an action is written as in SQL (`NO ACTION`, `CASCADE`, ...)."""

    schema: str
    table: str
    columns: tuple[str, ...]
    on_update: str = "NO ACTION"
    on_delete: str = "NO ACTION"
    full_match: bool = False


@dataclass(frozen=True)
class ConstraintSpec:
    """A constraint; `definition` is what stands after CONSTRAINT <name>, `expression` is that of a CHECK."""

    name: str
    kind: str
    columns: tuple[str, ...]
    definition: str
    foreign: ForeignKey | None = None
    expression: str | None = None
    include: tuple[str, ...] = ()
    nulls_not_distinct: bool = False
    deferrable: bool = False
    deferred: bool = False
    line: int = 0

    @property
    def references(self) -> tuple[str, str, tuple[str, ...]] | None:
        """Return schema, table and columns that a foreign key refers to."""
        return (self.foreign.schema, self.foreign.table, self.foreign.columns) if self.foreign else None


@dataclass(frozen=True)
class IndexElement:
    """One key of an index: a column's name or an expression, and how it is ordered."""

    column: str | None
    expression: str | None = None
    opclass: str | None = None
    collation: str | None = None
    descending: bool = False
    nulls_first: bool = False

    @property
    def sql(self) -> str:
        """Return the element as CREATE INDEX takes it."""
        parts = [ident(self.column) if self.column is not None else f"({self.expression})"]
        if self.collation:
            parts.append(f"COLLATE {self.collation}")
        if self.opclass:
            parts.append(self.opclass)
        if self.descending:
            parts.append("DESC")
        if self.nulls_first != self.descending:
            parts.append("NULLS FIRST" if self.nulls_first else "NULLS LAST")
        return " ".join(parts)


@dataclass(frozen=True)
class IndexSpec:
    """An index that backs no constraint; `columns` are its plain key columns, () when a key is an expression."""

    name: str
    columns: tuple[str, ...]
    unique: bool
    predicate: str | None
    definition: str
    elements: tuple[IndexElement, ...] = ()
    method: str = "btree"
    include: tuple[str, ...] = ()
    nulls_not_distinct: bool = False
    options: str | None = None
    line: int = 0

    def create(self, schema: str, table: str, *, concurrently: bool = False) -> str:
        """Return the statement that makes the index."""
        words = f"CREATE {'UNIQUE ' if self.unique else ''}INDEX {'CONCURRENTLY ' if concurrently else ''}"
        return f"{words}{ident(self.name)} ON {qualified(schema, table)} {self.definition}"


@dataclass(frozen=True)
class TableSpec:
    """A table of a service; `path` and `line` say where its SQL stands."""

    service: str
    schema: str
    name: str
    columns: tuple[ColumnSpec, ...]
    constraints: tuple[ConstraintSpec, ...] = ()
    indexes: tuple[IndexSpec, ...] = ()
    path: str = ""
    line: int = 0

    @property
    def key(self) -> str:
        """Return `schema.name`, for messages and as a key."""
        return f"{self.schema}.{self.name}"

    @property
    def qualified(self) -> str:
        """Return the quoted name."""
        return qualified(self.schema, self.name)

    @property
    def primary_key(self) -> ConstraintSpec | None:
        """Return the primary key, or None."""
        return next((constraint for constraint in self.constraints if constraint.kind == "primary_key"), None)

    def column(self, name: str) -> ColumnSpec | None:
        """Return a column by name, or None."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True)
class Statement:
    """DDL that is neither a table nor its keys; `kind` and `object` (name parts) say what it makes.

    `about` holds what the catalog is compared with: an enum's labels, a function's source, a comment's text.
    """

    kind: str
    object: tuple[str, ...]
    sql: str
    path: str = ""
    line: int = 0
    about: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ignored:
    """A statement of the schema SQL that is not applied: what it is, why, and for a relation its name.

    `session` marks what only concerned the session that would restore a dump.
    """

    what: str
    reason: str
    name: str = ""
    path: str = ""
    line: int = 0
    session: bool = False


@dataclass(frozen=True)
class Contract:
    """All that a service's SQL files say: before the tables, the tables, after them."""

    service: str
    tables: tuple[TableSpec, ...]
    preamble: tuple[Statement, ...] = ()
    epilogue: tuple[Statement, ...] = ()
    domains: tuple[DomainSpec, ...] = ()
    ignored: tuple[Ignored, ...] = ()

    def ignored_lines(self, *, session: bool = True) -> list[str]:
        """Return what is not applied, one line for each kind in each file; without `session` what matters to the service."""
        kinds: dict[tuple[str, str, str], list[int]] = {}
        for item in self.ignored:
            if item.session and not session:
                continue
            kinds.setdefault((item.path, item.what, item.reason), []).append(item.line)
        return [
            f"{path}:{min(lines)}: ignored, not applied: {what}{f' ({len(lines)} times)' if len(lines) > 1 else ''}: {reason}"
            for (path, what, reason), lines in kinds.items()
        ]

    def table(self, name: str, schema: str | None = None) -> TableSpec | None:
        """Return a table by name, in the service's own schema unless another is given, or None."""
        wanted = (schema or self.service, name)
        return next((table for table in self.tables if (table.schema, table.name) == wanted), None)

    def to_dict(self, *, positions: bool = True) -> dict[str, Any]:
        """Return the contract as JSON-safe data; without `positions` it is the definition alone, to be digested."""
        data: dict[str, Any] = _plain(asdict(self))
        return data if positions else _without_positions(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Contract:
        """Return the contract that to_dict() gave."""
        return cls(
            service=data["service"],
            tables=tuple(_table(item) for item in data["tables"]),
            preamble=tuple(_statement(item) for item in data["preamble"]),
            epilogue=tuple(_statement(item) for item in data["epilogue"]),
            domains=tuple(_domain(item) for item in data["domains"]),
            ignored=tuple(Ignored(**item) for item in data.get("ignored", ())),
        )


def only(contract: Contract, tables: tuple[str, ...]) -> Contract:
    """Return the contract with those tables only (`schema.name` each), and nothing around them."""
    return replace(contract, tables=tuple(table for table in contract.tables if table.key in tables), preamble=(), epilogue=())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _without_positions(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_positions(item) for name, item in value.items() if name not in ("path", "line", "ignored")}
    if isinstance(value, list):
        return [_without_positions(item) for item in value]
    return value


def _names(value: Any) -> tuple[str, ...]:
    return tuple(value or ())


def _domain(data: Mapping[str, Any]) -> DomainSpec:
    return DomainSpec(**{**data, "checks": _names(data["checks"])})


def _column(data: Mapping[str, Any]) -> ColumnSpec:
    labels = data["enum_labels"]
    domain = data["domain"]
    return ColumnSpec(
        **{
            **data,
            "enum_labels": None if labels is None else tuple(labels),
            "domain": None if domain is None else _domain(domain),
        }
    )


def _constraint(data: Mapping[str, Any]) -> ConstraintSpec:
    foreign = data["foreign"]
    return ConstraintSpec(
        **{
            **data,
            "columns": _names(data["columns"]),
            "include": _names(data["include"]),
            "foreign": None if foreign is None else ForeignKey(**{**foreign, "columns": _names(foreign["columns"])}),
        }
    )


def _index(data: Mapping[str, Any]) -> IndexSpec:
    return IndexSpec(
        **{
            **data,
            "columns": _names(data["columns"]),
            "include": _names(data["include"]),
            "elements": tuple(IndexElement(**item) for item in data["elements"]),
        }
    )


def _table(data: Mapping[str, Any]) -> TableSpec:
    return TableSpec(
        **{
            **data,
            "columns": tuple(_column(item) for item in data["columns"]),
            "constraints": tuple(_constraint(item) for item in data["constraints"]),
            "indexes": tuple(_index(item) for item in data["indexes"]),
        }
    )


def _statement(data: Mapping[str, Any]) -> Statement:
    return Statement(**{**data, "object": _names(data["object"]), "about": _names(data["about"])})
