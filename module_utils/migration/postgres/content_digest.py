# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a database: a row count and a content digest for each table, taken in one snapshot.

The digest of a table is the sum of two 64-bit lanes of sha256 over each row's text, so it does not depend on the order of
the rows and needs no sort; the text is written with the pinned settings of driver.PINNED, in the database's own encoding
(a copy has the same; SQL_ASCII has bytes that are no text in any other).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import MigrationError
from . import driver
from .quote import qualified

_TABLES = """
SELECT n.nspname, c.relname, has_table_privilege(c.oid, 'SELECT')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2
"""
_SEQUENCES = """
SELECT schemaname, sequencename, coalesce(last_value, start_value::numeric - increment_by), increment_by FROM pg_sequences
WHERE schemaname !~ '^pg_' ORDER BY 1, 2
"""

_LARGE_OBJECT = "int8send(oid::bigint) || lo_get(oid)"


@dataclass(frozen=True)
class TableDigest:
    """A table's content: how many rows, and the digest of them all (two sums, in decimal)."""

    schema: str
    table: str
    rows: int
    digest: str

    @property
    def name(self) -> str:
        """Return schema.table."""
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True)
class SequenceState:
    """How far a sequence had come; a sequence moves outside transactions, so a dump may hold a later value."""

    schema: str
    sequence: str
    last_value: int
    increment: int


@dataclass(frozen=True)
class Content:
    """All that is compared between a database and its copy."""

    tables: tuple[TableDigest, ...]
    sequences: tuple[SequenceState, ...]
    large_objects: int
    large_objects_digest: str

    def to_dict(self) -> dict[str, Any]:
        """Return the content as JSON can carry it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Content:
        """Return the content that to_dict() wrote."""
        return cls(
            tuple(TableDigest(**item) for item in data["tables"]),
            tuple(SequenceState(**item) for item in data["sequences"]),
            data["large_objects"],
            data["large_objects_digest"],
        )

    def table(self, schema: str, table: str) -> TableDigest | None:
        """Return one table's content, or None when it is not there."""
        return next((item for item in self.tables if (item.schema, item.table) == (schema, table)), None)


def digest_sql(text: str, source: str) -> str:
    """Return the SELECT of a row count and digest over the texts `text` of a FROM item."""
    return (
        "SELECT count(*), coalesce(sum(('x' || substr(h, 1, 16))::bit(64)::bigint), 0) || ',' || coalesce(sum(('x' || substr(h, 17, 16))::bit(64)::bigint), 0)"
        f" FROM (SELECT encode(sha256({text}), 'hex') AS h FROM {source}) AS hashes"
    )


def table_sql(schema: str, table: str, *, most: int | None = None) -> str:
    """Return the SELECT that counts and digests a table's own rows, or only so many of them."""
    source = f"ONLY {qualified(schema, table)}"
    rows = source if most is None else f"(SELECT * FROM {source} LIMIT {most})"
    return digest_sql("convert_to(ROW(src.*)::text, getdatabaseencoding())", f"{rows} AS src")


def tables(connection: driver.Connection) -> list[tuple[str, str, bool]]:
    """Return schema, name and whether the session may read it, for each table that a dump holds the rows of."""
    return [(schema, table, readable) for schema, table, readable in driver.rows(connection, _TABLES)]


def read_table(connection: driver.Connection, schema: str, table: str) -> TableDigest:
    """Return a table's content as the connection's transaction sees it."""
    count, digest = driver.rows(connection, table_sql(schema, table))[0]
    return TableDigest(schema, table, count, digest)


def read(connection: driver.Connection, tick: Callable[[str, int, int], None] = lambda table, done, total: None) -> Content:
    """Return the content of the database as the connection's transaction sees it; `tick` hears of each table."""
    found = tables(connection)
    digests = []
    for number, (schema, table, _) in enumerate(found):
        tick(f"{schema}.{table}", number, len(found))
        digests.append(read_table(connection, schema, table))
    sequences = tuple(SequenceState(schema, name, int(last), int(step)) for schema, name, last, step in driver.rows(connection, _SEQUENCES))
    objects = int(driver.scalar(connection, "SELECT count(*) FROM pg_largeobject_metadata"))
    digest = ""
    if objects:
        digest = driver.rows(connection, digest_sql(_LARGE_OBJECT, "pg_largeobject_metadata"))[0][1]
    return Content(tuple(digests), sequences, objects, digest)


def attempt(connection: driver.Connection) -> list[str]:
    """Return what read() could not do here, a line each, by doing it to one row of everything; the connection is in a transaction."""
    tried = [(f"{schema}.{table}", table_sql(schema, table, most=1)) for schema, table, readable in tables(connection) if readable]
    tried += [
        ("the sequences", _SEQUENCES),
        ("the large objects", digest_sql(_LARGE_OBJECT, "(SELECT oid FROM pg_largeobject_metadata LIMIT 1) AS one")),
    ]
    faults: dict[str, list[str]] = {}
    for what, statement in tried:
        driver.rows(connection, "SAVEPOINT attempt")
        try:
            with driver.database_errors("", ""):
                driver.rows(connection, statement)
        except MigrationError as exc:
            faults.setdefault(str(exc).lstrip(": "), []).append(what)
            driver.rows(connection, "ROLLBACK TO SAVEPOINT attempt")
    return [f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {fault}" for fault, names in faults.items()]


def differences(wanted: Content, found: Content) -> list[str]:
    """Return what is different in a copy, a line each; no values."""
    lines = []
    here = {item.name: item for item in found.tables}
    for table in wanted.tables:
        copy = here.pop(table.name, None)
        if copy is None:
            lines.append(f"{table.name} is missing")
        elif copy.rows != table.rows:
            lines.append(f"{table.name} has {copy.rows} rows, the manifest says {table.rows}")
        elif copy.digest != table.digest:
            lines.append(f"{table.name} has the right number of rows ({table.rows}) but other content")
    lines += [f"{name} is not in the manifest" for name in sorted(here)]
    reached = {(item.schema, item.sequence): item for item in found.sequences}
    for sequence in wanted.sequences:
        other = reached.get((sequence.schema, sequence.sequence))
        if other is None:
            lines.append(f"sequence {sequence.schema}.{sequence.sequence} is missing")
        elif (other.last_value - sequence.last_value) * (1 if sequence.increment > 0 else -1) < 0:
            lines.append(f"sequence {sequence.schema}.{sequence.sequence} stands at {other.last_value}, the manifest says {sequence.last_value}")
    if (wanted.large_objects, wanted.large_objects_digest) != (found.large_objects, found.large_objects_digest):
        lines.append(f"there are {found.large_objects} large objects, the manifest says {wanted.large_objects}, or their content is different")
    return lines


def in_words(lines: Sequence[str], limit: int = 5) -> str:
    """Return the first few lines as one."""
    more = f"; and {len(lines) - limit} more" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + more
