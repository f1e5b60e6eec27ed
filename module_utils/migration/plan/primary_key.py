# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gives a target's primary key its values: `key` one uuid, or `columns` each column of any other. Controller only."""

from __future__ import annotations

from ..contract.model import TableSpec
from ..errors import MigrationError
from . import mapping as m
from .model import Part


def identity(mapping: m.Mapping, spec: TableSpec) -> tuple[str, ...]:
    """Return the primary key's columns; MigrationError where there is none, or a part of the mapping gives it no value."""
    keys = [constraint.columns for constraint in spec.constraints if constraint.kind == "primary_key"]
    if len(keys) != 1:
        raise MigrationError(f"{mapping.path}: {spec.schema}.{spec.name} needs a primary key in the schema SQL")
    (names,) = keys
    kinds = {column.name: column.type for column in spec.columns}
    if len(names) == 1 and kinds[names[0]] == "uuid":
        return names
    shown = f"{spec.schema}.{spec.name} ({', '.join(f'{name} {kinds[name]}' for name in names)})"
    for part in mapping.parts:
        given = {column.name for column in part.columns} | part.unread
        missing = ", ".join(name for name in names if name not in given)
        if missing and m.EVERY not in given:
            raise MigrationError(f"{part.place}: the primary key {shown} is not one uuid that 'key' could mint, so 'columns' gives it: {missing} is missing")
        if part.key.mints or part.key.translate:
            raise MigrationError(f"{part.key.place}: the primary key {shown} is not one uuid, so 'key' cannot mint, keep or map it; leave that out")
    return names


def minted_column(spec: TableSpec, names: tuple[str, ...]) -> str | None:
    """Return the column whose values `key` gives, or None."""
    return names[0] if len(names) == 1 and any(column.name == names[0] and column.type == "uuid" for column in spec.columns) else None


def require_nullable(policy: m.Policy, mapping: m.Mapping, spec: TableSpec, parts: tuple[Part, ...]) -> None:
    """Raise MigrationError where a reference that hangs cannot become NULL."""
    place = f"{policy.place}: policy {policy.column}.foreign_key: null"
    column = next((item for item in spec.columns if item.name == policy.column), None)
    if column is None or not any(cell.name == policy.column and cell.is_id and cell.key for part in parts for cell in part.cells):
        raise MigrationError(f"{place}: {policy.column!r} is no reference through an id map ('map'); choose block or quarantine")
    if column.not_null or policy.column in parts[0].identity:
        raise MigrationError(f"{place}: {mapping.service}.{mapping.table}.{policy.column} is NOT NULL; choose block or quarantine")
