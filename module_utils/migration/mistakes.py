# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All mistakes of the mappings and the schema SQL, so that one reading names every one of them.

A check raises MigrationError, as everywhere. Whoever reads several things puts each into `with mistakes:`, which notes the
error and goes on with the next; settle() then raises them all. What could not be read is named in `unread`: its absence
elsewhere is a consequence, not another mistake.
"""

from __future__ import annotations

import re
from types import TracebackType

from .errors import MigrationError, SeveralErrors


class Consequence(MigrationError):
    """An error that follows from a mistake that is noted already."""


class Mistakes:
    """The mistakes of one reading. `unread` has `mappings` or an entity's name, or `service`, `service.table`, `service.table.column`."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.unread: set[str] = set()

    def note(self, error: MigrationError) -> None:
        """Keep an error, unless it only follows from another one."""
        if not isinstance(error, Consequence):
            self.noted.append(str(error))

    def __enter__(self) -> None:
        """Begin one thing of several."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        """Note a MigrationError and go on; let everything else through."""
        if isinstance(error, MigrationError):
            self.note(error)
            return True
        return False

    def settle(self) -> None:
        """Raise all of them as one error: one mistake a line, in the order of files and lines."""
        found = sorted(dict.fromkeys(self.noted), key=_place)
        if len(found) == 1:
            raise MigrationError(found[0])
        if found:
            raise SeveralErrors(f"{len(found)} mistakes; each has its line here:", found)


def _place(text: str) -> tuple[str, int]:
    match = re.match(r"(.+?\.(?:yml|sql)):(\d+)?", text)
    return (match[1], int(match[2] or 0)) if match else ("", 0)
