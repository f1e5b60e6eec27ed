# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot be carried, and how to say so beforehand: password-reset links in people's mailboxes."""

from __future__ import annotations

TEXT = (
    "We are moving our accounts to a new system. You stay logged in and your password stays the same."
    " If you asked for a link to reset your password and have not used it yet, it will stop working with the move:"
    ' please use it before, or afterwards ask for a new one with "Forgot password".'
)
FINDING = "outstanding password-reset links carry the integer id of a user and will not work after cutover"


def reset_links(timeout_seconds: int, waiting: int | None = None) -> tuple[str, str]:
    """Return the finding for preflight and the text to announce.

    `timeout_seconds` is Django's PASSWORD_RESET_TIMEOUT (3 days when the settings have none). Django keeps no list of the
    links it mailed, so `waiting`, where it is known, comes from elsewhere (the mail log, say).
    """
    hours = max(1, -(-timeout_seconds // 3600))
    days = f"{hours // 24} days" if hours >= 48 else f"{hours} hours"
    counted = f"; {waiting} were mailed in that time" if waiting is not None else "; Django keeps no list of them, so they cannot be counted"
    finding = f"{FINDING} (each lives {days}{counted}); announce it, or stop mailing links {days} before cutover"
    return finding, TEXT
