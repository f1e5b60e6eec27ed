# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an error that database_errors() has wrapped was about."""

from __future__ import annotations

from ..errors import MigrationError

LOCKED = "55P03"  # lock_not_available
NO_PRIVILEGE = "42501"


def said(exc: MigrationError, doing: str) -> str:
    """Return what PostgreSQL said, without the place."""
    return str(exc).partition(f"{doing}: ")[2]


def state(exc: MigrationError) -> str:
    """Return the SQLSTATE behind an error of database_errors()."""
    return getattr(exc.__cause__, "pgcode", None) or ""


def explained(exc: MigrationError) -> MigrationError:
    """Return an error of a whole preflight with what to do about it, where its SQLSTATE tells."""
    step = {
        LOCKED: "another session holds a lock on it (pg_locks says who): let it end, then run playbooks/preflight.yml again",
        "57014": "the statement was cancelled: see statement_timeout of the role, or who cancelled it, then run playbooks/preflight.yml again",
        "40001": "the standby cancelled the read to go on replaying: set hot_standby_feedback = on there, then run playbooks/preflight.yml again",
    }.get(state(exc))
    return MigrationError(f"{exc}; {step}") if step and exc.__cause__ is not None else exc


def about_rows(exc: MigrationError) -> bool:
    """Return whether an error speaks of rows or SQL, not of a lock, a cancelled statement or a lost connection."""
    return state(exc)[:2] not in ("", "08", "25", "40", "53", "55", "57", "58")
