# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two plots as inline SVG: lines over time, and shares as stacked bars. Told apart without colour too, for print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ..text import duration, short

EQUAL, CARRIED, QUARANTINED = "equal", "carried", "quarantined"
COLOURS = ("#0b5cad", "#b35900", "#1b7a3d", "#8a2be2", "#b0003a", "#4d4d4d", "#007c89", "#7a5c00", "#c2410c", "#374151")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "1 4")
OUTCOME_COLOURS = {
    EQUAL: "#1b7a3d",
    CARRIED: "#5b6b80",
    QUARANTINED: "#8a6100",
    "different": "#c1121f",
    "missing": "#7b2cbf",
    "extra": "#0077b6",
    "duplicate": "#3d3d3d",
}
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 300, 70, 15, 30, 40


def lines(series: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> str:
    """Return a plot of rows a second over seconds, a line for each table, with its legend."""
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return ""
    far = max(point[0] for points in drawn.values() for point in points) or 1.0
    high = nice(max(point[1] for points in drawn.values() for point in points) or 1.0)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(when: float, rate: float) -> str:
        return f"{_LEFT + wide * when / far:.1f},{_TOP + tall * (1 - rate / high):.1f}"

    parts = []
    for step in range(5):
        height = _TOP + tall * step / 4
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{height:.1f}" x2="{_WIDTH - _RIGHT}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{short(high * (4 - step) / 4)}</text>')
    parts.append('<text x="4" y="14">rows a second</text>')
    apart = nice(far / 5)
    for step in range(int(far / apart + 1e-6) + 1):
        along = _LEFT + wide * step * apart / far
        parts.append(f'<line class="grid" x1="{along:.1f}" y1="{_TOP + tall}" x2="{along:.1f}" y2="{_TOP + tall + 5}"/>')
        anchor = "start" if step == 0 else "end" if along > _WIDTH - _RIGHT - 20 else "middle"
        parts.append(f'<text x="{along:.1f}" y="{_HEIGHT - 22}" text-anchor="{anchor}">{duration(step * apart)}</text>')
    parts.append(f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 5}" text-anchor="middle">time since the first row</text>')
    legend = []
    for index, (name, points) in enumerate(drawn.items()):
        style = f'stroke="{COLOURS[index % len(COLOURS)]}" stroke-dasharray="{DASHES[index % len(DASHES)]}"'
        if len(points) == 1:
            points = [(0.0, points[0][1]), points[0]]
        parts.append(f'<polyline fill="none" stroke-width="2" {style} points="{" ".join(at(*point) for point in points)}"/>')
        key = f'<svg width="34" height="10" aria-hidden="true"><line x1="1" y1="5" x2="33" y2="5" stroke-width="3" {style}/></svg>'
        legend.append(f"<li>{key} {escape(name)}</li>")
    return _figure(title, parts, _HEIGHT, legend)


def shares(outcomes: Mapping[str, Mapping[str, int]], *, title: str) -> str:
    """Return stacked bars: for each table the share of its rows by outcome.

    What is not fine is never thinner than 3 units, and is told in words beside the bar: a colour as thin as that is not seen on paper.
    """
    drawn = {name: {kind: rows for kind, rows in kinds.items() if rows} for name, kinds in outcomes.items()}
    drawn = {name: kinds for name, kinds in drawn.items() if kinds}
    if not drawn:
        return ""
    left, line, beside = 240, 26, 190
    height = line * len(drawn) + 28
    wide = _WIDTH - left - beside
    parts: list[str] = []
    used: list[str] = []
    for step in range(5):
        along, anchor = left + wide * step / 4, "start" if step == 0 else "middle"
        parts.append(f'<line class="grid" x1="{along:.1f}" y1="2" x2="{along:.1f}" y2="{height - 20}"/>')
        parts.append(f'<text x="{along:.1f}" y="{height - 5}" text-anchor="{anchor}">{25 * step} %</text>')
    for index, (name, kinds) in enumerate(drawn.items()):
        top, start = 4 + index * line, float(left)
        total = sum(kinds.values())
        floor = {kind: 0.0 if kind in (EQUAL, CARRIED) else 3.0 for kind in kinds}
        room = wide - sum(floor.values())
        parts.append(f'<text x="{left - 8}" y="{top + 15}" text-anchor="end">{escape(name)}</text>')
        for kind, rows in kinds.items():
            width = floor[kind] + room * rows / total
            tip = f"{name}: {rows:,} rows {kind} ({100 * rows / total:.4g} %)"
            box = f'x="{start:.1f}" y="{top}" width="{width:.1f}" height="{line - 8}" fill="{OUTCOME_COLOURS.get(kind, COLOURS[-1])}"'
            parts.append(f"<rect {box}><title>{escape(tip)}</title></rect>")
            if width > 110:
                parts.append(f'<text class="in" x="{start + 6:.1f}" y="{top + 14}">{escape(kind)} {rows:,}</text>')
            start += width
            used.append(kind)
        wrong = ", ".join(f"{rows:,} {kind}" for kind, rows in kinds.items() if floor[kind])
        parts.append(f'<text x="{left + wide + 8}" y="{top + 14}" {_squeezed(wrong, beside - 10)}>{escape(wrong)}</text>' if wrong else "")
    legend = [
        f'<li><svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" fill="{OUTCOME_COLOURS.get(kind, COLOURS[-1])}"/></svg>'
        f" {escape(kind)}: {rows:,} row{'s' * (rows != 1)}</li>"
        for kind, rows in ((kind, sum(kinds.get(kind, 0) for kinds in drawn.values())) for kind in dict.fromkeys(used))
    ]
    return _figure(title, parts, height, legend)


def _squeezed(text: str, room: float) -> str:
    """Return the attributes that make a text fit, where it would not."""
    return f'textLength="{room}" lengthAdjust="spacingAndGlyphs"' if len(text) * 6.5 > room else ""


def _figure(title: str, parts: Sequence[str], height: float, legend: Sequence[str]) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="scroll">'
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f'{"".join(parts)}</svg></div><ul class="legend">{"".join(legend)}</ul></figure>'
    )


def nice(number: float) -> float:
    """Return the next round number: 1, 2, 2.5 or 5 times a power of ten."""
    power = 1.0
    while power * 10 <= number:
        power *= 10
    while power > number:
        power /= 10
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= number)
