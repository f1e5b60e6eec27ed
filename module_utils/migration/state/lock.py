# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep a second run of a phase out by an advisory lock in the control database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..errors import MigrationError
from ..postgres import driver


@contextlib.contextmanager
def lock(records: driver.Connection, what: str) -> Iterator[None]:
    """Keep a second run of the same phase out; the lock goes with the session."""
    if not driver.scalar(records, "SELECT pg_try_advisory_lock(hashtext(%s))", (f"edulink-migration {what}",)):
        raise MigrationError(f"another run of playbooks/{what}.yml is under way; wait for it, or look for it with playbooks/status.yml")
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            driver.rows(records, "SELECT pg_advisory_unlock(hashtext(%s))", (f"edulink-migration {what}",))
