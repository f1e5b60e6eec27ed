# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settle what changed in the source between two snapshots: compare at one new snapshot, make the differing keys equal."""

from __future__ import annotations

from collections import defaultdict

from . import driver
from .context import Context
from .equalize import equalize
from .snapshots import read_only_snapshot
from .verify import Finding, compare

APPLICATION_NAME = "edulink-migration reconcile"


def reconcile(context: Context, plan_time: str) -> int:
    """Make every target equal to one new snapshot of the source; return how many rows were written."""
    holder = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    try:
        driver.rows(holder, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        snapshot = str(driver.scalar(holder, "SELECT pg_export_snapshot()"))
        found = compare(context, plan_time, snapshot=snapshot)
        return _apply(context, plan_time, snapshot, found.findings)
    finally:
        holder.close()


def _apply(context: Context, plan_time: str, snapshot: str, findings: tuple[Finding, ...]) -> int:
    by_part: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        by_part[finding.target, finding.part].append(finding)
    source = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    written = 0
    try:
        read_only_snapshot(source, snapshot)
        for service in context.plan.services:
            connection = context.connect_target(service, APPLICATION_NAME)
            try:
                with driver.database_errors(context.targets[service].place, "settling what changed between two snapshots"), connection:
                    for target in context.plan.of(service):
                        for part in target.parts:
                            chosen = by_part.get((target.name, part.name), [])
                            keys = [finding.source_key for finding in chosen if finding.source_key is not None]
                            ids = [finding.id for finding in chosen if finding.id is not None]
                            if keys or ids:
                                written += equalize(source, connection, context.source.schema, target, part, keys, ids).rows
            finally:
                connection.close()
    finally:
        source.close()
    return written
