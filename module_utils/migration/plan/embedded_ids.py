# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ids inside a value: the elements of an array, and what declared paths of a JSON document name; pure SQL.

A path is `$` with members (`.name`, `."any name"`) and elements (`[*]`). Elements of what is no array are the value itself, as in
PostgreSQL's lax paths; a member of an array that is not empty is none, and makes the value malformed, for ids in it would stay behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..postgres.quote import ident, literal

EACH = "[*]"
WHOLE = "^-?(0|[1-9][0-9]{0,17})$"  # an integer as PostgreSQL writes it; a longer one is no key
_STEP = re.compile(r'\.([A-Za-z_][\w$-]*)|\."([^"\\]+)"|(\[\*\])')
_ASTRAY = """'"an array in the place of an object"'::jsonb"""

Translate = Callable[[str], str]  # the SQL of an id as text: the SQL of its UUID


@dataclass(frozen=True)
class Embedded:
    """Ids of `entity` in the value `sql` (over src); `steps` lead to them in a document, None is an array. `whole` keys are integers."""

    entity: str
    sql: str
    steps: tuple[str, ...] | None
    whole: bool

    @property
    def path(self) -> str:
        """Return how messages name the place in the value."""
        return EACH if self.steps is None else shown(self.steps)

    def items(self, value: str | None = None) -> str:
        """Return the query of all ids in the value (or in that of another column), as text `k`."""
        value = value or self.sql
        if self.steps is None:
            return f"SELECT item.k::text AS k FROM unnest({value}) AS item (k) WHERE item.k IS NOT NULL"
        sources, last = [f"(SELECT ({value})::jsonb AS v) AS s0"], "s0.v"
        for number, step in enumerate(self.steps, 1):
            if step == EACH:
                listed = f"CASE WHEN jsonb_typeof({last}) = 'array' THEN {last} ELSE jsonb_build_array({last}) END"
                sources.append(f"LATERAL jsonb_array_elements({listed}) AS s{number} (v)")
            else:
                astray = f"{last} = {_ASTRAY} OR (jsonb_typeof({last}) = 'array' AND {last} <> '[]')"
                sources.append(f"LATERAL (SELECT CASE WHEN {astray} THEN {_ASTRAY} ELSE {last} -> {literal(step)} END AS v) AS s{number}")
            last = f"s{number}.v"
        return f"SELECT {last} #>> '{{}}' AS k FROM {', '.join(sources)} WHERE jsonb_typeof({last}) <> 'null'"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Embedded:
        """Return what dataclasses.asdict() wrote."""
        return cls(**{**data, "steps": None if data["steps"] is None else tuple(data["steps"])})

    def looked_up(self, name: str, key: str, kept: str, home: str) -> str:
        """Return the query of a jsonb object, from each id to its kept UUID; `key` and `kept` are columns of the FROM item `home`."""
        rows = f"(SELECT {key} AS own_key, {kept} AS kept FROM {home}) AS home"
        on = f"home.own_key = {whole_number('each.k')}" if self.whole else 'home.own_key::text COLLATE "C" = each.k COLLATE "C"'
        return f"SELECT jsonb_object_agg(each.k, home.kept) AS {ident(name)} FROM ({self.items()}) AS each JOIN {rows} ON {on}"

    @property
    def malformed(self) -> str:
        """Return the condition that the value holds what cannot be translated."""
        found = []
        if self.whole:
            found.append(f"EXISTS (SELECT FROM ({self.items()}) AS each WHERE each.k !~ {literal(WHOLE)})")
        elif self.steps is not None:
            odd = f"each.k ~ '^[\\[{{]' OR each.k = {_ASTRAY} #>> '{{}}'"
            found.append(f"EXISTS (SELECT FROM ({self.items()}) AS each WHERE {odd})")
        if self.steps is None:
            found.append(f"coalesce(array_ndims({self.sql}) > 1 OR array_lower({self.sql}, 1) <> 1, false)")
        return f"({' OR '.join(found)})"


def whole_number(text: str) -> str:
    """Return the SQL of a text as the integer that it is, or NULL."""
    return f"(CASE WHEN ({text}) ~ {literal(WHOLE)} THEN ({text})::int8 END)"


def steps(path: str) -> tuple[str, ...] | None:
    """Return the steps of a path, or None when it is none."""
    found, rest = [], path.removeprefix("$")
    while rest and rest != path:
        match = _STEP.match(rest)
        if match is None:
            return None
        found.append(match[1] or match[2] or EACH)
        rest = rest[match.end() :]
    return tuple(found) or None


def shown(path: Sequence[str]) -> str:
    """Return the path of some steps."""
    words = (step if step == EACH else f".{step}" if re.fullmatch(r"[A-Za-z_][\w$-]*", step) else f'."{step}"' for step in path)
    return "$" + "".join(words)


def array(sql: str, translate: Translate) -> str:
    """Return the SQL of an array with each id translated: in the same order, with the same NULLs and repetitions."""
    each = f"CASE WHEN item.k IS NOT NULL THEN {translate('item.k::text')} END"
    return f"CASE WHEN {sql} IS NOT NULL THEN ARRAY(SELECT {each} FROM unnest({sql}) WITH ORDINALITY AS item (k, n) ORDER BY item.n) END"


def document(sql: str, paths: Mapping[tuple[str, ...], Translate]) -> str:
    """Return the SQL of a document with the ids at some paths translated, and everything else as it is."""
    return _rewritten(f"({sql})::jsonb", paths, 0)


def _rewritten(value: str, paths: Mapping[tuple[str, ...], Translate], depth: int) -> str:
    if () in paths:
        text = f"({value} #>> '{{}}')"
        return f"CASE WHEN {value} IS NULL OR jsonb_typeof({value}) = 'null' THEN {value} ELSE to_jsonb({paths[()](text)}) END"
    own = f"d{depth}.v"
    below: dict[str, dict[tuple[str, ...], Translate]] = {}
    for path, translate in paths.items():
        below.setdefault(path[0], {})[path[1:]] = translate
    result = own
    for step, rest in below.items():
        if step == EACH:
            item = f"e{depth}.v"
            each = f"SELECT coalesce(jsonb_agg({_rewritten(item, rest, depth + 1)} ORDER BY e{depth}.n), '[]') FROM jsonb_array_elements({own})"
            listed = f"({each} WITH ORDINALITY AS e{depth} (v, n))"
            return _apart(value, depth, f"CASE WHEN jsonb_typeof({own}) = 'array' THEN {listed} ELSE {_rewritten(own, rest, depth + 1)} END")
        name = literal(step)
        new = _rewritten(f"({own} -> {name})", rest, depth + 1)
        result = f"jsonb_set({result}, ARRAY[{name}], coalesce({new}, 'null'), false)"
    # A member of an array that is not empty raises an error: its ids would stay behind.
    inside = f"jsonb_typeof({own}) = 'object' OR (jsonb_typeof({own}) = 'array' AND {own} <> '[]')"
    return _apart(value, depth, f"CASE WHEN {inside} THEN {result} ELSE {own} END")


def _apart(value: str, depth: int, sql: str) -> str:
    """Return an expression over a value that is computed once; OFFSET 0 keeps the planner from writing it out at each place."""
    return f"(SELECT {sql} FROM (SELECT {value} AS v OFFSET 0) AS d{depth})"
