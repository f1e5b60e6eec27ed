# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""References that become NULL by policy (`foreign_key: null`), because the row that they name is not there or is quarantined.

The projection looks the row up itself. Which rows are quarantined is in the targets, so a connection to the source is told: in settings of
its session, a list for each entity. Whoever reads a projection connects by Context.connect_source(), which does so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..postgres import driver
from ..postgres.quote import array
from .model import Cell, Part, Plan, Target, quarantine_setting
from .predicates import none_of

Quarantined = Mapping[tuple[str, str], Sequence[str]]  # (target, part): source keys


@dataclass(frozen=True)
class Nulled:
    """How many rows of a target lose a reference to rows that are not there or are quarantined."""

    target: str
    column: str
    refers_to: str
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can carry it."""
        return asdict(self)


def homes(plan: Plan) -> dict[str, tuple[Target, Part]]:
    """Return the target and the part that mint each entity whose quarantined keys a projection must know."""
    found = {}
    for entity in plan.entities:
        if entity.name in plan.needed_quarantine:
            for target in plan.of(entity.service):
                for part in target.parts if target.table == entity.target else ():
                    if part.entity == entity.name:
                        found[entity.name] = (target, part)
    return found


def recorded(plan: Plan, ask: Callable[[str, str], Sequence[tuple[Any, ...]]]) -> dict[tuple[str, str], list[str]]:
    """Return the quarantined keys of those parts by the ledgers; `ask` runs a statement on a service's database."""
    found: dict[tuple[str, str], list[str]] = {}
    services = dict.fromkeys(target.service for target, _ in homes(plan).values())
    for service in services:
        if ask(service, "SELECT to_regclass('migration.rejects')")[0][0] is None:
            continue
        names = [target.name for target, _ in homes(plan).values() if target.service == service]
        statement = f"SELECT target, coalesce(part, ''), source_key FROM migration.rejects WHERE target = ANY ({array(names)}::text[])"
        for name, part, key in ask(service, statement):
            found.setdefault((name, part), []).append(key)
    return found


def tell(connection: driver.Connection, plan: Plan, quarantined: Quarantined) -> None:
    """Tell a connection to the source which keys are quarantined; it must not be in a transaction, and is in none afterwards."""
    for entity, (target, part) in homes(plan).items():
        keys = quarantined.get((target.name, part.name), ())
        driver.rows(connection, "SELECT set_config(%s, (%s::text[])::text, false)", (quarantine_setting(entity), list(keys)))
    if not connection.autocommit:
        connection.commit()


def cells(plan: Plan) -> list[tuple[Target, Part, Cell]]:
    """Return the references that may become NULL."""
    return [(target, part, cell) for target in plan.targets for part in target.parts for cell in part.cells if becomes_null(target, cell)]


def becomes_null(target: Target, cell: Cell) -> bool:
    """Tell whether the operator chose that a reference becomes NULL where it hangs."""
    chosen = (policy for policy in target.policies if policy.column == cell.name and policy.rule == "foreign_key")
    return cell.is_id and cell.key is not None and any(policy.policy == "null" for policy in chosen)


def count(ask: Callable[[str], Sequence[tuple[Any, ...]]], plan: Plan, schema: str, refused: Quarantined) -> tuple[Nulled, ...]:
    """Return the references that become NULL; `ask` runs a statement on the source by a connection that was told of the quarantined keys."""
    found: dict[tuple[str, str, str], int] = {}
    for target, part, cell in cells(plan):
        place = (target.name, cell.name, str(cell.entity))
        keys = refused.get((target.name, part.name), ())
        own = f" AND {none_of(keys)(part.key_text)}" if keys else ""
        statement = f"SELECT count(*) FROM {part.source(schema)} WHERE ({cell.key}) IS NOT NULL AND ({cell.sql}) IS NULL{own}"
        found[place] = found.get(place, 0) + int(ask(statement)[0][0])
    return tuple(Nulled(*place, rows) for place, rows in found.items())
