# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Damage rows in ways that a migration could. Knows the catalog and nothing of the validator, the plan or the mappings."""

from __future__ import annotations

import random
import unicodedata
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras

Cursor = psycopg2.extensions.cursor
SCHEMAS = ("auth_service", "user_service", "migration")
NOT_DATA = ("rejects",)


@dataclass(frozen=True)
class Table:
    """A table with a column `id`; `columns` are the others with their types."""

    database: str
    schema: str
    name: str
    columns: tuple[tuple[str, str], ...]

    @property
    def sql(self) -> str:
        """Return the qualified name."""
        return f'"{self.schema}"."{self.name}"'

    @property
    def label(self) -> str:
        """Return the name that reports use."""
        return f"{self.database}.{self.name}" if self.schema == self.database else f"{self.database}.{self.schema}.{self.name}"


@dataclass(frozen=True)
class Damage:
    """What was done: to which row, and what must be found: (kind, id, columns); None for columns where any will do."""

    what: str
    table: str
    expected: tuple[tuple[str, str, tuple[str, ...] | None], ...]


def tables(cursor: Cursor, database: str) -> list[Table]:
    """Return the tables of a database that hold data."""
    cursor.execute(
        "SELECT c.table_schema, c.table_name, c.column_name, c.data_type FROM information_schema.columns AS c"
        " WHERE c.table_schema = ANY (%s) AND NOT c.table_name = ANY (%s) ORDER BY 1, 2, c.ordinal_position",
        (list(SCHEMAS), list(NOT_DATA)),
    )
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for schema, name, column, kind in cursor.fetchall():
        found.setdefault((schema, name), []).append((column, kind))
    return [
        Table(database, schema, name, tuple(column for column in columns if column[0] != "id"))
        for (schema, name), columns in found.items()
        if ("id", "uuid") in columns
    ]


def unlock(cursor: Cursor, table: Table) -> None:
    """Drop what keeps a table from being damaged: a migration's tables have no keys while they are loaded."""
    cursor.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('f', 'c')"
        " UNION ALL SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('p', 'u')",
        (table.sql, table.sql),
    )
    for (name,) in cursor.fetchall():
        cursor.execute(f'ALTER TABLE {table.sql} DROP CONSTRAINT IF EXISTS "{name}" CASCADE')
    for column, _ in table.columns:
        cursor.execute(f'ALTER TABLE {table.sql} ALTER "{column}" DROP NOT NULL')


def damage(cursor: Cursor, table: Table, rng: random.Random, taken: set[str]) -> Damage | None:
    """Damage one row (or two) of a table, not one of `taken`; None when the chosen way does not apply to what was found."""
    ways: list[Callable[[Cursor, Table, random.Random, set[str]], Damage | None]] = [_change] * 12 + [
        _remove,
        _add,
        _add_like_a_service,
        _duplicate,
        _swap,
        _exchange,
        _new_id,
    ]
    return rng.choice(ways)(cursor, table, rng, taken)


def _pick(cursor: Cursor, table: Table, rng: random.Random, taken: set[str]) -> dict[str, Any] | None:
    cursor.execute(f"SELECT count(*) FROM {table.sql}")
    row = cursor.fetchone()
    count = int(row[0]) if row else 0
    if count == 0:
        return None
    with cursor.connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as named:
        # As text, so that json, numbers and times come as they are stored.
        columns = ", ".join(f'"{name}"::text' for name, _ in (("id", ""), *table.columns))
        named.execute(f"SELECT {columns} FROM {table.sql} ORDER BY id OFFSET %s LIMIT 1", (rng.randrange(count),))
        found = named.fetchone()
    if found is None or found["id"] in taken:
        return None
    taken.add(found["id"])
    return dict(found)


