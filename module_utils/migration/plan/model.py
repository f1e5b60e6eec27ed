# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: what every phase works from. Pure values and the SQL they stand for; needs neither a parser nor a driver.

A Part is one projection: select() gives the one SELECT on the source that yields the target's rows exactly. Transfer
copies it, validation digests it, repair and catch-up run it for some keys, check mode explains it. The namespace and the
plan's timestamp are not in it: they are startup settings of the connection (settings()), so statements can be logged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..contract.data import names_in, without_places
from ..postgres.quote import ident, literal, qualified
from . import ids
from .accounts import AccountTable, account_table
from .embedded_ids import Embedded
from .predicates import Predicate

PLAN_TIME_SETTING = "migration.plan_time"
PLAN_TIME_SQL = f"(SELECT current_setting({literal(PLAN_TIME_SETTING)})::timestamp)"
BOOKKEEPING = "migration"


@dataclass(frozen=True)
class Touch:
    """A change in a source table's `column` value touches the result's rows with the same `result` value; both `*`: all."""

    table: str
    column: str
    result: str


@dataclass(frozen=True)
class Cell:
    """One target column: its name, the source SQL of its value (over the alias src), its type on the wire.

    `reads` are the source columns the value is made of; `entity` is the id map it goes through, `key` then the SQL of the
    source key. A cell whose `type` is bytea while the target's is uuid holds an id; `kept` is one that the source has already. `embedded`
    are ids inside another value.
    """

    name: str
    sql: str
    type: str
    is_id: bool = False
    entity: str | None = None
    key: str | None = None
    reads: tuple[str, ...] = ()
    constant: bool = False
    place: str = ""
    kept: bool = False
    embedded: tuple[Embedded, ...] = ()

    @property
    def refers_to(self) -> tuple[str, ...]:
        """Return the entities whose rows the value names."""
        return (*((self.entity,) if self.is_id and self.key is not None and self.entity else ()), *(item.entity for item in self.embedded))


@dataclass(frozen=True)
class Lookup:
    """What a part reads of another part's source: the row whose key is `child` (SQL over src), shown as the column `name` of src.

    It shows the other row's kept id, or that there is such a row where `home` keeps none; with `carried` only rows that are not quarantined,
    which a setting of the connection lists (quarantine_setting()). Of `embedded` ids it shows a jsonb object, from each to its kept id.
    """

    name: str
    child: str
    home: Part
    carried: bool = False
    embedded: Embedded | None = None

    def joined(self, schema: str) -> str:
        """Return the join; its names are none that a mapping's SQL can mean."""
        key = f"src.{ident(self.home.key[0])}"
        shown = "true" if self.home.keep is None else f"(src.{ident(self.home.keep)})::uuid"
        if self.embedded is not None:
            return f" LEFT JOIN LATERAL ({self.embedded.looked_up(self.name, key, shown, self.home.source(schema))}) AS {ident(self.name)} ON true"
        # An id of other than an integer stands for the key's text.
        whole = self.home.key_types[0] == "integer"
        on = f"{self._key} = ({self.child})::int8" if whole else f'{self._key}::text COLLATE "C" = ({self.child})::text COLLATE "C"'
        source = self.home.source(schema)
        if self.carried:
            listed = f"unnest((SELECT current_setting({literal(quarantine_setting(self.home.entity))})::text[]))"
            source += f" WHERE NOT EXISTS (SELECT FROM {listed} AS quarantined (key) WHERE quarantined.key = {self.home.key_text})"
        return f" LEFT JOIN (SELECT {key} AS {self._key}, {shown} AS {ident(self.name)} FROM {source}) AS {ident(self.name)} ON {on}"

    @property
    def _key(self) -> str:
        return ident(f"{self.name} key")


@dataclass(frozen=True)
class Read:
    """A source column that a part reads, with the tables that may own it."""

    tables: tuple[str, ...]
    column: str


