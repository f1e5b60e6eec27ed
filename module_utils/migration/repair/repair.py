# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mend what the last validation found: make the keys it named equal to the source, by the way that the transfer writes.

Where it found more than it named, a part of the evidence is not worked from: the tables are compared anew and settled whole.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..checks import reconciliation
from ..context import Context
from ..errors import MigrationError
from ..plan import row_id
from ..postgres import driver
from ..postgres.quote import array
from ..text import counted
from ..upsert.upsert import BATCH, Equalized
from ..validate.excluded import without
from ..validate.run import DIFFERENT, DUPLICATE, EXTRA, MISSING, SERVICE_ROW, Finding, differing_rows
from .key_spool import Spool
from .reconcile import settle

APPLICATION_NAME = "edulink-migration repair"
WORDS = {MISSING: "insert", DIFFERENT: "update", EXTRA: "delete", DUPLICATE: "keep one of"}


@dataclass(frozen=True)
class Rules:
    """Which rows are the operator's or a service's to decide about."""

    after_cutover: bool
    insert_missing: bool
    apart: bool  # the validation told the services' own rows apart
    kept_out: frozenset[str]  # targets with keys in migration.rejects for no reason: a row that is expected nowhere would be lost until it is released

    def reason(self, finding: Finding, *, anonymous: bool = True) -> str:
        """Return why a finding is left, '' when it is mended; `anonymous`: a finding without an id is one that has none."""
        if finding.kind == SERVICE_ROW:
            return "the service made it"
        if self.after_cutover and finding.kind != MISSING:
            return "the service owns it since the cutover"
        if finding.kind == EXTRA and finding.target in self.kept_out:
            return "its key may be one that migration.rejects holds for no reason; playbooks/release.yml, then validate and repair again"
        if self.after_cutover and not self.insert_missing:
            return "the service may have deleted it since the cutover; -e repair_insert_missing=true inserts such rows again"
        if anonymous and finding.id is None and finding.kind in (EXTRA, DUPLICATE):
            return "it has no id to find it by; delete it by hand"
        return ""


@dataclass(frozen=True)
class Repair:
    """What would be written: the findings to mend, and those that are left, with the reason.

    `whole` are the targets that are compared anew and settled whole, because the validation found more than it named (`unnamed`): a part of
    them is no safe thing to write, as the rest may be what it refers to. `counts` has then the rows by target and kind.
    """

    findings: tuple[Finding, ...]
    left: tuple[tuple[Finding, str], ...]
    unnamed: int = 0
    whole: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rules: Rules = Rules(False, False, False, frozenset())

    @property
    def by_table(self) -> dict[str, dict[str, int]]:
        """Return how many rows are inserted, updated and deleted in each table."""
        if self.whole:
            return {name: {WORDS[kind]: rows for kind, rows in kinds.items()} for name, kinds in self.counts.items()}
        tables: dict[str, Counter[str]] = {}
        for finding in self.findings:
            tables.setdefault(finding.target, Counter())[WORDS[finding.kind]] += 1
        return {name: dict(counts) for name, counts in tables.items()}

    @property
    def rows(self) -> int:
        """Return how many rows are mended."""
        return sum(sum(counts.values()) for counts in self.by_table.values())

    @property
    def lines(self) -> tuple[str, ...]:
        """Return a line for each row, with keys and columns and no values; for each table where whole tables are settled."""
        if self.whole:
            tables = self.by_table.items()
            return tuple(f"{name}: {', '.join(f'{word} {rows:,}' for word, rows in words.items())}, by comparing all of it anew" for name, words in tables)
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
    quarantined = validation.get("quarantine", {})
    kept_out = {item["target"] for item in quarantined.get("rows", [])} | set(quarantined.get("tables", ()))
    apart = after_cutover or validation.get("rows_of_services") == "apart"
    rules = Rules(after_cutover, insert_missing, apart, frozenset(kept_out))
    unnamed = max(0, validation["differences"] - sum(1 for finding in found if finding.kind != SERVICE_ROW))
    judged = [(finding, rules.reason(finding)) for finding in found]
    left = tuple((finding, why) for finding, why in judged if why)
    if not unnamed:
        return Repair(tuple(finding for finding, why in judged if not why), left, rules=rules)
    counts: dict[str, dict[str, int]] = {}
    for table in validation["tables"]:
        for kind, rows in table["kinds"].items():
            if not rules.reason(Finding(table["target"], None, kind, None, None), anonymous=False):
                counts.setdefault(table["target"], {})[kind] = rows
    return Repair((), left, unnamed, tuple(counts), counts, rules)