def _change(cursor: Cursor, table: Table, rng: random.Random, taken: set[str]) -> Damage | None:
    row = _pick(cursor, table, rng, taken)
    if row is None:
        return None
    column, kind = rng.choice(table.columns)
    before = row[column]
    what, after = _new_value(before, kind, rng)
    if what == "" or after == before:
        return None
    try:
        cursor.execute("SAVEPOINT change")
        cursor.execute(f'UPDATE {table.sql} SET "{column}" = %s::{kind} WHERE id = %s', (after, row["id"]))
        cursor.execute(f'SELECT "{column}"::text IS NOT DISTINCT FROM %s FROM {table.sql} WHERE id = %s', (before, row["id"]))
    except psycopg2.Error:  # too long, out of range
        cursor.execute("ROLLBACK TO SAVEPOINT change")
        return None
    unchanged = cursor.fetchone()
    if unchanged and unchanged[0]:
        return None
    return Damage(f"{what} in {column}", table.label, (("different", row["id"], (column,)),))


def _new_value(before: str | None, kind: str, rng: random.Random) -> tuple[str, str | None]:
    """Return a name and the new text of a value."""
    if before is None:
        invented = {
            "boolean": "true",
            "integer": "0",
            "numeric": "0.00",
            "date": "1970-01-01",
            "timestamp without time zone": "1970-01-01 00:00:00",
            "uuid": str(uuid.UUID(int=rng.getrandbits(128))),
            "jsonb": rng.choice(("null", "[]", '""')),
        }
        return "a value for NULL", invented.get(kind, rng.choice(("", "NULL", " ")))
    if rng.random() < 0.12:
        return "NULL for a value", None
    if kind == "boolean":
        return "inverted flag", "false" if before == "true" else "true"
    if kind == "integer":
        return rng.choice((("one bit", str(int(before) ^ 1 << rng.randrange(30))), ("sign", str(-int(before)))))
    if kind == "numeric":
        return rng.choice((("one hundredth", str(float(before) + 0.01)), ("sign", before[1:] if before.startswith("-") else f"-{before}")))
    if kind == "date":
        return "one day", f"{before}"[:8] + ("01" if before[8:10] != "01" else "02") + before[10:]
    if kind.startswith("timestamp"):
        return _new_time(before, rng)
    if kind == "uuid":
        return "one bit of a uuid", str(uuid.UUID(int=uuid.UUID(before).int ^ 1 << rng.randrange(128)))
    if kind == "jsonb":
        return _new_json(before, rng)
    return _new_text(before, rng)


def _new_time(before: str, rng: random.Random) -> tuple[str, str]:
    if " BC" in before:
        return "era", before.replace(" BC", "")
    whole, _, fraction = before.partition(".")
    micros = int((fraction or "0").ljust(6, "0"))
    return rng.choice(
        (
            ("one microsecond", f"{whole}.{micros ^ 1:06d}"),
            ("one bit of the fraction", f"{whole}.{(micros ^ 1 << rng.randrange(19)) % 1_000_000:06d}"),
            ("era", f"{before} BC"),
            ("infinity", "infinity"),
        )
    )


def _new_json(before: str, rng: random.Random) -> tuple[str, str]:
    ways = [
        ("an array around it", f"[{before}]"),
        ("a key around it", f'{{"": {before}}}'),
        ("a text of it", '"' + before.replace("\\", "\\\\").replace('"', '\\"') + '"'),
    ]
    if before.startswith("{") and before != "{}":
        ways.append(("one more json key", before[:-1] + ', "zz": null}'))
    if before.startswith("[") and before != "[]":
        ways.append(("one more json element", before[:-1] + ", null]"))
    if before.replace(".", "", 1).lstrip("-").isdigit():
        ways.append(("json scale", before + ("0" if "." in before else ".0")))
    return rng.choice(ways)


def _new_text(before: str, rng: random.Random) -> tuple[str, str]:
    ways: list[tuple[str, str]] = [("trailing blank", before + " "), ("leading blank", " " + before), ("trailing newline", before + "\n")]
    if before:
        place = rng.randrange(len(before))
        flipped = chr(ord(before[place]) ^ 1)
        if flipped.isprintable():
            ways += [("one bit of a character", before[:place] + flipped + before[place + 1 :])] * 3
        ways += [("a character less", before[:place] + before[place + 1 :]), ("emptied", ""), ("another case", before.swapcase())]
        ways += [("Unicode form", unicodedata.normalize(form, before)) for form in ("NFC", "NFD", "NFKC")]
        if len(before) > 1:
            ways.append(("two characters swapped", before[:place] + before[place : place + 2][::-1] + before[place + 2 :]))
    return rng.choice([way for way in ways if way[1] != before])


