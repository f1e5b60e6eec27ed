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
from . import ids
from . import mapping as m
from .model import Cell, Lookup, Part
from .yaml_tree import suggest

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
        if entity not in self._minters:
            text = f"{place}: column {name}: no mapping mints {entity!r}{suggest(entity, tuple(self._minters))}"
            raise Consequence(text) if "mappings" in self._mistakes.unread else MigrationError(text)
        key, null = self._minters[entity][2].key, name in self._null
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

    def key_types(self, part: m.Part) -> tuple[str, ...]:
        """Return the types of a part's key: those of the entity that it goes through, if any."""
        through = self._minters.get(part.key.translate) if part.key.translate else None
        return through[2].key.types if through else part.key.types

    def _shown(self, entity: str, sql: str, carried: bool) -> str:
        """Return the SQL of what a lookup shows."""
        if (entity, sql, carried) not in self._found:
            bare = dataclasses.replace(self._minters[entity][2], columns=(), dropped={}, parents={}, counted={})
            self._found[entity, sql, carried] = Lookup(f"migration {len(self._found) + 1}", sql, self._project(bare, entity), carried)
        return f"src.{ident(self._found[entity, sql, carried].name)}"


def own_cell(name: str, entity: str, part: m.Part) -> Cell:
    """Return the cell of an id that is made here: computed from the key, or kept."""
    if part.key.keep is not None:
        kept = f"uuid_send((src.{ident(part.key.keep)})::uuid)"
        return Cell(name, kept, "bytea", is_id=True, entity=entity, reads=(part.key.keep,), place=part.key.place, kept=True)
    fields = [_key_field(f"src.{ident(column)}", kind) for column, kind in zip(part.key.columns, part.key.types, strict=True)]
    return Cell(name, ids.expression(entity, fields), "bytea", is_id=True, entity=entity, reads=part.key.columns, place=part.key.place)


def _key_field(sql: str, kind: str) -> str:
    return ids.integer_field(sql) if kind == "integer" else ids.text_field(sql)
