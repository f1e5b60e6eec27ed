# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Results of validation and repair to an operator's lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def validate_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a table of what was compared, the first findings and the verdict."""
    lines = []
    if result["tables"]:
        width = max(len(table["target"]) for table in result["tables"])
        lines.append(f"{'table':<{width}} {'source rows':>12} {'target rows':>12} {'differences':>12} {'seconds':>8} {'rows/s':>10}")
        for table in sorted(result["tables"], key=lambda table: (table["bookkeeping"], table["target"])):
            rate = f"{table['rows_per_second']:,}" if table["rows_per_second"] else "-"  # too short to be measured
            lines.append(
                f"{table['target']:<{width}} {table['source_rows']:>12,} {table['target_rows']:>12,} {table['differences']:>12,}"
                f" {table['seconds']:>8.2f} {rate:>10}"
            )
    return [*lines, *result["lines"], result["verdict"]]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"validate_lines": validate_lines}