def _remove(cursor: Cursor, table: Table, rng: random.Random, taken: set[str]) -> Damage | None:
    row = _pick(cursor, table, rng, taken)
    if row is None:
        return None
    cursor.execute(f"DELETE FROM {table.sql} WHERE id = %s", (row["id"],))
    return Damage("row removed", table.label, (("missing", row["id"], None),))


def _copy(cursor: Cursor, table: Table, of: str, id_: str) -> None:
    columns = ", ".join(f'"{name}"' for name, _ in table.columns)
    cursor.execute(f"INSERT INTO {table.sql} (id, {columns}) SELECT %s, {columns} FROM {table.sql} WHERE id = %s LIMIT 1", (id_, of))


def _add(cursor: Cursor, table: Table, rng: random.Random, taken: set[str]) -> Damage | None:
    row = _pick(cursor, table, rng, taken)
    if row is None:
        return None
    id_ = bytearray(rng.randbytes(16))
    id_[6] = id_[8] = 0x80
    new = str(uuid.UUID(bytes=bytes(id_)))
    taken.add(new)
    _copy(cursor, table, row["id"], new)
    return Damage("row added with an id like a migrated one", table.label, (("extra", new, None),))


def _add_like_a_service(cursor: Cursor, table: Table, rng: random.Random, taken: set[str]) -> Damage | None:
    row = _pick(cursor, table, rng, taken)
    if row is None:
        return None
    new = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    taken.add(new)
    _copy(cursor, table, row["id"], new)
    return Damage("row added with an id that a service makes", table.label, (("extra", new, None),))


def _duplicate(cursor: Cursor, table: Table, rng: random.Random, taken: set[str]) -> Damage | None:
    row = _pick(cursor, table, rng, taken)
    if row is None:
        return None
    _copy(cursor, table, row["id"], row["id"])
    return Damage("row duplicated", table.label, (("duplicate", row["id"], None),))


def _swap(cursor: Cursor, table: Table, rng: random.Random, taken: set[str]) -> Damage | None:
    one, other = _pick(cursor, table, rng, taken), _pick(cursor, table, rng, taken)
    column, kind = rng.choice(table.columns)
    if one is None or other is None or one[column] == other[column]:
        return None
    for row, value in ((one, other[column]), (other, one[column])):
        cursor.execute(f'UPDATE {table.sql} SET "{column}" = %s::{kind} WHERE id = %s', (value, row["id"]))
    return Damage(f"{column} swapped between two rows", table.label, tuple(("different", row["id"], (column,)) for row in (one, other)))


def _exchange(cursor: Cursor, table: Table, rng: random.Random, taken: set[str]) -> Damage | None:
    one, other = _pick(cursor, table, rng, taken), _pick(cursor, table, rng, taken)
    if one is None or other is None:
        return None
    differing = tuple(name for name, _ in table.columns if one[name] != other[name])
    if not differing:
        return None
    spare = str(uuid.UUID(int=rng.getrandbits(128)))
    for old, new in ((one["id"], spare), (other["id"], one["id"]), (spare, other["id"])):
        cursor.execute(f"UPDATE {table.sql} SET id = %s WHERE id = %s", (new, old))
    return Damage("two rows exchanged", table.label, tuple(("different", row["id"], differing) for row in (one, other)))


def _new_id(cursor: Cursor, table: Table, rng: random.Random, taken: set[str]) -> Damage | None:
    row = _pick(cursor, table, rng, taken)
    if row is None:
        return None
    new = str(uuid.UUID(int=uuid.UUID(row["id"]).int ^ 1 << rng.randrange(128)))
    taken.add(new)
    cursor.execute(f"UPDATE {table.sql} SET id = %s WHERE id = %s", (new, row["id"]))
    return Damage("one bit of the id", table.label, (("missing", row["id"], None), ("extra", new, None)))
