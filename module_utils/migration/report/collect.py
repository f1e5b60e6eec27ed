# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather the report's data from the records in the control database and, where it still exists, the ledgers. Writes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..context import Context
from ..errors import MigrationError
from ..postgres import driver
from ..state import control
from ..state.control import Migration, Record
from ..state.gates import PREFLIGHT
from ..text import clock
from . import status, svg
from .advice import what_failed

APPLICATION_NAME = "edulink-migration report"
RECORDS = 1000
FINDINGS = 1000  # of the newest validation and preflight; all that were kept are in validation.json, preflight.json and the record
BINS = 60


def collect(context: Context) -> dict[str, Any]:
    """Return the report's data; MigrationError when the control database cannot be reached."""
    with (
        contextlib.closing(control.connect(context.control, readonly=True)) as connection,
        driver.database_errors(context.control.place, "reading the migration's records"),
    ):
        migration = control.newest(connection)
        # A preflight that failed leaves its record before there is a migration.
        kind, limit = (None, RECORDS) if migration else (PREFLIGHT, 1)
        records = control.history(connection, kind=kind, migration=migration, limit=limit, findings=FINDINGS)[::-1]
        steps = status.read_steps(connection, migration)
    states: list[status.ServiceState] = []
    copies: dict[str, list[tuple[float, float, int]]] = {}
    rejects: list[dict[str, Any]] = []
    for service in context.plan.services:
        try:
            with (
                contextlib.closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as target,
                driver.database_errors(context.targets[service].place, "reading the ledger"),
            ):
                states.append(status.read_service(target, service))
                copies |= _copies(target)
                rejects += _rejects(target)
        except MigrationError as exc:
            states.append(status.ServiceState(service, fault=str(exc)))
    validated = next((step.detail for step in steps if step.phase == "validate" and step.ours), {})
    advice = status.advise(migration, context.plan.digest, status.by_ledger(steps, states), states)
    rates = _over_time(copies) or _recorded_rates(records)
    carried = all(state.finished for state in states)
    return assemble(migration, records, status.tables(states, validated), rates, rejects, advice, carried=carried)


def assemble(
    migration: Migration | None,
    records: Sequence[Record],
    tables: Sequence[Mapping[str, Any]],
    rates: Mapping[str, Sequence[tuple[float, float]]],
    rejects: Sequence[Mapping[str, Any]],
    advice: status.Next,
    *,
    carried: bool = False,
) -> dict[str, Any]:
    """Return the report's data, ready for JSON; when the ledgers say that all is `carried`, no failed run of the transfer says otherwise."""
    judged = [record for record in records if not (carried and record.kind == "migrate" and record.outcome == "failed")]
    newest: dict[str, Record] = {record.kind: record for record in judged}
    validated = newest["validate"].detail if "validate" in newest else {}
    ordered = sorted(tables, key=lambda item: ".migration." in str(item["target"]))  # the migration's own tables last
    quarantined: dict[str, int] = {}
    for item in rejects:
        quarantined[item["target"]] = quarantined.get(item["target"], 0) + item["rows"]
    return {
        "generated_at": clock(datetime.now(UTC)),
        "migration": _migration(migration),
        "verdict": verdict(migration, newest),
        "phases": [_phase(record) for record in records],
        "tables": ordered,
        "outcomes": {str(item["target"]): _outcome(item, validated, quarantined) for item in ordered},
        "rates": {name: list(points) for name, points in rates.items()},
        "rejects": list(rejects),
        "details": {kind: dict(record.detail) for kind, record in newest.items()},
        "next": {"command": advice.command, "why": advice.why},
    }


def verdict(migration: Migration | None, newest: Mapping[str, Record]) -> dict[str, str]:
    """Return one sentence and its level: good, bad or open."""
    if migration is None:
        return {"level": "open", "text": "No migration has begun."}
    if migration.state == "rolled_back":
        return {"level": "open", "text": "The migration was rolled back; the services are as they were in the snapshot."}
    validate = newest.get("validate")
    failed = [record.kind for record in newest.values() if record.outcome == "failed" and record.kind != "validate"]  # its own words are below
    later = [record for record in newest.values() if validate and record.kind in ("migrate", "repair", "release") and record.id > validate.id]
    if validate is None or later:
        if failed:
            return {"level": "bad", "text": f"Not proven yet; the last {failed[0]} failed."}
        return {"level": "open", "text": "Not proven yet: the services have not been validated since the last rows were written."}
    if validate.outcome == "passed":
        aside = sum(item.get("rejected") or 0 for item in validate.detail.get("tables", []) if isinstance(item, Mapping))
        quarantined = f" {aside:,} quarantined row{' is' if aside == 1 else 's are'} expected nowhere." if aside else ""
        return {"level": "good", "text": f"Every column of every row is proven equal on both sides.{quarantined}"}
    if validate.outcome == "partial":
        return {"level": "open", "text": "Not proven: the last validation compared some tables only, and found them equal."}
    if validate.outcome == "error":
        return {"level": "bad", "text": "Not proven: the last validation could not run."}
    found = what_failed(validate.detail)
    return {"level": "bad", "text": f"The last validation failed: {found}." if found else "The last validation failed."}


