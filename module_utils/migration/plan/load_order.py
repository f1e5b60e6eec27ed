# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which tables that refer to each other are written."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract.model import Contract
from .model import Target


def levels(targets: Sequence[Target], contract: Contract) -> list[list[Target]]:
    """Return the targets in levels: each refers only to targets of earlier levels, or to itself.

    A cycle of references is broken at the first of its tables.
    """
    refers = {
        (table.schema, table.name): {(key.references[0], key.references[1]) for key in table.constraints if key.references} for table in contract.tables
    }
    found: list[list[Target]] = []
    waiting = list(targets)
    while waiting:
        names = {(target.schema, target.table) for target in waiting}
        free = [t for t in waiting if not (refers.get((t.schema, t.table), set()) - {(t.schema, t.table)}) & names]
        level = free or waiting[:1]
        found.append(level)
        waiting = [target for target in waiting if target not in level]
    return found


def parents_first(targets: Sequence[Target], contract: Contract) -> list[Target]:
    """Return the targets so that each comes after those its foreign keys refer to."""
    return [target for level in levels(targets, contract) for target in level]
