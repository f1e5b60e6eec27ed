# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of every row of every mapped source table: carried, merged, quarantined, or dropped by declaration.

A row is carried where a part makes a row of its own from it, merged where it only contributes to rows that others make
too (a group's permission, a content type), quarantined where all that it would make stays behind, unselected where the `where` of its mapping
leaves it out, and dropped where the mapping's query makes nothing of it. They are counted apart from the rows, so that a sum that is not the rows
is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..plan.model import Part, Plan, Touch
from ..plan.predicates import none_of
from ..postgres.quote import ident, qualified
from .findings import STOP, Finding
from .row_checks import scanned
from .source_catalog import SourceCatalog

Ask = Callable[[str], list[tuple[Any, ...]]]  # a statement on the source: its rows
Refused = Mapping[tuple[str, str], Sequence[str]]  # (target, part): the source keys that are quarantined


NOT_SELECTED = "not selected by where"


@dataclass(frozen=True)
class Account:
    """What becomes of the rows of one source table."""

    table: str
    rows: int
    carried: int
    merged: int
    quarantined: int
    dropped: int
    unselected: int = 0

    @property
    def balanced(self) -> bool:
        """Return whether every row is accounted for, once."""
        return self.carried + self.merged + self.quarantined + self.dropped + self.unselected == self.rows

    @property
    def line(self) -> str:
        """Return the account in one line."""
        return (
            f"{self.table}: {self.rows} rows, but {self.carried} carried + {self.merged} merged + {self.quarantined} quarantined"
            f" + {self.dropped} dropped + {self.unselected} {NOT_SELECTED}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the account as JSON can carry it."""
        return asdict(self)


@dataclass(frozen=True)
class _Share:
    """A part that a table goes into: `own` when each of its rows makes a row there, `link` is (table's columns, part's columns)."""

    part: Part
    refused: Sequence[str]
    own: bool
    link: tuple[tuple[str, ...], tuple[str, ...]]

    def joined(self, schema: str, alias: str, *, kept: bool) -> str:
        """Return the join that tells of each row of the table (alias t) whether it is in the part, or among what it keeps.

        A join, not a subquery: one that no memory holds would be run anew for every row.
        """
        results = ", ".join(f"src.{ident(name)} AS k{number}" for number, name in enumerate(self.link[1]))
        where = f" WHERE {none_of(self.refused)(self.part.key_text)}" if kept and self.refused else ""
        on = " AND ".join(f"{alias}.k{number} = t.{ident(name)}" for number, name in enumerate(self.link[0]))
        return f" LEFT JOIN (SELECT DISTINCT true AS hit, {results} FROM {self.part.source(schema)}{where}) AS {alias} ON {on}"

    def covering(self, schema: str, table: str) -> str:
        """Return the statement that counts the table's rows, and those of them that are in the part: a semi-join, which reads the part once."""
        on = " AND ".join(f"src.{ident(theirs)} = t.{ident(ours)}" for ours, theirs in zip(*self.link, strict=True))
        inside = f"SELECT count(*) FROM {table} AS t WHERE EXISTS (SELECT FROM {self.part.source(schema)} WHERE {on})"
        return f"SELECT (SELECT count(*) FROM {table}), ({inside})"

    def expected(self, ask: Ask, schema: str) -> tuple[float, float]:
        """Return the rows that the planner expects of the part, and what it thinks that reading them costs, negated: more is better."""
        keys = [f"src.{ident(name)}" for name in self.link[1]]
        found = ask(f"EXPLAIN (FORMAT JSON) {self.part.select_columns(keys, schema)}")[0][0]
        plan = (found if isinstance(found, list) else json.loads(found))[0]["Plan"]
        return float(plan["Plan Rows"]), -float(plan["Total Cost"])


def account(ask: Ask, plan: Plan, source: SourceCatalog, refused: Refused) -> tuple[Account, ...]:
    """Return the account of every mapped table, as the source has it when `ask` asks."""
    shares: dict[str, list[_Share]] = {}
    every: set[str] = set()  # tables of which each row may touch every result
    for target, part in scanned(plan):
        keys = refused.get((target.name, part.name), ())
        if part.table is not None:
            shares.setdefault(part.table, []).append(_Share(part, keys, True, (part.key, part.key)))
        for touch in part.touches:
            found = shares.setdefault(touch.table, [])
            if touch.column == "*":
                every.add(touch.table)
            else:
                found.append(_share(part, touch, keys, source))
    return tuple(_account(ask, source.schema, name, found, name in every) for name, found in shares.items() if name in source.tables)


def _share(part: Part, touch: Touch, keys: Sequence[str], source: SourceCatalog) -> _Share:
    """Return how a table goes into a query: row by row where the part's key is its own, else by the column that `refresh` names."""
    columns = source.tables[touch.table].columns if touch.table in source.tables else {}
    if touch.column == touch.result and all(name in columns for name in part.key):
        return _Share(part, keys, True, (part.key, part.key))
    return _Share(part, keys, False, ((touch.column,), (touch.result,)))


def _account(ask: Ask, schema: str, name: str, shares: Sequence[_Share], every: bool) -> Account:
    own = [share for share in shares if share.part.whole] or [share for share in shares if share.own]
    table = qualified(schema, name)
    if own and all(share.part.whole and not share.refused for share in own):  # each row is there: nothing to look for
        return Account(name, *ask(f"SELECT count(*), count(*), 0, 0, 0 FROM {table}")[0])
    selecting = any(share.part.where is not None for share in own)
    if selecting and len(own) == len(shares) and not any(share.part.query or share.refused for share in own):  # the conditions say it all
        chosen = " OR ".join(f"(\n{share.part.where}\n)" for share in own)
        counts = ask(f"SELECT count(*), count(*) FILTER (WHERE {chosen}), 0, 0, 0, count(*) FILTER (WHERE ({chosen}) IS NOT TRUE) FROM {table}")
        return Account(name, *counts[0])
    if own or not every:
        looks = [share for share in own or shares if not share.part.whole and not share.refused]
        # Only a part with at least as many rows can have them all.
        share = max(looks, key=lambda share: share.expected(ask, schema)) if len(looks) > 1 else next(iter(looks), None)
        if share is not None:
            rows, inside = ask(share.covering(schema, table))[0]
            if rows == inside:
                return Account(name, rows, rows, 0, 0, 0) if own else Account(name, rows, 0, rows, 0, 0)
    judging = own or shares
    joins: list[str] = []

    def reaches(chosen: Sequence[_Share], *, kept: bool) -> str:
        hits = []
        for share in chosen:
            hits.append(f"j{len(joins)}.hit IS TRUE")
            joins.append(share.joined(schema, f"j{len(joins)}", kept=kept))
        return " OR ".join(hits) or "false"

    carried = reaches(own, kept=True)
    merged = "true" if every else reaches([share for share in shares if not share.own], kept=True)
    reached = reaches([share for share in judging if share.refused], kept=False)
    # What a table's own part refuses stays behind, whatever else it would contribute to.
    behind, joined = ("reached AND NOT carried", "merged AND NOT (carried OR reached)") if own else ("reached AND NOT merged", "merged")
    statement = (
        f"SELECT count(*), count(*) FILTER (WHERE carried), count(*) FILTER (WHERE {joined}), count(*) FILTER (WHERE {behind}),"
        " count(*) FILTER (WHERE NOT (carried OR merged OR reached))"
        f" FROM (SELECT {carried} AS carried, {merged} AS merged, {reached} AS reached FROM {table} AS t{''.join(joins)}) AS each"
    )
    *found, left = ask(statement)[0]
    return Account(name, *found, *((0, left) if selecting else (left, 0)))


def check(accounts: Sequence[Account]) -> list[Finding]:
    """Return a finding for each table whose rows are not accounted for."""
    step = "this is a fault of the program, report it"
    return [Finding(STOP, item.table, "accounting", item.line.partition(": ")[2], step) for item in accounts if not item.balanced]
