# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cells of the campaign: which servers, what is unusual about them, and the story that each must live through."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.servers.trial import HOSTS, Failed, Trial, standby, trial

EQUAL = r"equal: \d+ rows in \d+ tables, every column, no difference"
MUTANT = 'SELECT min(id::text)::uuid FROM auth_service.users'


@dataclass(frozen=True)
class Cell:
    """Servers by major: the source's, auth_service's, user_service's (with the control database), and what is special."""

    source: int
    auth: int
    user: int
    special: str = ""

    @property
    def name(self) -> str:
        """Return how the table calls it."""
        targets = f"{self.auth}" if self.auth == self.user else f"{self.auth}+{self.user}"
        return f"{self.source}->{targets}{f' {self.special}' if self.special else ''}"


@dataclass(frozen=True)
class Result:
    """What a cell showed."""

    verdict: str
    differences: int


CELLS = (
    Cell(14, 18, 18),
    Cell(18, 14, 14),
    Cell(15, 17, 17),
    Cell(17, 15, 15),
    Cell(16, 16, 16),
    Cell(16, 14, 18),
    Cell(17, 17, 17, "tls"),
)


def run(cell: Cell, programs: Mapping[int, Path], users: int) -> Result:
    """Live through the whole story on the cell's servers; Failed, with what was expected, when it does not hold."""
    majors = dict(zip(HOSTS, (cell.source, cell.auth, cell.user), strict=True))
    with trial(majors, programs, users, tls=cell.special == "tls") as made, contextlib.ExitStack() as stack:
        if cell.special == "standby":
            stack.enter_context(standby(made, "monolith"))
        return story(made)


def story(made: Trial) -> Result:
    """Migrate, again, sessions, a fault that must be found and mended, and the way back."""
    played = made.play("site", "-e", "snapshot_proof=true", says=EQUAL)
    verdict = re.search(EQUAL, " ".join(played.text.split()))
    again = made.play("site", "-e", "snapshot_proof=true", says=EQUAL)
    if again.changed:
        raise Failed(f"the second site.yml reports changed={again.changed}")
    made.play("sessions")
    made.play("sessions", "-e", "sessions_state=compare")
    made.sql("auth_service", f"UPDATE auth_service.users SET password_hash = reverse(password_hash) WHERE id = ({MUTANT})")
    made.play("validate", expect=2, says=r"NOT equal: 1 differences .*users.*password_hash")
    made.play("repair", says=EQUAL)
    made.play("rollback")
    left = [host for host in HOSTS[1:] if made.sql(host, "SELECT to_regnamespace('migration') IS NOT NULL")]
    if left:
        raise Failed(f"after the rollback {', '.join(left)} still has what the migration made")
    return Result(verdict[0] if verdict else "", 0)
