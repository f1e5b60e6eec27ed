# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sequences behind the columns that a mapping fills: no row that was carried moves them, so the service's first INSERT would collide.

The catalog says which sequences these are: of identity columns, owned ones, and all that a column's default draws from. A sequence only
ever moves forward, in its own direction and steps, and is locked against draws while it does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..context import Context
from ..errors import MigrationError
from ..plan.model import Target
from ..postgres import driver
from ..postgres.quote import ident, literal
from ..text import counted

APPLICATION_NAME = "edulink-migration sequences"
LOCK_TIMEOUT = "5s"
_LARGEST = {"int2": 2**15 - 1, "int4": 2**31 - 1}  # of columns that end before an int8 sequence does

_FOUND = """
SELECT DISTINCT s.seqrelid::regclass::text, r.rolname, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle, s.seqcache, a.attname, y.typname
FROM pg_attribute AS a
JOIN pg_type AS t ON t.oid = a.atttypid
JOIN pg_type AS y ON y.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
LEFT JOIN pg_attrdef AS f ON f.adrelid = a.attrelid AND f.adnum = a.attnum AND a.attgenerated = ''
JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
    OR d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum
    AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
JOIN pg_sequence AS s ON s.seqrelid = CASE WHEN d.classid = 'pg_class'::regclass THEN d.objid ELSE d.refobjid END
JOIN pg_class AS c ON c.oid = s.seqrelid
JOIN pg_roles AS r ON r.oid = c.relowner
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = ANY (%s)
  AND y.typname IN ('int2', 'int4', 'int8', 'numeric')
ORDER BY 1, a.attname
"""


