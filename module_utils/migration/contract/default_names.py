# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names that PostgreSQL chooses where the SQL leaves them out (src/backend/commands/indexcmds.c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def choose(table: str, columns: Sequence[str] | None, label: str, taken: Callable[[str], bool]) -> str:
    """Return the first name of a table's index or constraint that is free (ChooseIndexName, ChooseConstraintName)."""
    middle = "_".join(columns or ()) or None
    if middle is not None:
        middle = middle.encode()[:63].decode(errors="ignore")
    number = 0
    while True:
        name = _object_name(table, middle, f"{label}{number or ''}")
        if not taken(name):
            return name
        number += 1


def expression_name(node: Any) -> str:
    """Return the name that PostgreSQL gives to an index key that is an expression (FigureIndexColname)."""
    kind = type(node).__name__
    if kind == "FuncCall":
        return str(node.funcname[-1].sval)
    if kind == "TypeCast":
        inner = expression_name(node.arg)
        return inner if inner != "expr" else str(node.typeName.names[-1].sval)
    if kind == "ColumnRef":
        return str(node.fields[-1].sval)
    return "coalesce" if kind == "CoalesceExpr" else "expr"


def numbered(names: Sequence[str]) -> list[str]:
    """Return index column names made distinct, as ChooseIndexColumnNames does."""
    result: list[str] = []
    for name in names:
        chosen, number = name, 0
        while chosen in result:
            number += 1
            chosen = f"{name}{number}"
        result.append(chosen)
    return result


def _object_name(first: str, second: str | None, label: str) -> str:
    """Return `first_second_label`, the longer of the two cut until it fits (makeObjectName)."""
    one, two = first.encode(), second.encode() if second is not None else b""
    overhead = len(label) + 1 + (1 if second is not None else 0)
    while len(one) + len(two) > 63 - overhead:
        if len(one) > len(two):
            one = one[:-1]
        else:
            two = two[:-1]
    parts = [one.decode(errors="ignore")]
    if second is not None:
        parts.append(two.decode(errors="ignore"))
    return "_".join([*parts, label])