@dataclass(frozen=True)
class Policy:
    """The operator's choice for rows that break a rule of a column."""

    column: str
    rule: str
    policy: str
    placeholder: str | None
    place: str


@dataclass(frozen=True)
class Part:
    """One source of a target; `identity` are the columns of the target that tell its rows apart, `keep` the source's column that is their id.

    `where` (SQL over the row) selects rows of a table; what it leaves out is in no source(), so nothing may refer to it.
    """

    name: str
    path: str
    table: str | None
    query: str | None
    touches: tuple[Touch, ...]
    key: tuple[str, ...]
    key_types: tuple[str, ...]
    chunk_by: str
    entity: str
    minted: bool
    cells: tuple[Cell, ...]
    tables: tuple[str, ...]
    reads: tuple[Read, ...]
    stars: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    parents: tuple[tuple[str, str], ...]
    counted: tuple[tuple[str, str], ...] = ()
    origins: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    identity: tuple[str, ...] = ()
    keep: str | None = None
    lookups: tuple[Lookup, ...] = ()
    where: str | None = None
    cut_by_default: bool = False
    qualified: tuple[tuple[str, str], ...] = ()  # (schema, table) where the mapping names the schema itself

    @property
    def whole(self) -> bool:
        """Tell whether every row of a table is in the part."""
        return self.table is not None and self.where is None

    def origins_of(self, column: str) -> tuple[tuple[str, str], ...]:
        """Return the (table, column) pairs whose values, and no others, a column of the source shows; none when it is computed."""
        return ((self.table, column),) if self.table is not None else dict(self.origins).get(column, ())

    def source(self, schema: str, predicate: Predicate | None = None) -> str:
        """Return the FROM item (alias src) with the rows whose `chunk_by` meets the predicate.

        In a query the predicate also goes to each table whose refresh column stands for chunk_by: a common table
        expression of the table's name shadows the table, and PostgreSQL inlines it.
        """
        return self.source_where(schema, self.chunk_by, predicate)

    def source_where(self, schema: str, column: str, predicate: Predicate | None) -> str:
        """Return the FROM item (alias src) with the rows whose result `column` meets the predicate, WHERE included."""
        return "".join(self.apart(schema, column, predicate))

    def apart(self, schema: str, column: str, predicate: Predicate | None) -> tuple[str, str]:
        """Return the same as the FROM item and its WHERE, for those who join something to the item."""
        where = f" WHERE {predicate('src.' + ident(column))}" if predicate else ""
        item = self._item(schema, column, predicate)
        if not self.lookups:
            return item, where
        shown = ", ".join(f"{ident(lookup.name)}.{ident(lookup.name)}" for lookup in self.lookups)
        joins = "".join(lookup.joined(schema) for lookup in self.lookups)
        return f"(SELECT src.*, {shown} FROM {item}{joins}{where}) AS src", " WHERE true" if predicate else ""

    def _item(self, schema: str, column: str, predicate: Predicate | None) -> str:
        if self.query is None:
            table = f"{qualified(schema, str(self.table))} AS src"
            return table if self.where is None else f"(SELECT * FROM {table} WHERE (\n{self.where}\n)) AS src"
        shadows = [
            f"{ident(touch.table)} AS NOT MATERIALIZED (SELECT * FROM {qualified(schema, touch.table)} WHERE {predicate(ident(touch.column))})"
            for touch in self.touches
            if predicate and touch.result == column
        ]
        inner = f"(\n{self.query.strip().rstrip(';')}\n)"
        body = f"(WITH {', '.join(shadows)} SELECT * FROM {inner} AS result)" if shadows else inner
        return f"{body} AS src"

    def select(self, schema: str, predicate: Predicate | None = None) -> str:
        """Return the projection: the target's columns in order."""
        columns = [f"{cell.sql} AS {ident(cell.name)}" for cell in self.cells]
        return f"SELECT {', '.join(columns)} FROM {self.source(schema, predicate)}"

    def select_columns(self, expressions: Sequence[str], schema: str, predicate: Predicate | None = None) -> str:
        """Return a SELECT of any expressions over src from the part's source."""
        return f"SELECT {', '.join(expressions)} FROM {self.source(schema, predicate)}"

    @property
    def identity_cells(self) -> tuple[Cell, ...]:
        """Return the cells that tell the target's rows apart."""
        return tuple(next(cell for cell in self.cells if cell.name == name) for name in self.identity)

    @property
    def id_sql(self) -> str:
        """Return the SQL of the row's own id (16 bytes), or of NULL where the target's rows have none."""
        own = self.identity_cells
        return own[0].sql if len(own) == 1 and own[0].is_id else "NULL::bytea"

    @property
    def every_table(self) -> tuple[str, ...]:
        """Return all tables that the projection reads, those that it looks ids up in included."""
        return tuple(dict.fromkeys([*self.tables, *(name for lookup in self.lookups for name in lookup.home.tables)]))

    @property
    def key_text(self) -> str:
        """Return the SQL (over src) of the source key as one text: the column, or a JSON array of several."""
        if len(self.key) == 1:
            return f"(src.{ident(self.key[0])})::text"
        return f"jsonb_build_array({', '.join('src.' + ident(column) for column in self.key)})::text"

    @property
    def label(self) -> str:
        """Return how messages name the part's file (and part)."""
        return f"{self.path} ({self.name})" if self.name else self.path


