# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cells of a part that hold ids: its rows' own, and references through an id map. Controller only.

An id is computed from the key, or it is a UUID that the source has (`keep`): a reference then looks it up where it is minted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from ..errors import MigrationError
from ..mistakes import Consequence, Mistakes
from ..postgres.quote import ident
from ..yaml_tree import suggest
from . import embedded_ids, ids
from . import mapping as m
from .embedded_ids import EACH, Embedded
from .model import Cell, Lookup, Part

Minter = tuple[str, str, m.Part]  # service, target's table, part
Project = Callable[[m.Part, str], Part]  # a part and its entity: what reads its source and nothing of its columns


class IdCells:
    """Makes the cells of one part; `lookups` are what they look up. `null` are the columns whose hanging references become NULL."""

    def __init__(self, minters: Mapping[str, Minter], null: frozenset[str], mistakes: Mistakes, project: Project) -> None:
        self._minters, self._null, self._mistakes, self._project = minters, null, mistakes, project
        self._found: dict[tuple[str, str, bool], Lookup] = {}

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """Return what the cells look up, each once."""
        return tuple(self._found.values())

    def own(self, name: str, entity: str, part: m.Part) -> Cell:
        """Return the cell that `key` gives: computed, kept, or another entity's id."""
        if part.key.translate is not None:
            key = next(iter(part.key.columns), "")
            return self.reference(name, part.key.translate, f"src.{ident(key)}", (key,), part.key.place)
        return own_cell(name, entity, part)

    def reference(self, name: str, entity: str, sql: str, reads: tuple[str, ...], place: str) -> Cell:
        """Return the cell of a reference through an id map; `sql` is that of the source key. MigrationError where nothing mints the entity."""
        key, null = self._minter(name, entity, place)[2].key, name in self._null
        kept = key.keep is not None
        if kept and not null and (key.keep,) == key.columns:  # a reference to the kept id itself
            expression = f"uuid_send(({sql})::uuid)"
        elif kept:
            expression = f"uuid_send({self._shown(entity, sql, null)})"
        else:
            expression = ids.expression(entity, [_key_field(sql, next(iter(key.types), "integer"))])
            if null:
                expression = f"CASE WHEN {self._shown(entity, sql, null)} THEN {expression} END"
        return Cell(name, expression, "bytea", is_id=True, entity=entity, key=sql, reads=reads, place=place, kept=kept)

    def inside(self, name: str, wire_type: str, chosen: str | Mapping[str, str], sql: str, reads: tuple[str, ...], place: str) -> Cell:
        """Return the cell of a value with ids in it: a uuid[], or a jsonb document (`chosen` says which entity each path names)."""
        if isinstance(chosen, str):
            embedded = [self._embedded(name, chosen, sql, None, place)]
            value = embedded_ids.array(sql, self._translate(embedded[0]))
        else:
            if wire_type != "jsonb":
                raise MigrationError(f"{place}: column {name}: 'map' with paths is for a jsonb column, the target column is {wire_type}")
            paths: dict[tuple[str, ...], str] = {}
            for path, entity in chosen.items():
                steps = embedded_ids.steps(path)
                if steps is None:
                    raise MigrationError(f"{place}: column {name}: {path!r} is no path; write $.name, $.list[*] or $.list[*].name (\"quoted\" for other names)")
                if any(steps[: len(other)] == other[: len(steps)] or _mixed(steps, other) for other in paths):
                    raise MigrationError(f"{place}: column {name}: the path {path!r} lies where another does; one path says what a place holds")
                paths[steps] = entity
            embedded = [self._embedded(name, entity, sql, steps, place) for steps, entity in paths.items()]
            value = embedded_ids.document(sql, {item.steps or (): self._translate(item) for item in embedded})
        return Cell(name, f"({value})::{wire_type}", wire_type, reads=reads, place=place, embedded=tuple(embedded))

    def _embedded(self, name: str, entity: str, sql: str, steps: tuple[str, ...] | None, place: str) -> Embedded:
        key = self._minter(name, entity, place)[2].key
        return Embedded(entity, sql, steps, next(iter(key.types), "integer") == "integer")

    def _translate(self, embedded: Embedded) -> embedded_ids.Translate:
        """Return what makes the SQL of an id's UUID from the SQL of its text."""
        part = self._minters[embedded.entity][2]
        if part.key.keep is not None:
            shown = self._add(embedded.entity, repr(embedded), Lookup("", "", self._home(embedded.entity), embedded=embedded))
            return lambda text: f"({shown} ->> {text})::uuid"
        cast, kind = ("int8", "integer") if embedded.whole else ("text", "text")

        def computed(text: str) -> str:
            return f"encode({ids.expression(embedded.entity, [_key_field(f'({text})::{cast}', kind)])}, 'hex')::uuid"

        return computed

    def key_types(self, part: m.Part) -> tuple[str, ...]:
        """Return the types of a part's key: those of the entity that it goes through, if any."""
        through = self._minters.get(part.key.translate) if part.key.translate else None
        return through[2].key.types if through else part.key.types

    def _shown(self, entity: str, sql: str, carried: bool) -> str:
        """Return the SQL of what a lookup shows."""
        return self._add(entity, sql, Lookup("", sql, self._home(entity), carried))

    def _add(self, entity: str, sql: str, lookup: Lookup) -> str:
        named = dataclasses.replace(lookup, name=f"migration {len(self._found) + 1}")
        return f"src.{ident(self._found.setdefault((entity, sql, lookup.carried), named).name)}"

    def _home(self, entity: str) -> Part:
        return self._project(dataclasses.replace(self._minters[entity][2], columns=(), dropped={}, parents={}, counted={}), entity)

    def _minter(self, name: str, entity: str, place: str) -> Minter:
        """Return what mints an entity; MigrationError where nothing does."""
        if entity not in self._minters:
            text = f"{place}: column {name}: no mapping mints {entity!r}{suggest(entity, tuple(self._minters))}"
            raise Consequence(text) if "mappings" in self._mistakes.unread else MigrationError(text)
        return self._minters[entity]


def own_cell(name: str, entity: str, part: m.Part) -> Cell:
    """Return the cell of an id that is made here: computed from the key, or kept."""
    if part.key.keep is not None:
        kept = f"uuid_send((src.{ident(part.key.keep)})::uuid)"
        return Cell(name, kept, "bytea", is_id=True, entity=entity, reads=(part.key.keep,), place=part.key.place, kept=True)
    fields = [_key_field(f"src.{ident(column)}", kind) for column, kind in zip(part.key.columns, part.key.types, strict=True)]
    return Cell(name, ids.expression(entity, fields), "bytea", is_id=True, entity=entity, reads=part.key.columns, place=part.key.place)


def _mixed(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Tell whether one path goes to the elements of what the other takes for an object."""
    here = next((number for number, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs), None)
    return here is not None and EACH in (one[here], other[here])


def _key_field(sql: str, kind: str) -> str:
    return ids.integer_field(sql) if kind == "integer" else ids.text_field(sql)
