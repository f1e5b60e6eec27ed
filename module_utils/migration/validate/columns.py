# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Require that the targets still are the tables that the plan knows, before their values are compared.

A value is cast to the plan's type before it is digested: in a column of another type that could make two different values
one (1.3 in a column that was an integer), and a view can show what no table holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import MigrationError
from ..plan.model import Target
from ..postgres.quote import array, literal
from .readers import Sides

SHOWN = 5  # faults in one message
_TABLES = ("r", "p")
_TEXT = "'{text,varchar}'::regtype[]"  # one is as good as the other
_COLUMNS = """
SELECT c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod),
       coalesce(to_regtype(wanted.type) = a.atttypid OR (to_regtype(wanted.type) = ANY ({text}) AND a.atttypid = ANY ({text})), true)
       AND (a.atttypid <> 'numeric'::regtype OR format_type(a.atttypid, a.atttypmod) = wanted.type),
       wanted.name IS NOT NULL, a.attgenerated <> ''
FROM pg_class AS c
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN unnest({names}::text[], {types}::text[]) AS wanted (name, type) ON wanted.name = a.attname
WHERE c.oid = to_regclass({table}) ORDER BY a.attnum
"""


def require(sides: Sides, targets: Sequence[Target]) -> tuple[str, ...]:
    """Return the columns (service.table.column) that the targets have and no mapping fills; a table that is not there is not judged here.

    MigrationError naming each target that is no table, and each column that is missing or of another type.
    """
    faults: list[str] = []
    unmapped: list[str] = []
    for target in targets:
        found = sides.ask(
            target.service,
            _COLUMNS.format(text=_TEXT, names=array(target.columns), types=array(target.column_types), table=literal(target.qualified)),
        )
        if found:
            faults += _faults(target, found)
            unmapped += [f"{target.name}.{name}" for _, name, _, _, wanted, generated in found if name is not None and not wanted and not generated]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise MigrationError(
            f"{'; '.join(faults[:SHOWN])}{more}: nothing was compared; playbooks/schema.yml --check --diff compares the tables with the contract"
        )
    return tuple(unmapped)


def _faults(target: Target, found: Sequence[tuple[str, str | None, str | None, bool, bool, bool]]) -> Iterator[str]:
    if found[0][0] not in _TABLES:
        yield f"{target.name} is no table (pg_class.relkind {found[0][0]!r})"
        return
    there = {name: (kind, same) for _, name, kind, same, _, _ in found}
    for name, declared in zip(target.columns, target.column_types, strict=True):
        if name not in there:
            yield f"{target.name}.{name} is missing"
        elif not there[name][1]:
            yield f"{target.name}.{name} has type {there[name][0]}, the plan has {declared}"