@dataclass(frozen=True)
class Target:
    """One target table with its parts; `bookkeeping` marks the tables that the migration itself keeps.

    `identity` are the columns that tell its rows apart: the primary key (row_id.py has what follows from it).
    """

    service: str
    schema: str
    table: str
    identity: tuple[str, ...]
    columns: tuple[str, ...]
    column_types: tuple[str, ...]
    parts: tuple[Part, ...]
    policies: tuple[Policy, ...] = ()
    bookkeeping: bool = False

    @property
    def name(self) -> str:
        """Return service.table, the name in reports."""
        return f"{self.service}.{self.table}" if not self.bookkeeping else f"{self.service}.{self.schema}.{self.table}"

    @property
    def qualified(self) -> str:
        """Return the quoted schema-qualified name."""
        return qualified(self.schema, self.table)


@dataclass(frozen=True)
class Entity:
    """What mints an id that others refer to: where its id map is and which part mints it; `keep` is the source's column that has it already."""

    name: str
    service: str
    target: str
    part: str
    source: str
    key: str
    keep: str | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that moves; `contracts` are the parsed schemas (contract.Contract.to_dict()) by service."""

    targets: tuple[Target, ...]
    entities: tuple[Entity, ...]
    contracts: tuple[tuple[str, Mapping[str, Any]], ...]
    fingerprint: str
    accounts: tuple[AccountTable, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON can carry it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that to_dict() wrote."""
        return cls(
            targets=tuple(_target(item) for item in data["targets"]),
            entities=tuple(Entity(**item) for item in data["entities"]),
            contracts=tuple((name, contract) for name, contract in data["contracts"]),
            fingerprint=data["fingerprint"],
            accounts=tuple(account_table(item) for item in data.get("accounts", ())),
        )

    def names(self) -> set[str]:
        """Return the names of tables, columns, constraints and indexes on both sides."""
        made = {name for _, contract in self.contracts for name in names_in(contract)}
        read = {name for target in self.targets for part in target.parts for name in (*part.tables, *(item.column for item in part.reads))}
        own = {name for target in self.targets for name in (target.service, target.schema, target.table, *target.columns)}
        return made | read | own

    @property
    def digest(self) -> str:
        """Return the sha256 of what the plan does: compiled SQL, namespace fingerprint, target definitions; no code, no paths."""
        essence = {
            "select": [
                [target.name, part.name, part.entity, part.select("source"), part.key_text, part.chunk_by]
                for target in self.targets
                for part in target.parts
            ],
            "policies": [[target.name, policy.column, policy.rule, policy.policy, policy.placeholder] for target in self.targets for policy in target.policies],
            "contracts": [[name, without_places(contract)] for name, contract in self.contracts],
            "fingerprint": self.fingerprint,
        }
        return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()

    @property
    def entity_names(self) -> tuple[str, ...]:
        """Return every entity, those of leaf rows included."""
        return tuple(dict.fromkeys(part.entity for target in self.targets for part in target.parts))

    def settings(self, namespace: str, plan_time: str) -> dict[str, str]:
        """Return the startup settings that a source connection needs to run the projections."""
        quarantined = {quarantine_setting(name): "{}" for name in self.needed_quarantine}
        return {**ids.settings(namespace, self.entity_names), PLAN_TIME_SETTING: plan_time, **quarantined}

    @property
    def needed_quarantine(self) -> tuple[str, ...]:
        """Return the entities whose quarantined keys a projection must know, because what refers to them is carried with NULL."""
        lookups = (lookup for target in self.targets for part in target.parts for lookup in part.lookups if lookup.carried)
        return tuple(dict.fromkeys(lookup.home.entity for lookup in lookups))

    def of(self, service: str) -> tuple[Target, ...]:
        """Return the targets in one database."""
        return tuple(target for target in self.targets if target.service == service)

    def rows_of(self, table: str, key: str, schema: str) -> str:
        """Return the FROM item (alias src) with the keys of a table's rows: only those that are carried, where each mapping of it has a `where`."""
        parts = [part for target in self.targets for part in target.parts if table in part.tables]
        if not parts or any(part.where is None for part in parts):
            return f"{qualified(schema, table)} AS src"
        selects = dict.fromkeys(part.select_columns([f"src.{ident(key)}"], schema) for part in parts)
        return f"({' UNION '.join(selects)}) AS src"

    def account(self, section: str) -> tuple[AccountTable, Target] | None:
        """Return a table that says who may log in and do what, or None when the mappings do not declare it."""
        declared = next((item for item in self.accounts if item.section == section), None)
        return next(((declared, target) for target in self.targets if declared and target.name == declared.target), None)

    @property
    def services(self) -> tuple[str, ...]:
        """Return the target databases' names."""
        return tuple(dict.fromkeys(target.service for target in self.targets))


