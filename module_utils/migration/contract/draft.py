# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A contract while its SQL is being read: what is known by now, and where the reading stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import MigrationError
from ..mistakes import Consequence, Mistakes
from .default_names import choose
from .model import ColumnSpec, ConstraintSpec, DomainSpec, Ignored, IndexSpec, Statement
from .parser import pglast
from .trees import deparse


@dataclass
class Place:
    """Where the reading stands; every refusal names it."""

    path: str = ""
    text: str = ""
    offset: int = 0
    base: int = 0

    def begin(self, base: int, location: int) -> None:
        """Go to a statement of a text that begins at `base`; nodes count from there."""
        self.base, self.offset = base, base + location

    def move(self, node: Any) -> None:
        """Go to a node, if it knows where it stands."""
        if node.location is not None and node.location >= 0:
            self.offset = self.base + node.location

    @property
    def line(self) -> int:
        """Return the line, counted from 1, past comments and blanks before a statement."""
        rest = self.text[self.offset :]
        skipped = re.match(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/)*", rest, re.DOTALL)
        return self.text.count("\n", 0, self.offset + (skipped.end() if skipped else 0)) + 1


@dataclass(frozen=True)
class Type:
    """A column's type: how it is written, what goes over the wire, and what it limits."""

    type: str
    wire_type: str
    length: int | None = None
    precision: int | None = None
    scale: int | None = None
    enum_labels: tuple[str, ...] | None = None
    domain: DomainSpec | None = None


@dataclass
class DraftTable:
    """A table while its SQL is being read."""

    schema: str
    name: str
    path: str
    line: int
    columns: dict[str, ColumnSpec] = field(default_factory=dict)
    constraints: list[ConstraintSpec] = field(default_factory=list)
    indexes: list[IndexSpec] = field(default_factory=list)


@dataclass
class Draft:
    """What the SQL has created so far, and the place where it is being read."""

    service: str
    place: Place = field(default_factory=Place)
    schemas: set[str] = field(default_factory=set)
    tables: dict[tuple[str, str], DraftTable] = field(default_factory=dict)
    enums: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    domains: dict[tuple[str, str], tuple[DomainSpec, Type]] = field(default_factory=dict)
    extensions: dict[str, str | None] = field(default_factory=dict)  # the schema that the SQL names
    relations: set[tuple[str, str]] = field(default_factory=set)
    mistakes: Mistakes = field(default_factory=Mistakes)
    preamble: list[Statement] = field(default_factory=list)
    epilogue: list[Statement] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    left_out: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.schemas |= {self.service, "public"}

    def refusal(self, fault: str, remedy: str) -> MigrationError:
        """Return the error that names the place, the fault and what would be right."""
        return MigrationError(f"{self.place.path}:{self.place.line}: {fault}; {remedy}")

    def ignore(self, what: str, reason: str, name: str = "") -> None:
        """Note that a statement is not applied, and why."""
        self.ignored.append(Ignored(what, reason, name, self.place.path, self.place.line))

    def ignore_session(self) -> None:
        """Note a statement that only concerns the session which restores a dump."""
        what, reason = "settings and psql commands", "they only concern the session that restores a dump"
        self.ignored.append(Ignored(what, reason, "", self.place.path, self.place.line, session=True))

    def unread(self, *names: str) -> None:
        """Note that a table, or a column of one, has a mistake: what names it later has none for that."""
        self.mistakes.unread.add(".".join((self.service, *names)))

    def _lacking(self, name: str, fault: str, remedy: str) -> MigrationError:
        whole = {self.service, f"{self.service}.{name}"}
        return Consequence(f"{self.service}: {fault}") if whole & self.mistakes.unread else self.refusal(fault, remedy)

    def before(self, kind: str, name: Sequence[str], sql: str, about: Sequence[str] = ()) -> None:
        """Keep a statement that runs before the tables are created."""
        self.preamble.append(self._statement(kind, name, sql, about))

    def after(self, kind: str, name: Sequence[str], sql: str, about: Sequence[str] = ()) -> None:
        """Keep a statement that runs after the load."""
        self.epilogue.append(self._statement(kind, name, sql, about))

    def _statement(self, kind: str, name: Sequence[str], sql: str, about: Sequence[str]) -> Statement:
        return Statement(kind, tuple(name), sql, self.place.path, self.place.line, tuple(about))

    def relation(self, node: Any) -> tuple[str, str]:
        """Return schema and name of what a statement names."""
        if node.catalogname:
            raise self.refusal("a name with a database in it", "write schema.name")
        schema = node.schemaname or self.service
        self.known_schema(schema)
        return (schema, node.relname)

    def new_type_name(self, node: Any) -> tuple[str, str]:
        """Return schema and name of a type that is not there yet."""
        names = [part.sval for part in node]
        schema = names[-2] if len(names) > 1 else self.service
        self.known_schema(schema)
        name = (schema, names[-1])
        if name in self.enums or name in self.domains:
            raise self.refusal(f"the type {schema}.{names[-1]} is created twice", "keep one of them")
        return name

    def known_schema(self, schema: str) -> None:
        """Refuse a schema that was not created before."""
        if schema not in self.schemas:
            known = ", ".join(sorted(self.schemas))
            raise self._lacking("", f"schema {schema} is not created here", f"write CREATE SCHEMA {schema}; before, or use one of: {known}")

    def known_table(self, node: Any) -> tuple[str, str]:
        """Return schema and name of a table that was created before."""
        return self.known_name(self.relation(node))

    def known_name(self, parts: Sequence[str]) -> tuple[str, str]:
        """Return the same for a name in its parts."""
        name = (parts[-2] if len(parts) > 1 else self.service, parts[-1])
        if name in self.left_out:
            raise Consequence(f"{'.'.join(name)} is not created")
        if name not in self.tables:
            known = ", ".join(sorted(".".join(table) for table in self.tables)) or "none yet"
            raise self._lacking(name[1], f"there is no table {'.'.join(name)}", f"create it before; known here: {known}")
        return name

    def known_columns(self, table: DraftTable, names: Sequence[str]) -> tuple[str, ...]:
        """Return the names, all of which the table has."""
        for name in names:
            if name not in table.columns:
                fault = f"{table.schema}.{table.name} has no column {name}"
                raise self._lacking(f"{table.name}.{name}", fault, f"its columns are: {', '.join(table.columns)}")
        return tuple(names)

    def new_relation(self, name: tuple[str, str]) -> None:
        """Take a name that no table, index, key, view or sequence has."""
        if name in self.relations:
            raise self.refusal(f"the name {'.'.join(name)} is used twice", "rename one of them (tables, indexes and keys share one set of names)")
        self.relations.add(name)

    def free_relation(self, schema: str, table: str, columns: Sequence[str] | None, label: str) -> str:
        """Return the name that PostgreSQL would choose for an index or a key: the first that is free."""
        return choose(table, columns, label, lambda name: (schema, name) in self.relations)

    def free_constraint(self, table: DraftTable, columns: Sequence[str], label: str) -> str:
        """Return the name that PostgreSQL would choose for a CHECK or a foreign key of the table."""
        return choose(table.name, columns, label, lambda name: any(item.name == name for item in table.constraints))

    def expression(self, node: Any) -> str:
        """Return an expression as SQL that means the same."""
        try:
            return deparse(node)
        except (ValueError, pglast.Error) as exc:
            raise self.refusal("an expression that cannot be written back faithfully", f"write it in a simpler way ({exc})") from exc
