# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would make the proof of the snapshot or a rollback impossible, named while it can still be put right."""

from __future__ import annotations

import contextlib

from ..checks.findings import WARN, Finding
from ..context import Context
from ..errors import MigrationError
from ..postgres import databases, driver
from ..rollback import rename
from ..snapshot import restore_blockers, restore_place

RULE = "way back"
MAINTENANCE_DB = "postgres"


def check(context: Context, *, verify_server: bool = False) -> list[Finding]:
    """Return a warning for each obstacle; the snapshot and the rollback refuse by the same rules.

    With a `verify_server` the operator has a server for the proof, which the snapshot looks at.
    """
    findings = []
    for service in context.plan.services:
        endpoint = context.targets[service]
        try:
            lines = restore_blockers.obstacles(endpoint, MAINTENANCE_DB)
            with contextlib.closing(databases.admin(endpoint, MAINTENANCE_DB)) as connection, driver.database_errors(endpoint.place, "looking at sessions"):
                lines += [line for line in rename.standing(connection, endpoint.dbname) if "CREATEDB" not in line]
        except MigrationError as exc:
            lines = [f"{exc}; name a database that the role can connect to in rollback_maintenance_db"]
        findings += [_finding(service, "rollback of whole databases", line) for line in lines]
    if not verify_server:
        findings += [_finding(context.source.name, "proof of the snapshot", line) for line in restore_place.obstacles(context, None, MAINTENANCE_DB)]
    return findings


def _finding(place: str, what: str, line: str) -> Finding:
    message, _, step = line.partition("; ")
    return Finding(WARN, place, RULE, f"{what}: {message}", step)
