# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an error that database_errors() has wrapped was about."""

from __future__ import annotations

from ..errors import DatabaseError, MigrationError


def said(exc: MigrationError) -> str:
    """Return the fault of an error of PostgreSQL, without the place and the next step."""
    return exc.fault if isinstance(exc, DatabaseError) else str(exc)


def state(exc: MigrationError) -> str:
    """Return the SQLSTATE behind an error of database_errors()."""
    return exc.state if isinstance(exc, DatabaseError) else ""


def about_rows(exc: MigrationError) -> bool:
    """Return whether an error speaks of rows or SQL, not of a lock, a cancelled statement or a lost connection."""
    return state(exc)[:2] not in ("", "08", "25", "40", "53", "55", "57", "58")
