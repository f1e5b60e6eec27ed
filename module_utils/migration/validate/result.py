# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a comparison comes to: findings, a result for each table, references, and the verdict. Pure values; no row's values are in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..checks.reconciliation import Balance
from ..text import counted
from .digest import Digest

MISSING, EXTRA, DIFFERENT, DUPLICATE, SERVICE_ROW = "missing", "extra", "different", "duplicate", "service_row"


@dataclass(frozen=True)
class Finding:
    """One row that is not as it should be. `part` and `source_key` are None for a row that no source row explains."""

    target: str
    part: str | None
    kind: str
    source_key: str | None
    id: str | None
    columns: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Return the finding in one line, without values."""
        where = f" part {self.part}" if self.part else ""
        key = f" key {self.source_key}" if self.source_key is not None else ""
        columns = f" columns {', '.join(self.columns)}" if self.columns else ""
        return f"{self.target}{where}: {self.kind}{key} id {self.id}{columns}"


@dataclass(frozen=True)
class TableResult:
    """What the comparison of one target table found; `rejected` rows were quarantined and are not expected in the target."""

    target: str
    source_rows: int
    target_rows: int
    rejected: int
    differences: int
    kinds: Mapping[str, int]
    buckets: int
    opened: int
    seconds: float
    source_digest: str
    target_digest: str
    bookkeeping: bool = False

    @property
    def rows_per_second(self) -> int:
        """Return how many rows of both sides were compared in a second."""
        return int((self.source_rows + self.target_rows) / self.seconds) if self.seconds > 0 else 0


@dataclass(frozen=True)
class Reference:
    """One column whose ids live in another table: how many of its values have no row there.

    `by` is `foreign key` where the source's own validated constraints prove it for rows that are equal; nothing is counted then. `nulled`
    references have no row and were carried as NULL, as the mapping says.
    """

    target: str
    column: str
    refers_to: str
    checked: int
    dangling: int
    keys: tuple[str, ...] = ()
    by: str = "join"
    nulled: int = 0

    @property
    def line(self) -> str:
        """Return the check in one line."""
        return f"{self.target}.{self.column}: {self.dangling} of {self.checked} refer to no row of {self.refers_to}: {', '.join(self.keys[:5])}"


@dataclass(frozen=True)
class Verification:
    """The verdict and everything it rests on.

    `left_out` targets of the plan were not compared; `unmapped` are columns that a target has and no mapping fills.
    """

    tables: Mapping[str, TableResult]
    findings: tuple[Finding, ...]
    references: tuple[Reference, ...]
    differences: int
    digest: Digest
    consistency: str
    positions: Mapping[str, str]
    rejects: tuple[Mapping[str, Any], ...]
    seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)
    balance: Balance | None = None
    left_out: int = 0
    unmapped: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Tell whether both sides are equal and every reference has its row."""
        return self.differences == 0 and not any(reference.dangling for reference in self.references)

    @property
    def verdict(self) -> str:
        """Return one line."""
        rows = counted(sum(table.source_rows for table in self.tables.values()), "row")
        tables = counted(len(self.tables), "table")
        rejected = sum(table.rejected for table in self.tables.values())
        aside = f", {counted(rejected, 'row')} quarantined" if rejected else ""
        own = sum(table.kinds.get(SERVICE_ROW, 0) for table in self.tables.values())
        aside += f", {counted(own, 'row')} of the services' own" if own else ""
        columns = "every column" if not self.unmapped else f"every mapped column (not {', '.join(self.unmapped[:5])}{', ...' * (len(self.unmapped) > 5)})"
        if self.left_out:
            tables = f"{len(self.tables)} of {len(self.tables) + self.left_out} tables"
        if self.passed:
            return f"equal: {rows} in {tables}, {columns}, no difference{aside}"
        dangling = sum(reference.dangling for reference in self.references)
        hanging = f", {counted(dangling, 'reference')} without a row" if dangling else ""
        return f"NOT equal: {counted(self.differences, 'difference')} in {rows} of {tables}{hanging}{aside}"

    def to_dict(self) -> dict[str, Any]:
        """Return what validation.json and the records keep."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "differences": self.differences,
            "unmapped_columns": list(self.unmapped),
            "digest": {"method": self.digest.method, "label": self.digest.label, "reason": self.digest.reason},
            "consistency": self.consistency,
            "positions": dict(self.positions),
            "tables": [{**asdict(table), "kinds": dict(table.kinds), "rows_per_second": table.rows_per_second} for table in self.tables.values()],
            "references": [asdict(reference) for reference in self.references],
            "rejects": [dict(item) for item in self.rejects],
            "findings": [asdict(finding) for finding in self.findings],
            "findings_total": self.differences,
            "seconds": round(self.seconds, 3),
            "phases": {name: round(value, 3) for name, value in self.phases.items()},
        }
