# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse trees and names written back as SQL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..postgres.quote import ident
from .parser import COL_NAME_KEYWORDS, RESERVED_KEYWORDS, TYPE_FUNC_NAME_KEYWORDS, RawStream, Visitor, ast, pglast


def deparse(node: Any) -> str:
    """Return an expression as SQL that parses to the same tree; ValueError when it would not."""
    text = str(RawStream(special_functions=True)(node))
    again: Any = pglast.parse_sql(f"SELECT {text}")[0].stmt
    again = again.targetList[0].val
    if _shape(again) != _shape(node):
        raise ValueError(text)
    return text


def _shape(node: Any) -> str:
    """Return a tree as text, without what only says how it was written."""
    return re.sub(r" (funcformat|rexpr_list_start|rexpr_list_end|typemod)=(<[^>]*>|\d+)", "", repr(node))


def columns_of(node: Any) -> list[str]:
    """Return the columns that an expression names, once each, in order."""
    found: list[str] = []

    class Columns(Visitor):
        def visit_ColumnRef(self, ancestors: Any, ref: Any) -> None:
            last = ref.fields[-1]
            if isinstance(last, ast.String) and last.sval is not None and last.sval not in found:
                found.append(last.sval)

    Columns()(node)
    return found


def strings(nodes: Any) -> list[str]:
    """Return a list of names as text."""
    return [node.sval for node in nodes or ()]


def dotted(nodes: Any) -> str:
    """Return a name of several parts as SQL."""
    return ".".join(spell(name) if name != "C" else '"C"' for name in strings(nodes))


def name_list(names: Sequence[str]) -> str:
    """Return names as a list of SQL identifiers."""
    return ", ".join(ident(name) for name in names)


def spell(name: str) -> str:
    """Return a name as quote_identifier() spells it: quoted only where it must be."""
    keywords = (RESERVED_KEYWORDS, COL_NAME_KEYWORDS, TYPE_FUNC_NAME_KEYWORDS)
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name) and not any(name in words for words in keywords):
        return name
    return ident(name)
