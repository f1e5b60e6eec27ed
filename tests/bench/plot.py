# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw the bench's seconds as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, BAR, GAP, LABEL = 900, 22, 8, 240


def bars(rows: Sequence[Mapping[str, object]]) -> str:
    """Return an SVG with one bar a case; a case with a ratio has it written behind its seconds."""
    longest = max((float(str(row["seconds"])) for row in rows), default=1.0) or 1.0
    height = GAP + (BAR + GAP) * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, row in enumerate(rows):
        top = GAP + number * (BAR + GAP)
        seconds = float(str(row["seconds"]))
        length = (WIDTH - LABEL - 190) * seconds / longest
        colour = "#2f6db3" if str(row["case"]).startswith("migrate") else "#9aa5b1"
        ratio = f" ({row['ratio_to_limit']} x {row['limit']})" if row["ratio_to_limit"] is not None else ""
        middle = top + BAR * 0.7
        parts.append(f'<text x="{LABEL - 8}" y="{middle}" text-anchor="end">{escape(str(row["case"]))}</text>')
        parts.append(f'<rect x="{LABEL}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
        parts.append(f'<text x="{LABEL + length + 6:.1f}" y="{middle}">{seconds:.2f} s{escape(ratio)}</text>')
    return "\n".join([*parts, "</svg>", ""])