@dataclass(frozen=True)
class SequenceOf:
    """A sequence and the columns (quoted table, name, type) that it gives values to. Its name is quoted as SQL needs it."""

    name: str
    owner: str
    increment: int
    least: int
    most: int
    cycles: bool
    cache: int
    columns: tuple[tuple[str, str, str], ...]

    @property
    def ends(self) -> tuple[int, int]:
        """Return the smallest and the largest value that it gives and every column takes."""
        most = min([self.most, *(_LARGEST.get(kind, self.most) for _, _, kind in self.columns)])
        least = max([self.least, *(-_LARGEST[kind] - 1 if kind in _LARGEST else self.least for _, _, kind in self.columns)])
        return least, most

    def after(self, following: int, reached: int | None) -> int:
        """Return the first value from `following` on, in its steps, that lies beyond what the rows have `reached`."""
        if reached is None or (reached - following) * (1 if self.increment > 0 else -1) < 0:
            return following
        return following + ((reached - following) // self.increment + 1) * self.increment


@dataclass(frozen=True)
class Behind:
    """A sequence whose next values rows have already; `moves_to` is the next value that none has, `exhausted` that there is none."""

    service: str
    sequence: str
    columns: tuple[str, ...]
    following: int
    moves_to: int
    exhausted: bool

    @property
    def line(self) -> str:
        """Return the fault in one line."""
        where = f"{self.service}: the sequence {self.sequence} of {', '.join(self.columns)}"
        if self.exhausted:
            return f"{where} has no value left that no row has; {widen(self.sequence)}"
        return f"{where} gives {self.following} next, which rows have or are about to collide with; {self.moves_to} is free"


@dataclass(frozen=True)
class Sequences:
    """What a look at the sequences behind all mapped columns found."""

    looked_at: int
    behind: tuple[Behind, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Tell whether no next value is one that a row has."""
        return not self.behind

    @property
    def lines(self) -> tuple[str, ...]:
        """Return a line for each sequence that is behind."""
        return tuple(item.line for item in self.behind)

    @property
    def verdict(self) -> str:
        """Return one line."""
        if self.passed:
            return f"the next value of {counted(self.looked_at, 'sequence')} is free" if self.looked_at else "no mapped column draws from a sequence"
        return f"{counted(len(self.behind), 'sequence')} would give values that rows have: {self.behind[0].line}"

    def to_dict(self) -> dict[str, Any]:
        """Return what validation.json keeps."""
        behind = [{**asdict(item), "columns": list(item.columns)} for item in self.behind]
        return {"passed": self.passed, "verdict": self.verdict, "looked_at": self.looked_at, "behind": behind}


def widen(sequence: str) -> str:
    """Return what helps a sequence that has come to its end."""
    return f"give it room (ALTER SEQUENCE {sequence} ... MAXVALUE or MINVALUE, or a wider type of sequence and column), then run it again"


def read(connection: driver.Connection, targets: Iterable[Target]) -> tuple[SequenceOf, ...]:
    """Return the sequences behind the mapped columns of one database's targets, each once."""
    found: dict[str, SequenceOf] = {}
    for target in targets:
        for name, owner, step, least, most, cycles, cache, column, kind in driver.rows(connection, _FOUND, (target.qualified, list(target.columns))):
            known = found.setdefault(name, SequenceOf(name, owner, step, least, most, cycles, cache, ()))
            found[name] = replace(known, columns=(*known.columns, (target.qualified, column, kind)))
    return tuple(found.values())


def look(context: Context) -> Sequences:
    """Return which sequences of the services are behind the rows; reads only."""
    looked_at = 0
    behind: list[Behind] = []
    for service in context.plan.services:
        reading = driver.database_errors(context.targets[service].place, "reading its sequences")
        with contextlib.closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as connection, reading:
            for sequence in read(connection, context.plan.of(service)):
                looked_at += 1
                behind += _judge(connection, service, sequence)
    return Sequences(looked_at, tuple(behind))


def advance(context: Context) -> tuple[Behind, ...]:
    """Move every sequence that is behind its rows; return those. MigrationError for one that cannot be moved."""
    return tuple(moved for service in context.plan.services for moved in _advance(context, service))


def _advance(context: Context, service: str) -> Iterator[Behind]:
    place = context.targets[service].place
    with contextlib.closing(context.connect_target(service, APPLICATION_NAME)) as connection:
        with driver.database_errors(place, "reading its sequences"), connection:
            behind = [sequence for sequence in read(connection, context.plan.of(service)) if list(_judge(connection, service, sequence))]
        for sequence in behind:
            moving = driver.database_errors(
                place, f"moving the sequence {sequence.name}, whose owner {sequence.owner} the login must be or be a member of, and that nobody may hold"
            )
            with moving, connection:
                driver.rows(connection, f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                # As it is already: for the lock, which a draw waits for. What was drawn until now is seen below, and nothing is drawn meanwhile.
                driver.rows(connection, f"ALTER SEQUENCE {sequence.name} CACHE {sequence.cache}")
                for item in _judge(connection, service, sequence):
                    if item.exhausted:
                        raise MigrationError(item.line)
                    driver.rows(connection, "SELECT setval(%s::regclass, %s, true)", (sequence.name, item.moves_to - sequence.increment))
                    yield item


def _judge(connection: driver.Connection, service: str, sequence: SequenceOf) -> Iterator[Behind]:
    """Yield the sequence when it is behind. The rows are read first: what a live service draws meanwhile only moves it on."""
    reached = _reached(connection, sequence)
    following = _following(connection, sequence)
    free = sequence.after(following, reached)
    least, most = sequence.ends
    exhausted = reached is not None and not least <= free <= most
    if free != following or exhausted:
        yield Behind(service, sequence.name, tuple(f"{table}.{ident(name)}" for table, name, _ in sequence.columns), following, free, exhausted)


def _reached(connection: driver.Connection, sequence: SequenceOf) -> int | None:
    """Return the furthest value, in the sequence's direction, that a row has in one of its columns and that it could give; no index is relied on."""
    which, furthest = ("max", max) if sequence.increment > 0 else ("min", min)
    least, most = sequence.ends
    found = []
    for table, name, _ in sequence.columns:
        column = f"t.{ident(name)}"
        statement = f"SELECT {which}({column}) FILTER (WHERE {column} BETWEEN {literal(str(least))} AND {literal(str(most))}) FROM {table} AS t"
        found.append(driver.scalar(connection, statement))
    reached = [int(value) for value in found if value is not None]
    return furthest(reached) if reached else None


def _following(connection: driver.Connection, sequence: SequenceOf) -> int:
    last, called = driver.rows(connection, f"SELECT last_value, is_called FROM {sequence.name}")[0]
    return int(last) + sequence.increment if called else int(last)


def in_words(moved: Iterable[Behind] | Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each sequence that was moved, or would be."""
    items = [asdict(item) if isinstance(item, Behind) else item for item in moved]
    return [f"{item['service']}: sequence {item['sequence']} from {item['following']} to {item['moves_to']}" for item in items]
