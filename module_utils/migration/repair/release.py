# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring in quarantined rows that fit now: computed again from the source, written as repair writes, then let out of the rejects.

Killed anywhere it does the same again: rows are written before they leave migration.rejects, and writing twice changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from ..checks import quarantine
from ..context import Context
from ..plan import null_references, row_id
from ..postgres import driver
from ..schema import sequences
from ..text import counted
from ..upsert.upsert import Equalized
from ..validate.result import DIFFERENT
from ..validate.run import MISSING, Finding
from .reconcile import settle

APPLICATION_NAME = "edulink-migration release"
KEPT = 1000  # rows that a validation names


@dataclass(frozen=True)
class Quarantined:
    """A row that migration.rejects of a service names."""

    service: str
    target: str
    part: str
    source_key: str
    id: str | None


@dataclass(frozen=True)
class Release:
    """What fits now, and how many rows stay."""

    rows: tuple[Quarantined, ...]
    staying: int

    @property
    def by_table(self) -> dict[str, int]:
        """Return how many rows come in, by target."""
        return dict(Counter(row.target for row in self.rows))

    @property
    def passed(self) -> bool:
        """Tell whether every quarantined row belongs there."""
        return not self.rows

    @property
    def lines(self) -> tuple[str, ...]:
        """Return a line for each row that fits."""
        return tuple(f"{row.target}{f' part {row.part}' if row.part else ''}: quarantined without a reason key {row.source_key}" for row in self.rows)

    @property
    def verdict(self) -> str:
        """Return one line."""
        if self.passed:
            return f"each of {counted(self.staying, 'quarantined row')} breaks a rule" if self.staying else "no row is quarantined"
        return f"no rule keeps out {counted(len(self.rows), 'quarantined row')}: playbooks/release.yml brings in what fits"

    def to_dict(self) -> dict[str, Any]:
        """Return what validation.json keeps: the first rows that fit."""
        fit = [{"target": row.target, "part": row.part, "source_key": row.source_key} for row in self.rows[:KEPT]]
        return {"passed": self.passed, "verdict": self.verdict, "staying": self.staying, "fit": len(self.rows), "tables": self.by_table, "rows": fit}


def plan_release(context: Context, plan_time: str, cap: int = quarantine.CAP) -> Release:
    """Return the recorded rejects that the plan's policies no longer keep out."""
    recorded = [row for service in context.plan.services for row in _recorded(context, service)]
    if not recorded:
        return Release((), 0)
    still = {(item.target, item.part, item.source_key) for item in quarantine.compute(context, plan_time=plan_time, cap=cap)}
    fit = tuple(row for row in recorded if (row.target, row.part, row.source_key) not in still)
    return Release(fit, len(recorded) - len(fit))


def apply_release(context: Context, plan_time: str, release: Release) -> Equalized:
    """Write the rows and take them out of the rejects; return what was written."""
    with closing(context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)) as holder:
        with driver.database_errors(context.source.place, "taking a consistent point"):
            driver.rows(holder, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            snapshot = str(driver.scalar(holder, "SELECT pg_export_snapshot()"))
        let_in = _let_in(context, release)
        done = settle(let_in, plan_time, snapshot, [*_findings(context, release.rows), *_children(let_in, holder, release.rows)])
    sequences.advance(context)
    for service in context.plan.services:
        gone = [row for row in release.rows if row.service == service]
        if gone:
            _let_out(context, service, gone)
    return done


def _let_in(context: Context, release: Release) -> Context:
    """Return the context in which these rows are not quarantined any more."""
    if not context.plan.needed_quarantine:
        return context
    gone = {(row.target, row.part, row.source_key) for row in release.rows}
    known = context.known_quarantine(APPLICATION_NAME)
    return replace(context, quarantined={place: [key for key in keys if (*place, key) not in gone] for place, keys in known.items()})


def _children(context: Context, source: driver.Connection, rows: Sequence[Quarantined]) -> list[Finding]:
    """Return the rows that were carried with NULL because they refer to rows that come in now."""
    found = []
    homes = null_references.homes(context.plan)
    for target, part, cell in null_references.cells(context.plan):
        home, minting = homes[str(cell.entity)]
        keys = [row.source_key for row in rows if (row.target, row.part) == (home.name, minting.name)]
        if keys:
            chosen = part.select_columns([f"{part.key_text} AS key", f"({cell.key})::text AS refers"], context.source.schema)
            with driver.database_errors(context.source.place, f"looking for rows of {target.name} that refer to them"):
                children = driver.rows(source, f"SELECT x.key FROM ({chosen}) AS x WHERE x.refers = ANY (%s::text[])", (keys,))
            quarantined = {(row.target, row.part, row.source_key) for row in _recorded(context, target.service)}
            found += [Finding(target.name, part.name, DIFFERENT, key, None) for (key,) in children if (target.name, part.name, key) not in quarantined]
    return found


def _recorded(context: Context, service: str) -> list[Quarantined]:
    reading = driver.database_errors(context.targets[service].place, "reading migration.rejects")
    with closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as connection, reading:
        if driver.scalar(connection, "SELECT to_regclass('migration.rejects')") is None:
            return []
        found = driver.rows(connection, "SELECT target, part, source_key, id::text FROM migration.rejects ORDER BY 1, 2, 3")
    return [Quarantined(service, *row) for row in found]


def _findings(context: Context, rows: Sequence[Quarantined]) -> list[Finding]:
    named = {target.name for target in context.plan.targets if row_id.single(target)}  # by the id that migration.rejects has
    return [Finding(row.target, row.part, MISSING, row.source_key, row.id if row.target in named else None) for row in rows]


def _let_out(context: Context, service: str, rows: Sequence[Quarantined]) -> None:
    arrays = tuple([getattr(row, name) for row in rows] for name in ("target", "part", "source_key"))
    writing = driver.database_errors(context.targets[service].place, "taking rows out of migration.rejects")
    with closing(context.connect_target(service, APPLICATION_NAME, autocommit=True)) as connection, writing:
        driver.rows(
            connection,
            "DELETE FROM migration.rejects r USING unnest(%s::text[], %s::text[], %s::text[]) AS gone (target, part, source_key)"
            " WHERE r.target = gone.target AND r.part = gone.part AND r.source_key = gone.source_key",
            arrays,
        )
