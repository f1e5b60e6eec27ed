# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What preflight says: one value for each thing that could fail, or is worth knowing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

STOP, WARN, INFO = LEVELS = ("stop", "warn", "info")


@dataclass(frozen=True)
class Finding:
    """One result; `count` rows are affected (None: not counted), `keys` are the source keys of the first few, never values."""

    level: str
    place: str
    rule: str
    message: str
    next_step: str = ""
    target: str = ""
    column: str = ""
    count: int | None = None
    keys: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON can carry it."""
        return {**asdict(self), "keys": list(self.keys)}


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, stop first, each once."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda item: LEVELS.index(item.level)))


def stops(findings: Iterable[Finding]) -> int:
    """Return how many findings forbid to go on."""
    return sum(item.level == STOP for item in findings)
