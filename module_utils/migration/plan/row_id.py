# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tells a target's rows apart, in SQL for both sides; pure.

A row is named by the text of its uuid, or by the JSON array of its primary key's values where that is not one uuid. 16 bytes stand for the
name where rows are put into buckets or compared as sets: the computed id itself, whose bits are spread evenly, else the start of the name's
sha256, because kept UUIDs may all begin alike (version 7) and a primary key of several columns is no 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..postgres.quote import array, ident, literal
from .model import Cell, Part, Target
from .value_forms import canonical, padded, trimmed

COMPUTED, KEPT, FOREIGN = "computed", "kept", "foreign"


def kind(target: Target) -> str:
    """Return where the names of a target's rows are from: computed by this migration alone, (also) kept, or (also) values that others can have."""
    if any(not _own(target, part) for part in target.parts):
        return FOREIGN
    return KEPT if any(part.keep for part in target.parts) else COMPUTED


def single(target: Target) -> bool:
    """Tell whether the primary key is one uuid."""
    return len(target.identity) == 1 and all(part.identity_cells[0].is_id for part in target.parts)


def spread(target: Target) -> bool:
    """Tell whether the ids themselves are 16 bytes whose bits are spread evenly."""
    return single(target) and not any(part.identity_cells[0].kept for part in target.parts)


def source_name(target: Target, part: Part) -> str:
    """Return the SQL (over src) of a row's name."""
    if single(target):
        return f"encode({part.identity_cells[0].sql}, 'hex')::uuid::text"
    scaled = padded(target, part)
    values = (f"encode({cell.sql}, 'hex')::uuid" if cell.is_id else _value(trimmed(cell.sql, cell.name in scaled), cell.type) for cell in part.identity_cells)
    return f"jsonb_build_array({', '.join(values)})::text"


def target_name(target: Target, alias: str = "t") -> str:
    """Return the SQL of a stored row's name."""
    if single(target):
        return f"{alias}.{ident(target.identity[0])}::text"
    scaled = padded(target, target.parts[0])
    values = (
        f"{alias}.{ident(cell.name)}" if cell.is_id else _value(trimmed(f"{alias}.{ident(cell.name)}", cell.name in scaled), cell.type)
        for cell in target.parts[0].identity_cells
    )
    return f"jsonb_build_array({', '.join(values)})::text"


def source_bytes(target: Target, part: Part) -> str:
    """Return the SQL (over src) of the 16 bytes that stand for a row's name; NULL for a row without an id."""
    return part.identity_cells[0].sql if spread(target) else _hashed(source_name(target, part))


def target_bytes(target: Target, alias: str = "t") -> str:
    """Return the SQL of the 16 bytes that stand for a stored row's name."""
    return f"uuid_send({alias}.{ident(target.identity[0])})" if spread(target) else _hashed(target_name(target, alias))


def among(target: Target, names: Sequence[str], alias: str = "t") -> str:
    """Return the condition that a stored row is one of those named; the primary key's index serves it."""
    if single(target):
        return f"{alias}.{ident(target.identity[0])} = ANY ({literal('{' + ','.join(names) + '}')}::uuid[])"
    own = ", ".join(f"{alias}.{ident(name)}" for name in target.identity)
    return f"({own}) IN (SELECT {values_of(target, 'named.name::jsonb')} FROM unnest({array(names)}::text[]) AS named (name))"


def values_of(target: Target, sql: str) -> str:
    """Return the list of a primary key's values, given the SQL of a name as jsonb."""
    cells = target.parts[0].identity_cells
    return ", ".join(f"({sql} ->> {number})::{'uuid' if cell.is_id else cell.type}" for number, cell in enumerate(cells))


def same(target: Target, one: str, other: str) -> str:
    """Return the condition that two rows, by their aliases, are the same."""
    return " AND ".join(f"{one}.{ident(name)} = {other}.{ident(name)}" for name in target.identity)


def columns(target: Target, alias: str = "") -> str:
    """Return the list of the primary key's columns."""
    return ", ".join(f"{alias}.{ident(name)}" if alias else ident(name) for name in target.identity)


def _own(target: Target, part: Part) -> bool:
    """Tell whether a part's rows have ids of their own entity, or are rows that the migration itself keeps."""
    cells: tuple[Cell, ...] = part.identity_cells
    return target.bookkeeping or (len(cells) == 1 and cells[0].is_id and cells[0].key is None)


def _value(sql: str, kind: str) -> str:
    return f"({sql})::uuid" if kind == "uuid" else canonical(sql, kind)


def _hashed(name: str) -> str:
    return f"substring(sha256(convert_to({name}, 'UTF8')) FROM 1 FOR 16)"
