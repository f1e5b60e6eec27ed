# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rows of a target are the migration's, and which a service has made itself.

A computed id tells by its form. A kept id can have any: the id map remembers it. A primary key of values that others have too (a parent's id,
the columns of a join table) tells nothing: there a row that the source does not have is nobody's known row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..postgres.quote import array, ident, literal
from . import ids, row_id
from .model import BOOKKEEPING, Target

Ask = Callable[[str], Sequence[tuple[object, ...]]]


def condition(target: Target, alias: str) -> str:
    """Return the condition that a stored row is known as the migration's; false where nothing tells."""
    kind = row_id.kind(target)
    if kind == row_id.FOREIGN:
        return "false"
    if target.bookkeeping and kind == row_id.KEPT:
        return "true"
    own = f"{alias}.{ident(target.identity[0])}"
    if kind == row_id.COMPUTED:
        return ids.minted_sql(own)
    entities = [part.entity for part in target.parts if part.keep]
    kept = f"EXISTS (SELECT FROM {BOOKKEEPING}.id_map AS known WHERE known.entity = ANY ({array(entities)}::text[]) AND known.id = {own})"
    return kept if len(entities) == len(target.parts) else f"({ids.minted_sql(own)} OR {kept})"


def loaded_bare(target: Target, ask: Ask) -> bool:
    """Tell whether nothing tells the rows of a table, but the transfer found it empty and bare: nobody else has used it then."""
    if row_id.kind(target) != row_id.FOREIGN:
        return False
    return bool(ask(f"SELECT EXISTS (SELECT FROM {BOOKKEEPING}.chunks WHERE target = {literal(target.name)} AND mode = 'load')")[0][0])


def known(target: Target, names: Sequence[str], ask: Ask) -> set[str]:
    """Return those of some rows of a target, by their names, that are known as the migration's; `ask` runs a statement on the target."""
    kind = row_id.kind(target)
    if kind == row_id.FOREIGN:
        return set()
    if target.bookkeeping and kind == row_id.KEPT:
        return set(names)
    found = {name for name in names if ids.minted(name)} if any(not part.keep for part in target.parts) else set()
    if kind == row_id.KEPT:
        entities = [part.entity for part in target.parts if part.keep]
        statement = f"SELECT id::text FROM {BOOKKEEPING}.id_map WHERE entity = ANY ({array(entities)}::text[]) AND id = ANY ({array(names)}::uuid[])"
        found |= {str(row[0]) for row in ask(statement)}
    return found