def require_cap(repair: Repair, most: int) -> None:
    """Raise MigrationError when more rows would change than the operator allowed."""
    _require_few(repair.rows, {name: sum(counts.values()) for name, counts in repair.by_table.items()}, most)


def _require_few(rows: int, by_table: Mapping[str, int], most: int) -> None:
    if rows > most:
        tables = ", ".join(f"{name} {number}" for name, number in sorted(by_table.items()))
        raise MigrationError(
            f"repair would change {counted(rows, 'row')} ({tables}), repair_max_rows allows {most}: so many differences are seldom"
            f" single faults; look at them with --check --diff, and when you are sure say -e repair_max_rows={rows}"
        )


def apply_repair(context: Context, plan_time: str, repair: Repair, most: int | None = None) -> Equalized:
    """Make what the repair names equal to one new snapshot of the source, one transaction for each database.

    `most` is how many rows a settling of whole tables may change, which is known only when it has compared them; MigrationError for more,
    before anything is written.
    """
    holder = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    try:
        with driver.database_errors(context.source.place, "taking a consistent point"):
            driver.rows(holder, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            snapshot = str(driver.scalar(holder, "SELECT pg_export_snapshot()"))
        if repair.whole:
            findings: Iterable[Finding] = _of_whole_tables(context, plan_time, snapshot, repair)
        else:
            findings = _explained(context, holder, repair.findings)
        with Spool() as doubled:
            chosen = _counted(findings, doubled, most if repair.whole else None)
            return settle(context, plan_time, snapshot, chosen, lambda service, connection: _remove_duplicates(context, service, connection, doubled))
    finally:
        holder.close()


def _of_whole_tables(context: Context, plan_time: str, snapshot: str, repair: Repair) -> Iterator[Finding]:
    """Yield every row of the repair's tables that differs at a snapshot of the source and that may be mended."""
    for finding in differing_rows(context, plan_time, snapshot, repair.whole, apart=repair.rules.apart):
        if not repair.rules.reason(finding):
            yield finding


def _counted(findings: Iterable[Finding], doubled: Spool, most: int | None) -> Iterator[Finding]:
    """Yield the findings, keep the ids that a table has more than once, and raise MigrationError at the end when there were too many."""
    rows: Counter[str] = Counter()
    for finding in findings:
        rows[finding.target] += 1
        if finding.kind == DUPLICATE:
            doubled.add([finding])
        yield finding
    if most is not None:
        _require_few(rows.total(), rows, most)


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


def _remove_duplicates(context: Context, service: str, connection: driver.Connection, doubled: Spool) -> Equalized:
    """Delete every copy of an id that a table still holds more than once; in the same transaction what belongs there is written from the source."""
    removed = 0
    with connection.cursor() as cursor:
        for target in context.plan.of(service):
            listed = doubled.ids(target)
            while batch := list(itertools.islice(listed, BATCH)):
                own = row_id.columns(target, "t")
                many = f"SELECT {own} FROM {target.qualified} AS t WHERE {row_id.among(target, batch)} GROUP BY {own} HAVING count(*) > 1"
                cursor.execute(f"DELETE FROM {target.qualified} AS t WHERE ({own}) IN ({many})")
                removed += cursor.rowcount
    return Equalized(deleted=removed)
