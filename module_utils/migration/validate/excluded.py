# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quarantined rows: expected nowhere, left out of every comparison, counted in every report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..plan.model import BOOKKEEPING, Part, Target
from ..plan.predicates import Predicate
from ..postgres.quote import array
from .readers import Sides

Rejects = Mapping[str, Mapping[str, Sequence[str]]]  # target -> part -> source keys


def rejected(sides: Sides, targets: Sequence[Target]) -> Rejects:
    """Return the quarantined source keys by target and part."""
    found: dict[str, dict[str, list[str]]] = {target.name: {} for target in targets}
    for service in dict.fromkeys(target.service for target in targets):
        if sides.ask(service, f"SELECT to_regclass('{BOOKKEEPING}.rejects')")[0][0] is None:
            continue
        for name, part, key in sides.ask(service, f"SELECT DISTINCT target, coalesce(part, ''), source_key FROM {BOOKKEEPING}.rejects"):
            if name in found:
                found[name].setdefault(part, []).append(key)
    return found


def without(part: Part, rejects: Mapping[str, Sequence[str]], predicate: Predicate | None = None) -> str:
    """Return what to add to part.source(schema, predicate) to leave out the quarantined rows: an anti-join, whatever their number."""
    keys = rejects.get(part.name, ())
    if not keys:
        return ""
    condition = f"NOT EXISTS (SELECT FROM unnest({array(keys)}::text[]) AS rejected (key) WHERE rejected.key = {part.key_text})"
    return f" AND {condition}" if predicate else f" WHERE {condition}"
