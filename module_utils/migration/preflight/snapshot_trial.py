# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do what the snapshot will do beside pg_dump, to one row of everything: its digest calls functions that pg_dump does not need."""

from __future__ import annotations

from contextlib import closing

from ..checks.findings import STOP, Finding
from ..context import Context
from ..errors import MigrationError
from ..postgres import content_digest, databases, driver

RULE = "snapshot"
LOCK_WAIT = "2s"


def check(context: Context) -> list[Finding]:
    """Return what would end the snapshot, for the source and every service; reads only."""
    findings = []
    for endpoint in (context.source, *(context.targets[service] for service in context.plan.services)):
        step = f"let {endpoint.session_role or endpoint.user} do what the line says (GRANT EXECUTE ON FUNCTION ..., if it names one)"
        try:
            lines = _attempt(endpoint)
        except MigrationError as exc:
            lines = [str(exc)]
        findings += [Finding(STOP, endpoint.name, RULE, f"the snapshot would fail: {line.partition('; ')[0]}", step) for line in lines]
    return findings


def _attempt(endpoint: driver.Endpoint) -> list[str]:
    connection = driver.connect(endpoint, application_name=databases.APPLICATION_NAME, readonly=True, settings={"lock_timeout": LOCK_WAIT})
    with closing(connection), driver.database_errors(endpoint.place, "trying what the snapshot does"):
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        driver.scalar(connection, "SELECT pg_export_snapshot()")
        databases.read(connection, endpoint.dbname)
        return content_digest.attempt(connection)
