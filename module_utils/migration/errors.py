# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error of the domain."""

from __future__ import annotations

import traceback
from collections.abc import Sequence


class MigrationError(Exception):
    """A fault that an operator can act on: its text gives the place, the fault and the next step.

    The text is shown as it stands, so it never carries a secret or a value of a row.
    """

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the text as the lines that it is meant to be: one, whatever the names in it hold."""
        return (str(self),)


class SeveralErrors(MigrationError):
    """Several faults of one reading, a line each under a heading."""

    def __init__(self, heading: str, faults: Sequence[str]) -> None:
        super().__init__("\n".join((heading, *faults)))
        self._lines = (heading, *faults)

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the heading and the faults."""
        return self._lines


class DatabaseError(MigrationError):
    """An error of PostgreSQL at a place: `what` was being done, `fault` and `step` say the rest, `state` is its SQLSTATE ('' for none)."""

    def __init__(self, what: str, fault: str, step: str, state: str = "", names: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(f"{what}: {fault}; {step}")
        self.what = what
        self.fault = fault
        self.step = step
        self.state = state
        self.names = names

    def instead(self, step: str) -> DatabaseError:
        """Return the error with another next step."""
        return DatabaseError(self.what, self.fault, step, self.state, self.names)


def unknown(exc: BaseException) -> str:
    """Return what an error that nobody foresaw may say: the system's words for its own, else only its kind and where in the program it arose."""
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.strerror}: {exc.filename}" if isinstance(exc.filename, str) else exc.strerror
    frames = traceback.extract_tb(exc.__traceback__)[1:]  # the first is who caught it
    own = [frame for frame in frames if "/migration/" in frame.filename or "/lab/" in frame.filename]
    place = own[-1] if own else frames[-1] if frames else None
    where = f" in {place.filename.rpartition('/')[2]}, line {place.lineno} ({place.name})" if place else ""
    return f"this is a bug; please report it: {type(exc).__name__}{where}"