def _copies(connection: driver.Connection) -> dict[str, list[tuple[float, float, int]]]:
    if driver.scalar(connection, "SELECT to_regclass('migration.chunks')") is None:
        return {}
    found: dict[str, list[tuple[float, float, int]]] = {}
    for target, start, end, rows in driver.rows(
        connection,
        "SELECT target, extract(epoch FROM started_at)::float8, extract(epoch FROM finished_at)::float8, rows FROM migration.chunks"
        " WHERE state = 'done' AND rows > 0 ORDER BY finished_at",
    ):
        found.setdefault(target, []).append((start, end, rows))
    return found


def _rejects(connection: driver.Connection) -> list[dict[str, Any]]:
    if driver.scalar(connection, "SELECT to_regclass('migration.rejects')") is None:
        return []
    names = ("target", "column", "rule", "rows", "dependants")
    statement = "SELECT target, column_name, rule, count(*), count(caused_by) FROM migration.rejects GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    return [dict(zip(names, row, strict=True)) for row in driver.rows(connection, statement)]


def _over_time(copies: Mapping[str, Sequence[tuple[float, float, int]]]) -> dict[str, list[tuple[float, float]]]:
    """Return rows a second of each table over the seconds of the whole copy: each chunk's rows spread over its own time.

    Hours without any work (a run that was killed and gone on with later) stay visible as zero.
    """
    if not copies:
        return {}
    first = min(start for chunks in copies.values() for start, _, _ in chunks)
    last = max(end for chunks in copies.values() for _, end, _ in chunks)
    width = max((last - first) / BINS, 1e-3)
    series = {}
    for name, chunks in copies.items():
        bins = [0.0] * BINS
        for start, end, rows in chunks:
            length = max(end - start, 1e-6)
            low, high = int((start - first) / width), min(BINS - 1, int((end - first) / width))
            for index in range(max(0, low), high + 1):
                overlap = min(end, first + (index + 1) * width) - max(start, first + index * width)
                bins[index] += rows * max(0.0, overlap) / length
        busy = [index for index, value in enumerate(bins) if value]
        shown = range(max(0, busy[0] - 1), min(BINS, busy[-1] + 2)) if busy else range(0)
        series[name] = [(round((index + 0.5) * width, 3), round(bins[index] / width, 1)) for index in shown]
    return series


def _recorded_rates(records: Sequence[Record]) -> dict[str, list[tuple[float, float]]]:
    """Return the rates that the transfer recorded itself, for when the ledgers are gone."""
    found = [record for record in records if record.kind == "migrate" and record.detail.get("rates")]
    return {name: [(float(when), float(rate)) for when, rate in points] for name, points in found[-1].detail["rates"].items()} if found else {}


def _outcome(item: Mapping[str, Any], validated: Mapping[str, Any], quarantined: Mapping[str, int]) -> dict[str, int]:
    """Return how many rows of a table ended how."""
    judged: Mapping[str, Any] = next((one for one in validated.get("tables", []) if (one.get("target") or one.get("name")) == item["target"]), {})
    kinds = judged.get("kinds") or {}
    wrong = {kind: int(kinds.get(kind) or 0) for kind in ("different", "missing", "extra", "duplicate")}
    differences = int(item.get("differences") or 0)
    if differences and not any(wrong.values()):
        wrong["different"] = differences
    known = item.get("target_rows") if item.get("target_rows") is not None else item.get("rows")
    fine = max(0, int(known or 0) - wrong["different"] - wrong["extra"] - wrong["duplicate"])
    label = svg.EQUAL if item.get("differences") is not None else svg.CARRIED
    return {label: fine, **wrong, svg.QUARANTINED: quarantined.get(str(item["target"]), 0)}


def _phase(record: Record) -> dict[str, Any]:
    seconds = record.detail.get("seconds")
    if isinstance(seconds, Mapping):
        seconds = sum(value for value in seconds.values() if isinstance(value, (int, float)))
    return {
        "phase": record.kind,
        "outcome": record.outcome,
        "when": clock(record.recorded_at),
        "seconds": round(seconds, 2) if isinstance(seconds, (int, float)) else None,
        "service": str(record.detail.get("service", "")),
        "runner": str(record.detail.get("runner", "")),
        "error": str(record.detail.get("error", "")),
        "remark": str(record.detail.get("remark", "")) or _remark(record),
        "plan_digest": record.plan_digest,
    }


def _remark(record: Record) -> str:
    """Return what a validation found, what a repair wrote or a release brought in, in a few words."""
    if record.kind == "validate":
        return what_failed(record.detail) if record.outcome == "failed" else ""
    if record.kind == "repair":
        return ", ".join(f"{record.detail[name]:,} {name}" for name in ("inserted", "updated", "deleted", "left") if record.detail.get(name))
    if record.kind == "release":
        return f"{sum(record.detail.get('tables', {}).values()):,} brought in, {record.detail.get('staying') or 0:,} left in quarantine"
    return ""


def _migration(migration: Migration | None) -> dict[str, Any] | None:
    if migration is None:
        return None
    return {
        "run_id": migration.run_id,
        "state": migration.state,
        "plan_digest": migration.plan_digest,
        "namespace_fingerprint": migration.namespace_fingerprint,
        "plan_time": migration.plan_time,
        "snapshot": migration.snapshot,
        "opened_at": clock(migration.opened_at),
    }
