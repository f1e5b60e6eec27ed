# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mend what the last validation found: make the keys it named equal to the source, by the way that the transfer writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..checks import reconciliation
from ..context import Context
from ..errors import MigrationError
from ..plan import row_id
from ..plan.model import Target
from ..postgres import driver
from ..postgres.quote import array
from ..text import counted
from ..upsert.upsert import Equalized
from ..validate.excluded import without
from ..validate.run import DIFFERENT, DUPLICATE, EXTRA, MISSING, SERVICE_ROW, Finding
from .reconcile import settle

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


def plan_repair(validation: Mapping[str, Any], *, after_cutover: bool, insert_missing: bool = False) -> Repair:
    """Return what the findings of a validation (its to_dict()) ask for.

    After the cutover the services own their rows: nothing is written then but, with `insert_missing`, rows that are missing. Whether
    the service has deleted one itself cannot be seen.
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
        elif after_cutover and not insert_missing:
            left.append((finding, "the service may have deleted it since the cutover; -e repair_insert_missing=true inserts such rows again"))
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
        findings = _explained(context, holder, repair.findings)
        return settle(context, plan_time, snapshot, findings, lambda service, connection: _remove_duplicates(context, service, connection, findings))
    finally:
        holder.close()


def _explained(context: Context, source: driver.Connection, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, those without a source row with the one that has come since: it would be deleted otherwise."""
    extra: dict[str, list[str]] = {}
    for finding in findings:
        if finding.source_key is None and finding.id is not None:
            extra.setdefault(finding.target, []).append(finding.id)
    rejects = reconciliation.put_aside(context) if extra else {}
    known: dict[tuple[str, str], tuple[str, str]] = {}
    for target in context.plan.targets:
        for part in target.parts if target.name in extra else ():
            rows = part.select_columns([f"{part.key_text} AS key", f"{row_id.source_name(target, part)} AS id"], context.source.schema)
            rows += without(part, {part.name: rejects.get((target.name, part.name), ())})
            with driver.database_errors(context.source.place, f"looking for rows of {target.name} that have come since the validation"):
                found = driver.rows(source, f"SELECT x.key, x.id FROM ({rows} OFFSET 0) AS x WHERE x.id = ANY ({array(extra[target.name])}::text[])")
            known.update({(target.name, id_): (part.name, key) for key, id_ in found})
    explained = []
    for finding in findings:
        part_key = known.get((finding.target, str(finding.id))) if finding.source_key is None else None
        explained.append(replace(finding, part=part_key[0], source_key=part_key[1]) if part_key else finding)
    return explained


def _remove_duplicates(context: Context, service: str, connection: driver.Connection, findings: Sequence[Finding]) -> Equalized:
    """Delete every copy of an id that a table still holds more than once; in the same transaction what belongs there is written from the source."""
    removed = 0
    targets: dict[str, Target] = {target.name: target for target in context.plan.of(service)}
    with connection.cursor() as cursor:
        for finding in findings:
            if finding.kind == DUPLICATE and finding.target in targets:
                target = targets[finding.target]
                own = row_id.among(target, [str(finding.id)])
                cursor.execute(f"DELETE FROM {target.qualified} AS t WHERE {own} AND (SELECT count(*) FROM {target.qualified} AS t WHERE {own}) > 1")
                removed += cursor.rowcount
    return Equalized(deleted=removed)
