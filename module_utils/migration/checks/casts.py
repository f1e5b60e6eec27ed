# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong when a value of one type becomes a column of another; pure.

Two questions for a pair of types: for which values does PostgreSQL's cast raise an error, and for which does it accept
another value. Each answer is an SQL condition over the source value. Sources: PostgreSQL manual, chapter 8 "Data Types";
utils/adt/{int,numeric,float,varchar,timestamp,jsonb}.c for rounding and range.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..contract.model import ColumnSpec
from ..plan.embedded_ids import Embedded
from ..postgres.quote import literal

INTEGERS = {"smallint": (-(2**15), 2**15 - 1), "integer": (-(2**31), 2**31 - 1), "bigint": (-(2**63), 2**63 - 1)}
FLOATS = ("real", "double precision")
NUMBERS = ("numeric", *FLOATS)
TEXTS = ("text", "character varying", "bpchar", "character", "name", "citext")
STAMPS = ("timestamp without time zone", "timestamp with time zone")
PRECISE = (*STAMPS, "time without time zone", "time with time zone", "interval")
INPUT_IS_VALID = 160000  # pg_input_is_valid() came with PostgreSQL 16
_NULL_ESCAPE = r"(^|[^\\])(\\\\)*\\u0000"
_STRING = r'"([^"\\]|\\.)*"'
_MOVING = r"\m(now|today|tomorrow|yesterday)\M"  # words of time types (manual, 8.5.1.4) whose meaning is another every day
_FINER = r"\.\d{6}\d*[1-9]"
_DATED = r"^\s*\d+[-/.]\d+[-/.]|\d\s*[-+]\s*\d|[A-Za-z]{3}|[Zz]\s*$"  # a time with a date or a zone
_AREAS = ("point", "line", "lseg", "box", "path", "polygon", "circle")  # their = compares areas, or is not there
# PostgreSQL's name of an encoding: Python's; what WIN1252 leaves open PostgreSQL refuses as well.
SINGLE_BYTE = {
    "LATIN1": "latin-1", "LATIN2": "iso8859-2", "LATIN5": "iso8859-9", "LATIN9": "iso8859-15", "ISO_8859_5": "iso8859-5",
    "WIN1250": "cp1250", "WIN1251": "cp1251", "WIN1252": "cp1252", "KOI8R": "koi8-r",
}  # fmt: skip
_TAIL = "[89ab][0-9a-f]"
# The well-formed sequences of RFC 3629, section 4, byte by byte in hexadecimal.
_UTF8_AS_HEX = (
    f"^([0-7][0-9a-f]|(c[2-9a-f]|d[0-9a-f]){_TAIL}|e0[ab][0-9a-f]{_TAIL}|(e[1-9abcef])({_TAIL}){{2}}|ed[89][0-9a-f]{_TAIL}"
    f"|f0[9ab][0-9a-f]({_TAIL}){{2}}|f[123]({_TAIL}){{3}}|f48[0-9a-f]({_TAIL}){{2}})*$"
)
# Pairs whose cast cannot fail and keeps the value.
_LOSSLESS = {
    ("smallint", "integer"), ("smallint", "bigint"), ("integer", "bigint"), ("boolean", "integer"),
    ("smallint", "numeric"), ("integer", "numeric"), ("bigint", "numeric"), ("smallint", "real"), ("smallint", "double precision"),
    ("integer", "double precision"), ("real", "double precision"), ("timestamp with time zone", "timestamp without time zone"),
    ("timestamp without time zone", "timestamp with time zone"), ("jsonb", "json"), ("uuid", "bytea"), ("cidr", "inet"),
    ("time without time zone", "time with time zone"), ("time without time zone", "interval"), ("bit", "bit varying"),
    ("integer", "oid"), ("bigint", "money"), ("integer", "money"), ("macaddr", "macaddr8"), ("money", "numeric"),
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """An SQL condition that is true for the rows that break `rule`; `message` says how."""

    rule: str
    sql: str
    message: str


def impossible(raw: str, source: str, column: ColumnSpec, version: int) -> tuple[Condition, ...]:
    """Return the conditions under which casting `raw` (of type `source`) to the column's wire type raises an error.

    What is not listed is found by trying: the scan evaluates the cast for every row.
    """
    wire = column.wire_type
    if column.enum_labels is not None:
        labels = ", ".join(literal(label) for label in column.enum_labels)
        return (Condition("type", f"({raw})::text NOT IN ({labels})", f"is no label of {column.type}"),)
    if source == wire or (source, wire) in _LOSSLESS or wire in TEXTS or _spelled(source) == _spelled(wire):
        return ()
    if wire in INTEGERS and source in (*INTEGERS, "numeric", *FLOATS):
        return (Condition("range", _outside(raw, source, wire), f"is outside the range of {wire}"),)
    if (source, wire) == ("double precision", "real"):
        tests = f"abs({raw}) >= 3.4028235677973366e38::float8 AND abs({raw}) <> 'Infinity' AND ({raw}) <> 'NaN'"
        tiny = f"({raw}) <> 0 AND abs({raw}) <= 7.006492321624085e-46::float8"
        return (Condition("range", f"(({tests}) OR ({tiny}))", f"is outside the range of {wire}"),)
    if source == "date" and wire in STAMPS:
        return (Condition("range", f"(({raw}) > DATE '294276-12-31' AND isfinite({raw}))", f"is outside the range of {wire}"),)
    if source in STAMPS and wire in ("date", "time without time zone"):
        return ()
    if source == "numeric" and wire in FLOATS and version < INPUT_IS_VALID:
        largest, least = ("3.4028235677973366e38", "7.006492321624085e-46") if wire == "real" else ("1.7976931348623158079e308", "2.4703282292062327e-324")
        tests = f"(abs({raw}) >= {largest} AND abs({raw}) <> 'Infinity' AND ({raw}) <> 'NaN') OR (({raw}) <> 0 AND abs({raw}) <= {least})"
        return (Condition("range", f"({tests})", f"is outside the range of {wire}"),)
    if source == "numeric" and wire in FLOATS:
        return (Condition("range", f"NOT pg_input_is_valid(({raw})::text, {literal(wire)})", f"is outside the range of {wire}"),)
    if source in ("json", *TEXTS) and version >= INPUT_IS_VALID:
        zero = f"({raw})::text ~ {literal(_NULL_ESCAPE)}"
        bad = f"NOT pg_input_is_valid(({raw})::text, {literal(wire)})"
        if wire == "jsonb":
            return (
                Condition("encoding", f"({zero} AND {bad})", "holds the escaped zero byte \\u0000, which jsonb refuses"),
                Condition("type", f"({bad} AND NOT {zero})", "is not valid jsonb"),
            )
        return (Condition("type", bad, f"is not valid as {wire}"),)
    if source == "json" and wire == "jsonb":
        return (Condition("encoding", f"({raw})::text ~ {literal(_NULL_ESCAPE)}", "holds the escaped zero byte \\u0000, which jsonb refuses"),)
    return ()


def embedded(item: Embedded) -> Condition:
    """Return the condition under which ids inside a value cannot be translated."""
    what = "an id that is no whole number" if item.whole else "what is no id"
    return Condition("type", item.malformed, f"holds {what} at {item.path}, or is shaped otherwise than the path says")


def proves(conditions: tuple[Condition, ...], source: str, version: int) -> bool:
    """Return whether what impossible() lists is all that the cast can raise."""
    return bool(conditions) and not (source == "json" and version < INPUT_IS_VALID)


def unrepresentable(raw: str, source: str, encodings: tuple[str, str]) -> tuple[Condition, ...]:
    """Return the conditions under which a text cannot go from one encoding to the other; () where every text can.

    Texts travel as UTF8, the encoding of every connection: they must have a form in it, and then one in the target's.
    """
    have, want = encodings
    if not _textual(source):
        return ()
    if have == "SQL_ASCII":
        return (Condition("encoding", f"encode(convert_to(({raw})::text, 'SQL_ASCII'), 'hex') !~ {literal(_UTF8_AS_HEX)}", "is not valid UTF8"),)
    if have == "UTF8" and want in SINGLE_BYTE:
        return (Condition("encoding", f"({raw})::text ~ {literal(_not_in(SINGLE_BYTE[want]))}", f"has characters that {want} does not have"),)
    if have in SINGLE_BYTE and (bad := _bad_bytes(SINGLE_BYTE[have], SINGLE_BYTE.get(want, "utf-8"))):
        listed = "|".join(f"{byte:02x}" for byte in bad)
        lacking = want if want in SINGLE_BYTE else "UTF8"
        sql = f"encode(convert_to(({raw})::text, {literal(have)}), 'hex') ~ {literal(f'^(..)*({listed})')}"
        return (Condition("encoding", sql, f"has characters that {lacking} does not have"),)
    return ()


def untried(value: str, source: str, encodings: tuple[str, str]) -> str | None:
    """Return an expression that raises where a text has no form in the target's encoding, if unrepresentable() cannot tell."""
    have, want = encodings
    if not _textual(source) or (have in ("UTF8", *SINGLE_BYTE) and want in ("UTF8", "SQL_ASCII", *SINGLE_BYTE)):
        return None
    travelling = f"convert_to(({value})::text, {literal('SQL_ASCII' if have == 'SQL_ASCII' else 'UTF8')})"
    return travelling if want in ("UTF8", "SQL_ASCII") else f"convert({travelling}, 'UTF8', {literal(want)})"


def _textual(source: str) -> bool:
    return source.removesuffix("[]") in (*TEXTS, "json", "jsonb", "xml")


def _bad_bytes(have: str, want: str) -> list[int]:
    """Return the bytes of a single-byte codec that stand for nothing, or for what another codec does not have."""

    def fits(byte: int) -> bool:
        try:
            return bool(bytes([byte]).decode(have).encode(want))
        except UnicodeError:
            return False

    return [byte for byte in range(0x80, 0x100) if not fits(byte)]


def _not_in(codec: str) -> str:
    """Return a regular expression for any character that a single-byte codec does not have."""
    codes = sorted(ord(text) for byte in range(1, 256) if (text := bytes([byte]).decode(codec, "ignore")))
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[^" + "".join(f"\\u{low:04x}-\\u{high:04x}" for low, high in ranges) + "]"


def refused(value: str, column: ColumnSpec) -> tuple[Condition, ...]:
    """Return the conditions under which the column refuses a `value` of its wire type because of its modifier."""
    base = column.wire_type.removesuffix("[]")
    one = "item" if column.wire_type.endswith("[]") else value
    found: list[Condition] = []
    if column.length is not None and base in TEXTS:
        found.append(Condition("length", f"char_length(rtrim(({one})::text, ' ')) > {column.length}", f"is longer than {column.length} characters"))
    elif column.length is not None and base == "bit varying":
        fixed = _base(column).startswith("bit(")
        found.append(Condition("length", f"length({one}) {'<>' if fixed else '>'} {column.length}", f"has not the length of {_base(column)}"))
    elif column.precision is not None and base == "numeric":
        scale = column.scale or 0
        limit = f"1e{column.precision - scale}::numeric"
        found.append(Condition("range", f"(({one}) <> 'NaN' AND abs(round({one}, {scale})) >= {limit})", f"does not fit numeric({column.precision},{scale})"))
    elif base in STAMPS and column.precision is not None and column.precision < 6:
        found.append(Condition("range", _over_the_end(one, column.precision), f"is rounded beyond the range of {base}"))
    return tuple(_each(condition, value, column) for condition in found)


def _over_the_end(value: str, precision: int) -> str:
    """Return the condition under which rounding leaves the type's range; binary COPY would store it, and nobody could read it."""
    last = f"294276-12-31 23:59:59.{'9' * precision}5+00"
    return f"(isfinite({value}) AND ({value})::timestamptz >= {literal(last)})"


def changed(raw: str, source: str, value: str, column: ColumnSpec) -> tuple[Condition, ...]:
    """Return the conditions under which PostgreSQL accepts the row, but stores another value.

    `value` is the (safe) value of the wire type.
    """
    wire = column.wire_type
    base = wire.removesuffix("[]")
    one = "item" if wire.endswith("[]") else value
    found: list[Condition] = []
    if base in TEXTS and column.length is not None:
        if base in ("bpchar", "character") and source not in ("bpchar", "character"):
            found.append(Condition("changed", f"({raw})::text <> rtrim(({raw})::text, ' ')", "loses its trailing blanks"))
        elif base not in ("bpchar", "character"):
            over = f"char_length(({one})::text) > {column.length} AND char_length(rtrim(({one})::text, ' ')) <= {column.length}"
            found.append(Condition("changed", f"({over})", "loses trailing blanks beyond its length"))
    elif base == "numeric" and column.precision is not None:
        found.append(Condition("changed", f"({one}) <> round({one}, {column.scale or 0})", f"is rounded to {column.scale or 0} decimals"))
    elif base in PRECISE and column.precision is not None and column.precision < 6:
        kind = _base(column).removesuffix("[]")
        sql = f"({one}) <> ({one})::{kind}"
        if base in STAMPS:
            sql = f"CASE WHEN {_over_the_end(one, column.precision)} THEN false ELSE {sql} END"
        found.append(Condition("changed", sql, f"is rounded to {column.precision} digits of a second"))
    result = [_each(condition, value, column) if one == "item" else condition for condition in found]
    result += _converted(raw, source, value, wire)
    return tuple(result)


def _converted(raw: str, source: str, value: str, wire: str) -> list[Condition]:
    if source == wire or (source, wire) in _LOSSLESS or wire.removesuffix("[]") in TEXTS or (source in INTEGERS and wire in INTEGERS):
        return []
    if source in TEXTS:
        return _read(raw, value, wire)
    if wire in INTEGERS and source in ("numeric", *FLOATS):
        return [Condition("changed", f"({value}) <> ({raw})", f"is rounded to a whole number by {wire}")]
    if wire in FLOATS and source in INTEGERS:
        # Two halves that float8 holds exactly; float8::numeric keeps 15 digits only.
        high, low = f"(({raw})::bigint / 4294967296 * 4294967296)::float8", f"(({raw})::bigint % 4294967296)::float8"
        return [Condition("changed", f"({value})::float8 - {high} <> {low}", f"is not exact as {wire}")]
    if wire in FLOATS and source == "numeric":
        return [Condition("changed", f"({value})::text::numeric <> ({raw})", f"is not exact as {wire}")]
    if wire in (*FLOATS, "numeric") and source in FLOATS:
        back = f"({value})::{source} <> ({raw})"
        if (source, wire) == ("double precision", "numeric"):  # 15 digits of the largest numbers round beyond the range of the way back
            back = f"CASE WHEN abs({raw}) > 1.797693134862315e308::float8 AND abs({raw}) < 'Infinity' THEN true ELSE {back} END"
        return [Condition("changed", back, f"is not exact as {wire}")]
    if source in STAMPS and wire == "date":
        return [Condition("changed", f"({value})::{source} <> ({raw})", "loses its time of day")]
    if source in STAMPS and wire == "time without time zone":
        return [Condition("changed", f"({raw}) IS NOT NULL", "loses its date")]
    if source == "integer" and wire == "boolean":
        return [Condition("changed", f"({raw}) NOT IN (0, 1)", "is neither 0 nor 1")]
    if (source, wire) == ("json", "jsonb"):
        return [_duplicate_keys(raw, value)]
    if source == "jsonb":
        return [Condition("changed", f"coalesce(to_jsonb({value}), 'null') <> ({raw})", f"is not exact as {wire}")]
    if (source, wire) == ("timestamp with time zone", "time with time zone"):
        return [Condition("changed", f"({raw}) IS NOT NULL", "loses its date")]
    if wire.removesuffix("[]") in FLOATS and source.endswith("[]"):  # float to numeric keeps 6 or 15 digits only, to text all
        return [Condition("changed", f"({value})::text[]::numeric[] <> ({raw})::numeric[]", f"has an item that is not exact as {wire}")]
    # Any other cast must lead back; where there is no way back, the scan says that it cannot tell.
    shown = "::text" if source in _AREAS else ""
    return [Condition("changed", f"(({value})::{source}){shown} <> ({raw}){shown}", f"is not the same as {wire}")]


def _read(raw: str, value: str, wire: str) -> list[Condition]:
    """Return the conditions under which a text, read as a value of the wire type, says less than the text did."""
    if wire == "jsonb":
        return [_duplicate_keys(raw, value)]
    if wire in FLOATS:
        return [Condition("changed", f"({value})::text::numeric <> CASE WHEN ({value}) IS NULL THEN NULL ELSE ({raw})::numeric END", f"is not exact as {wire}")]
    if wire not in (*STAMPS, "date", "time without time zone", "time with time zone"):
        return []
    known = f"({value}) IS NOT NULL AND ({raw})::text"
    found = [
        Condition("changed", f"{known} ~* {literal(_MOVING)}", "is a word whose meaning changes with the clock"),
        Condition("changed", f"{known} ~ {literal(_FINER)}", "is rounded to 6 digits of a second"),
    ]
    if wire in ("date", "timestamp without time zone"):
        within = f"({value}) BETWEEN '4713-01-02 BC' AND '294276-12-30'"
        sql = f"CASE WHEN {within} THEN ({raw})::timestamptz <> ({value})::timestamptz ELSE false END"
        found.append(Condition("changed", sql, "loses its time of day" if wire == "date" else "loses its time zone"))
    elif wire == "time without time zone":
        found.append(Condition("changed", f"{known} ~ {literal(_DATED)}", "loses its date or its time zone"))
    return found


def _duplicate_keys(raw: str, value: str) -> Condition:
    return Condition("changed", f"{_colons(f'({raw})::text')} <> {_colons(f'({value})::text')}", "loses duplicate keys of an object")


def _colons(text: str) -> str:
    bare = f"regexp_replace({text}, {literal(_STRING)}, '', 'g')"
    return f"(char_length({bare}) - char_length(replace({bare}, ':', '')))"


def _outside(raw: str, source: str, wire: str) -> str:
    low, high = INTEGERS[wire]
    if source in INTEGERS:
        return f"({raw}) NOT BETWEEN {low} AND {high}"
    if source == "numeric":
        return f"round({raw}) NOT BETWEEN {low} AND {high}"
    return f"NOT (round(({raw})::float8) >= '{low}'::float8 AND round(({raw})::float8) < '{high + 1}'::float8)"


def _each(condition: Condition, value: str, column: ColumnSpec) -> Condition:
    if not column.wire_type.endswith("[]"):
        return condition
    return Condition(condition.rule, f"EXISTS (SELECT FROM unnest({value}) AS item WHERE {condition.sql})", f"has an item that {condition.message}")


def _base(column: ColumnSpec) -> str:
    return column.domain.base if column.domain else column.type


def _spelled(name: str) -> str:
    return {"character": "bpchar"}.get(name, name)
