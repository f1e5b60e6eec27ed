# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mend what the last validation found: make the keys it named equal to the source, by the way that the transfer writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import driver
from .context import Context
from .equalize import Equalized
from .errors import MigrationError
from .outcome import counted
from .quote import ident, literal
from .reconcile import settle
from .verify import DIFFERENT, DUPLICATE, EXTRA, MISSING, SERVICE_ROW, Finding

APPLICATION_NAME = "edulink-migration repair"
WORDS = {MISSING: "insert", DIFFERENT: "update", EXTRA: "delete", DUPLICATE: "keep one of"}


@dataclass(frozen=True)
class Repair:
    """What would be written: the findings to mend, and those that are left, with the reason."""

    findings: tuple[Finding, ...]
    left: tuple[tuple[Finding, str], ...]
    unnamed: int = 0

    @property
    def by_table(self) -> dict[str, dict[str, int]]:
        """Return how many rows are inserted, updated and deleted in each table."""
        tables: dict[str, Counter[str]] = {}
        for finding in self.findings:
            tables.setdefault(finding.target, Counter())[WORDS[finding.kind]] += 1
        return {name: dict(counts) for name, counts in tables.items()}

    @property
    def lines(self) -> tuple[str, ...]:
        """Return a line for each row, with keys and columns and no values."""
        return tuple(
            f"{WORDS[finding.kind]} {finding.target}"
            + (f" part {finding.part}" if finding.part else "")
            + (f" key {finding.source_key}" if finding.source_key is not None else "")
            + f" id {finding.id}"
            + (f" columns {', '.join(finding.columns)}" if finding.columns else "")
            for finding in self.findings
        )


def plan_repair(validation: Mapping[str, Any], *, after_cutover: bool) -> Repair:
    """Return what the findings of a validation (its to_dict()) ask for.

    After the cutover the services own their rows: only rows that are missing are written then.
    """
    found = [Finding(**{**item, "columns": tuple(item["columns"])}) for item in validation["findings"]]
    # A row whose key is in migration.rejects for no reason is expected nowhere; to delete it would lose it until it is released.
    kept_out = {item["target"] for item in validation.get("quarantine", {}).get("rows", [])}
    chosen, left = [], []
    for finding in found:
        if finding.kind == SERVICE_ROW:
            left.append((finding, "the service made it"))
        elif after_cutover and finding.kind != MISSING:
            left.append((finding, "the service owns it since the cutover"))
        elif finding.kind == EXTRA and finding.target in kept_out:
            left.append((finding, "its key may be one that migration.rejects holds for no reason; playbooks/release.yml, then validate and repair again"))
        elif finding.id is None and finding.kind in (EXTRA, DUPLICATE):
            left.append((finding, "it has no id to find it by; delete it by hand"))
        else:
            chosen.append(finding)
    return Repair(tuple(chosen), tuple(left), max(0, validation["differences"] - sum(1 for finding in found if finding.kind != SERVICE_ROW)))


def require_cap(repair: Repair, most: int) -> None:
    """Raise MigrationError when more rows would change than the operator allowed."""
    if len(repair.findings) > most:
        tables = ", ".join(f"{name} {sum(counts.values())}" for name, counts in sorted(repair.by_table.items()))
        raise MigrationError(
            f"repair would change {counted(len(repair.findings), 'row')} ({tables}), repair_max_rows allows {most}: so many differences are seldom"
            f" single faults; look at them with --check --diff, and when you are sure say -e repair_max_rows={len(repair.findings)}"
        )


def apply_repair(context: Context, plan_time: str, repair: Repair) -> Equalized:
    """Make the named keys equal to one new snapshot of the source, one transaction for each database."""
    holder = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    try:
        with driver.database_errors(context.source.place, "taking a consistent point"):
            driver.rows(holder, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            snapshot = str(driver.scalar(holder, "SELECT pg_export_snapshot()"))
        removed = _remove_duplicates(context, repair.findings)
        return Equalized(deleted=removed) + settle(context, plan_time, snapshot, repair.findings)
    finally:
        holder.close()


def _remove_duplicates(context: Context, findings: Sequence[Finding]) -> int:
    """Delete every copy of an id that a table still holds more than once; what belongs there is written again from the source."""
    removed = 0
    for service in context.plan.services:
        targets = {target.name: target for target in context.plan.of(service)}
        doubled = [finding for finding in findings if finding.kind == DUPLICATE and finding.target in targets]
        if not doubled:
            continue
        connection = context.connect_target(service, APPLICATION_NAME)
        try:
            with driver.database_errors(context.targets[service].place, "deleting duplicate rows"), connection, connection.cursor() as cursor:
                for finding in doubled:
                    target = targets[finding.target]
                    own = f"{ident(target.id_column)} = {literal(str(finding.id))}::uuid"
                    cursor.execute(f"DELETE FROM {target.qualified} WHERE {own} AND (SELECT count(*) FROM {target.qualified} WHERE {own}) > 1")
                    removed += cursor.rowcount
        finally:
            connection.close()
    return removed
