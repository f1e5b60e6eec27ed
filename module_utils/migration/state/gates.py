# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gates between phases: what must have been proven before a phase may begin."""

from __future__ import annotations

from ..errors import MigrationError
from ..postgres import driver
from . import control

PREFLIGHT = "preflight"


def would_refuse(exc: MigrationError) -> str:
    """Return what a preview says of a refusal: before it comes to that phase, the real run may have done what is missing."""
    return f"as things stand it would be refused: {exc}"


def require_preflight(connection: driver.Connection, plan_digest: str, override: bool = False, *, check: bool = False) -> str:
    """Return '' when the last preflight passed for this very plan; MigrationError when it is missing, failed or for another plan.

    With `override`, or in check mode (the same run may have performed preflight), return the sentence instead of raising it.
    """
    last = control.latest(connection, PREFLIGHT)
    if last is None:
        fault = "no preflight has been recorded"
    elif last.outcome != "passed":
        fault = f"the last preflight ({last.recorded_at:%Y-%m-%d %H:%M} UTC) {last.outcome}"
    elif last.plan_digest != plan_digest:
        fault = f"the last preflight saw plan {(last.plan_digest or '')[:12]}, this run has plan {plan_digest[:12]}"
    else:
        return ""
    if override:
        return f"{fault}; going on, because the gate is overridden"
    if check:
        return f"would require a passed preflight: {fault}"
    raise MigrationError(f"{fault}; run playbooks/preflight.yml, or go on without it with -e snapshot_override_gates=true (or migrate_override_gates)")
