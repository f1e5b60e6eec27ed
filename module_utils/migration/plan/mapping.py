# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes where: what mapping files say, in values that know their place. Controller only.

A Mapping is a target table, a Part a source of it, a Column a target column's rule; an Identity an entity that is
minted without a target table. mapping_files.py reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .accounts import AccountTable

PLAN_TIME = "plan_time"
EVERY = "*"


@dataclass(frozen=True)
class Column:
    """How one target column gets its value: copied from `source`, computed by `sql`, or the constant `value`.

    `translate` names the id map that turns the value (a source key) into a UUID, or for each path of a document the id map of what stands there.
    """

    name: str
    place: str
    source: str | None = None
    sql: str | None = None
    value: Any = None
    plan_time: bool = False
    translate: str | dict[str, str] | None = None


@dataclass(frozen=True)
class Key:
    """What identifies a row, and the entity of its UUIDs (None: a leaf's own); `keep` stays its id, `translate` is the id map of its parent's."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    mints: str | None
    place: str
    keep: str | None = None
    translate: str | None = None


@dataclass(frozen=True)
class Touch:
    """A change in `table` touches the result's rows whose `result` equals the changed row's `column`; both `*`: every row."""

    table: str
    column: str
    result: str


@dataclass(frozen=True)
class Policy:
    """What happens to rows that break a rule of a target column; `placeholder` is an SQL expression or None."""

    column: str
    rule: str
    policy: str
    placeholder: str | None
    place: str


@dataclass(frozen=True)
class Part:
    """One source of a target table; `query` is None where the source is a table, of which `where` may select rows.

    `unread` are target columns whose rule has a mistake (`*`: all of them).
    """

    name: str
    place: str
    table: str | None
    query: str | None
    query_path: str | None
    touches: tuple[Touch, ...]
    key: Key
    chunk_by: str
    columns: tuple[Column, ...]
    dropped: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    counted: dict[str, str] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()
    where: str | None = None
    where_place: str = ""
    cut_by_default: bool = False  # nobody wrote chunk_by


@dataclass(frozen=True)
class Mapping:
    """One target table and its sources."""

    service: str
    table: str
    path: str
    parts: tuple[Part, ...]
    policies: tuple[Policy, ...]


@dataclass(frozen=True)
class Identity:
    """An entity minted without a target table; `keep` are columns (name to type) kept in migration.<entity>."""

    entity: str
    path: str
    database: str
    part: Part
    keep: dict[str, str]


@dataclass(frozen=True)
class Mappings:
    """The whole tree."""

    tables: tuple[Mapping, ...]
    identities: tuple[Identity, ...]
    accounts: tuple[AccountTable, ...] = ()
