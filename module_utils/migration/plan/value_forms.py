# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The form in which a value is digested and named, the same on both sides, and golden values that prove it the same; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .model import Part, Target

TEXT_TYPES = ("text", "character varying", "character", "bpchar", "name", "citext")

# Values of a type that a careless form would confuse; bytea's lengths pass every branch of the hash (12-byte blocks and tails).
# ASCII only: a monolith's database may have another encoding, whose text PostgreSQL itself converts to UTF8.
_TEXT = ("", " ", "a", "A", "abcdefghijkl", "abcdefghijklm", "0" * 40, "\\", "'\"\n\t\r")
_NUMBERS = ("0", "1", "-1", "1.0", "1.00", "0.000001", "-99.95", "12345678901234567890.123456789", "NaN")
_JSON = ("null", "{}", "[]", '""', '{"a": 1, "b": [true, null, 1.10]}', '{"": "\\u0041"}', "-0.0", "1e3")
_TIMES = (
    "0001-01-01 00:00:00",
    "1970-01-01 00:00:00",
    "2000-01-01 00:00:00",
    "2024-02-29 23:59:59.999999",
    "9999-12-31 23:59:59.999999",
    "infinity",
    "4713-01-01 00:00:00 BC",
)
_DATES = ("0001-01-01", "1970-01-01", "2000-02-29", "9999-12-31", "infinity", "4713-01-01 BC")
_FLOATS = ("0", "-0", "1", "0.1", "-1.5", "Infinity", "NaN", "1e-30")
GOLDEN: Mapping[str, tuple[str, ...]] = {
    "boolean": ("true", "false"),
    "smallint": ("0", "1", "-1", "32767", "-32768"),
    "integer": ("0", "1", "-1", "2147483647", "-2147483648"),
    "bigint": ("0", "1", "-1", "9223372036854775807", "-9223372036854775808", "4294967296"),
    "numeric": _NUMBERS,
    "real": _FLOATS,
    "double precision": (*_FLOATS, "1e-300", "0.30000000000000004"),
    "date": _DATES,
    "time without time zone": ("00:00:00", "23:59:59.999999", "24:00:00"),
    "time with time zone": ("00:00:00+00", "23:59:59.999999-11:30"),
    "timestamp without time zone": _TIMES,
    "timestamp with time zone": tuple(value if value == "infinity" else value.replace(" BC", "+00 BC") if "BC" in value else value + "+00" for value in _TIMES),
    "interval": ("0", "1 mon", "30 days", "720:00:00", "-1 day 00:00:00.000001"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "0188d3a1-2b3c-8d4e-8f60-ffffffffffff"),
    "json": (*_JSON, '{"a":1,"a":2}', '{ "a" : 1 }'),
    "jsonb": _JSON,
    "bytea": tuple("\\x" + "00ff7f80"[: 2 * (n % 5)] + "a5" * n for n in (0, 1, 2, 3, 4, 7, 8, 11, 12, 13, 15, 16, 23, 24, 25, 40)),
    "inet": ("0.0.0.0/0", "10.1.2.3", "::1", "2001:db8::/32"),
    "text": _TEXT,
}


def canonical(sql: str, kind: str, as_text: Sequence[str] = ()) -> str:
    """Return the SQL of a value in the form in which it is digested."""
    if kind == "bytea":
        return sql
    if kind == "uuid":
        return f"uuid_send({sql})"
    if kind in TEXT_TYPES or kind in as_text or not known(kind):
        return f"({sql})::text"
    return f"({sql})::{kind}"


def known(kind: str) -> bool:
    """Tell whether a type has golden vectors; a type that has none enters as text."""
    return kind in GOLDEN


def padded(target: Target, part: Part) -> frozenset[str]:
    """Return the columns that pad a number to their own scale (numeric(3,2) makes 4.50 of 4.5): their zeros at the end say nothing."""
    declared = dict(zip(target.columns, target.column_types, strict=True))
    return frozenset(cell.name for cell in part.cells if cell.type == "numeric" and declared[cell.name] != "numeric")


def trimmed(sql: str, scaled: bool) -> str:
    """Return the SQL of a value without zeros at its end where the column pads it."""
    return f"trim_scale({sql})" if scaled else sql
