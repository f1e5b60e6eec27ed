# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write numbers, durations and moments as an operator reads them, one form for each in every line and page."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return the number with its noun, in the singular when it is one."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def short(number: float) -> str:
    """Return 950, 12.5k or 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


def duration(seconds: float) -> str:
    """Return 0.8 s, 45 s, 12 min 30 s or 3 h 05 min."""
    if seconds < 10:
        return f"{seconds:.3g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 120 else f"{minutes} min {rest:02} s"


def clock(moment: datetime) -> str:
    """Return 2026-11-28 03:15:00 UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def printable(text: str, keep: str = "") -> str:
    """Return a text in which no character moves the cursor, hides itself or begins a line, but those of `keep`.

    A name of PostgreSQL may hold any character but NUL: a line feed in it would forge a line of output, an escape would paint.
    """
    if text.isprintable():  # nearly every text, and a result holds thousands
        return text
    return "".join(one if one in keep or unicodedata.category(one) not in _MOVING else ascii(one)[1:-1] for one in text)


_MOVING = ("Cc", "Cf", "Zl", "Zp", "Cs")