def quarantine_setting(entity: str) -> str:
    """Return the name of the source connection's setting that lists the quarantined keys of an entity (text[])."""
    return f"migration.quarantined_{entity.encode().hex()}"


def _target(data: Mapping[str, Any]) -> Target:
    fields = dict(data)
    fields["parts"] = tuple(_part(part) for part in data["parts"])
    fields["policies"] = tuple(Policy(**policy) for policy in data["policies"])
    fields["columns"] = tuple(data["columns"])
    fields["column_types"] = tuple(data["column_types"])
    fields["identity"] = tuple(data["identity"])
    return Target(**fields)


def _cell(data: Mapping[str, Any]) -> Cell:
    return Cell(**{**data, "reads": tuple(data["reads"]), "embedded": tuple(map(Embedded.from_dict, data["embedded"]))})


def _part(data: Mapping[str, Any]) -> Part:
    fields = dict(data)
    fields["touches"] = tuple(Touch(**touch) for touch in data["touches"])
    fields["cells"] = tuple(_cell(cell) for cell in data["cells"])
    fields["reads"] = tuple(Read(tuple(read["tables"]), read["column"]) for read in data["reads"])
    fields["lookups"] = tuple(
        Lookup(**{**item, "home": _part(item["home"]), "embedded": item["embedded"] and Embedded.from_dict(item["embedded"])}) for item in data["lookups"]
    )
    for name in ("key", "key_types", "tables", "stars", "identity"):
        fields[name] = tuple(data[name])
    for name in ("dropped", "parents", "counted", "qualified"):
        fields[name] = tuple((first, second) for first, second in data[name])
    fields["origins"] = tuple((column, tuple((table, own) for table, own in pairs)) for column, pairs in data["origins"])
    return Part(**fields)
