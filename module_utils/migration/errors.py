# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error of the domain."""

from __future__ import annotations


class MigrationError(Exception):
    """A fault that an operator can act on: its text gives the place, the fault and the next step.

    The text is shown as it stands, so it never carries a secret or a value of a row.
    """
