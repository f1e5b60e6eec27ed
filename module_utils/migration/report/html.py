# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of the records as HTML: tables, listings of records, facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

MOST = 200  # rows of a list on the page; report.json has all that the records have
_FIRST = ("level", "target", "table", "name", "place", "part", "kind", "rule", "column", "columns", "source_key", "keys", "id", "count", "rows")
_OUTCOMES = ("passed", "failed", "error", "stop", "warn", "info")


def facts(detail: Mapping[str, Any]) -> str:
    """Show plain values as a table of two columns, lists of records as tables of their own."""
    single = {key: value for key, value in detail.items() if not is_records(value) and not holds_records(value) and value not in ([], {}, "")}
    lists = {key: value for key, value in detail.items() if is_records(value)}
    groups = {key: value for key, value in detail.items() if holds_records(value)}
    shown = grid(("", ""), [[Key(_heading(key)), plain(value)] for key, value in single.items()]) if single else ""
    shown += "".join(f"<h3>{escape(_heading(key))}</h3>{listing(value)}" for key, value in lists.items())
    return shown + "".join(f"<h3>{escape(_heading(key))}</h3>{facts(value)}" for key, value in groups.items())


def is_records(value: Any) -> bool:
    """Tell whether a value is a list of records."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def holds_records(value: Any) -> bool:
    """Tell whether a value is a record with a list of records in it."""
    return isinstance(value, Mapping) and any(is_records(item) for item in value.values())


def listing(records: Sequence[Mapping[str, Any]], file: str = "report.json") -> str:
    """Return records as a table with the columns that any of them fills, the first MOST of them."""
    known = dict.fromkeys(name for item in records[:MOST] for name in item if item[name] not in (None, "", [], {}))
    names = sorted(known, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    rows = [[tag(item[name]) if name == "level" and name in item else brief(item.get(name)) for name in names] for item in records[:MOST]]
    more = f"<p>{len(records) - MOST:,} more are in {escape(file)}.</p>" if len(records) > MOST else ""
    return grid([_heading(name) for name in names], rows) + more


def brief(value: Any) -> Any:
    """Return a value for a narrow column: digests by their first digits, the rest is in report.json; numbers stay numbers."""
    if isinstance(value, str) and len(value) >= 24 and not set(value) - set("0123456789abcdef"):
        return value[:12] + "\u2026"
    if value == "":
        return "-"
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else plain(value)


class Html(str):
    """Text that is HTML already."""


class Figure(str):
    """A number that is written out already."""


class Key(str):
    """The name of a fact."""


def tag(text: Any) -> Html:
    """Return a word in a frame, coloured when it is an outcome or a level."""
    kind = str(text) if str(text) in _OUTCOMES else ""
    return Html(f'<span class="tag {kind}">{escape(str(text))}</span>')


def grid(head: Sequence[str], rows: Sequence[Sequence[Any]], *, last_is_total: bool = False) -> str:
    """Return a table; columns with numbers stand to the right."""
    numeric = [any(isinstance(row[column], (int, float, Figure)) for row in rows) for column in range(len(head))]
    keyed = bool(rows) and isinstance(rows[0][0], Key)
    mark = [' class="k"' if keyed and column == 0 else ' class="n"' if flag else "" for column, flag in enumerate(numeric)]
    kind = ' class="facts"' if keyed else ""
    titles = "".join(f"<th{mark[column]}>{escape(name)}</th>" for column, name in enumerate(head))
    body = []
    for index, row in enumerate(rows):
        total = ' class="total"' if last_is_total and index == len(rows) - 1 else ""
        body.append(f"<tr{total}>" + "".join(f"<td{mark[column]}>{cell(value)}</td>" for column, value in enumerate(row)) + "</tr>")
    thead = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table{kind}>{thead}<tbody>{"".join(body)}</tbody></table></div>'


def cell(value: Any) -> str:
    """Return what stands in a cell."""
    if isinstance(value, Html):
        return value
    return escape(plain(value) if not isinstance(value, str) else value)


def plain(value: Any) -> Any:
    """Return a value as people read it; numbers in columns stay numbers until cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(str(key))} {plain(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(plain(item)) for item in value[:MOST]) or "-"
    return str(value)


def words(name: str) -> str:
    """Return a name of the records as people write it."""
    return name.replace("_", " ")


def _heading(name: str) -> str:
    shown = words(name)
    return shown[:1].upper() + shown[1:]
