# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ids inside a value (arrays, documents) as references: each must have its row, like a reference that is a column of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..contract.model import ForeignKey
from ..plan.embedded_ids import Embedded, whole_number
from ..plan.model import Plan
from ..plan.predicates import none_of
from ..postgres.quote import ident
from .foreign_key_checks import Reference, Refused
from .row_checks import PartScan, minting_part, policy_of


@dataclass(frozen=True)
class EmbeddedReference(Reference):
    """The ids at one place inside a column's value, followed as a set; a row hangs when one of them does."""

    embedded: Embedded | None = None

    def _children(self) -> str:
        (scan,) = self.scans
        assert self.embedded is not None
        key = whole_number("each.k") if self.embedded.whole else "each.k"
        return (
            f"SELECT {key} AS v1, {scan.part.key_text} AS source_key, {scan.part.id_sql} AS id, 0 AS place"
            f" FROM {scan.base} CROSS JOIN LATERAL ({self.embedded.items()}) AS each"
        )

    def _others(self, refused: Refused) -> str:
        (home,) = self.parents
        assert self.embedded is not None
        keys = refused.get((home.target.name, home.part.name), ())
        where = f" WHERE {none_of(tuple(keys))(home.part.key_text)}" if keys else ""
        key = f"src.{ident(home.part.key[0])}"
        return f"SELECT DISTINCT true AS hit, {key if self.embedded.whole else f'{key}::text'} AS v1 FROM {home.base}{where}"

    def hanging(self, refused: Refused) -> str:
        """Return the SQL of the rows that hang, each once."""
        every = super().hanging(refused)
        return f"SELECT source_key, id, place, bool_or(stays) AS stays FROM ({every}) AS each GROUP BY source_key, id, place"


def build(plan: Plan, scans: Sequence[PartScan]) -> tuple[Reference, ...]:
    """Return a reference for each place inside a column's value whose ids can be followed."""
    found = []
    for scan in scans:
        for cell in scan.part.cells:
            for item in cell.embedded:
                minted = minting_part(plan, item.entity)
                home = next((other for other in scans if minted and other.target is minted[0] and other.part is minted[1]), None)
                if home is None:
                    continue  # it cannot be read, and that has been said
                foreign = ForeignKey(home.target.schema, home.target.table, home.target.identity)
                policy = policy_of(scan.target, cell.name, "foreign_key")
                place = cell.place or scan.part.label
                found.append(EmbeddedReference(scan.target, item.path, (cell.name,), foreign, (scan,), (home,), place, policy, item))
    return tuple(found)
