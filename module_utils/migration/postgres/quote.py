# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quote names and texts for SQL, without a connection.

psycopg2.sql needs a connection to quote an identifier. A plan's SQL is made, parsed, digested and shown on a controller
that is connected to nothing, so it is composed from these functions instead, and from nothing else that is named outside.
Source: PostgreSQL manual, 4.1.1 "Identifiers and Key Words" and 4.1.2.1 "String Constants".
"""

from __future__ import annotations

from collections.abc import Iterable


def ident(name: str) -> str:
    """Return `name` as a quoted identifier; ValueError when PostgreSQL could not have such a name."""
    if not name or "\0" in name or len(name.encode()) > 63:
        raise ValueError(f"not a PostgreSQL name: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    """Return `schema`.`name`, both quoted."""
    return f"{ident(schema)}.{ident(name)}"


def array(values: Iterable[str]) -> str:
    """Return texts as a constant that any array type takes; cast it. ValueError on a zero byte."""
    return literal("{" + ",".join('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values) + "}")


def literal(text: str) -> str:
    """Return `text` as a string constant, whatever standard_conforming_strings says; ValueError on a zero byte."""
    if "\0" in text:
        raise ValueError("a PostgreSQL text cannot hold a zero byte")
    quoted = "'" + text.replace("'", "''") + "'"
    return "E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted
