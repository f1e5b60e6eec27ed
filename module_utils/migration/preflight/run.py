# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole preflight: connect, read, judge. Writes nothing; the caller records the outcome."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

from ..checks import embedded_checks, foreign_key_checks, quarantine, row_accounting, source_catalog, source_indexes
from ..checks.findings import INFO, STOP, WARN, Finding, ordered, stops
from ..checks.row_checks import scanned as scanned_parts
from ..context import Context
from ..errors import MigrationError
from ..plan import null_references
from ..postgres import driver, without_indexes
from ..progress import Progress
from ..sessions.reset_links import reset_links
from ..sessions.store import StoreOptions
from ..state import control as records
from ..state.gates import PREFLIGHT
from ..state.limits import Limits
from ..throttle.pacer import Impatient, Pace
from . import (
    chunk_columns,
    collations,
    collisions,
    coverage,
    dependencies,
    drift,
    estimates,
    large_objects,
    readiness,
    rollback_readiness,
    scan,
    server_types,
    snapshot_trial,
)
from .readiness import require_reachable
from .servers import check_tls as servers_tls

__all__ = ["Options", "Report", "require_reachable", "run"]

APPLICATION_NAME = "edulink-migration preflight"
# Large generated expressions make just-in-time compilation slower than running them; grouping a million keys fits 128 MB.
# Waiting for a lock makes others wait behind us, so it is short; what we take ourselves is ACCESS SHARE, which only DDL minds.
GENTLE = {"jit": "off", "work_mem": "128MB", "lock_timeout": "2s"}
ANY_TIME = "2000-01-01 00:00:00"  # stands for the plan's timestamp before one is pinned


@dataclass(frozen=True)
class Options:
    """What the operator chose."""

    bin_dir: str | None = None
    quarantine_cap: int = 100_000
    space_folder: str | None = "/"
    store: StoreOptions | None = None
    limits: Limits = field(default_factory=Limits)
    patience: float = 900  # seconds that a pause may last
    reset_timeout: int = 3 * 86400  # Django's PASSWORD_RESET_TIMEOUT, in seconds
    verify_server: driver.Endpoint | None = None  # the operator's own server for the proof of the snapshot


@dataclass(frozen=True)
class Report:
    """What preflight found; `detail` is for the records and preflight.json."""

    findings: tuple[Finding, ...]
    rows: dict[tuple[str, str], int]
    seconds: dict[str, float]
    extra: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Return whether it is safe to go on."""
        return stops(self.findings) == 0

    def detail(self) -> dict[str, Any]:
        """Return the report as JSON can carry it; no values of rows."""
        return {
            "findings": [item.to_dict() for item in self.findings],
            "rows": [{"target": target, "part": part, "rows": count} for (target, part), count in self.rows.items()],
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            **self.extra,
        }


def run(context: Context, options: Options, live: records.Migration | None, progress: Progress | None = None) -> Report:
    """Return what preflight finds; MigrationError when a database cannot be reached."""
    context = replace(context, quarantined={})  # nothing is put aside yet that a projection would have to know of
    progress = progress or Progress(None)
    clock: dict[str, float] = {}
    started = time.monotonic()

    def lap(name: str) -> None:
        nonlocal started
        now = time.monotonic()
        clock[name] = now - started
        started = now

    findings: list[Finding] = []
    extra: dict[str, Any] = {}
    rows: dict[tuple[str, str], int] = {}
    with ExitStack() as stack:
        plan_time = live.plan_time if live else ANY_TIME
        source = stack.enter_context(closing(context.connect_source(APPLICATION_NAME, plan_time=plan_time, settings=GENTLE, autocommit=True)))
        targets = {
            name: stack.enter_context(closing(context.connect_target(name, APPLICATION_NAME, readonly=True, settings=GENTLE, autocommit=True)))
            for name in context.plan.services
        }
        control = stack.enter_context(closing(driver.connect(context.control, application_name=APPLICATION_NAME, readonly=True, autocommit=True)))
        found, source_server, servers = readiness.check(context, source, targets, control, options.bin_dir)
        findings += found
        findings += snapshot_trial.check(context)
        findings += rollback_readiness.check(context, verify_server=options.verify_server is not None)
        if options.verify_server is not None:
            findings += servers_tls(options.verify_server, None)
        if options.store is not None:
            finding, extra["announcement"] = reset_links(options.reset_timeout)
            findings.append(Finding(INFO, "sessions", "announce", finding, "announce the text that the report and docs/sessions.md have"))
        lap("readiness")
        with driver.database_errors(context.source.place, "reading the catalog"):
            catalog = source_catalog.read(source, context.source.schema)
            called = coverage.volatile_names(context.plan)
            findings += coverage.check_volatile(called, readiness.volatile_functions(source, called))
        elsewhere = coverage.check_database(context.plan, catalog, context.source.name, context.source.dbname)
        findings += elsewhere or coverage.check(context.plan, catalog)
        findings += coverage.check_references(context.plan)
        findings += chunk_columns.check(source, context.plan, catalog)
        findings += server_types.check(source, targets, context.plan)
        findings += drift.check(context, targets, GENTLE)
        findings += dependencies.check(context.plan, catalog, dependencies.count_unknown(source, context.plan, catalog))
        sessions = catalog.tables.get("django_session")
        extra["sessions"] = options.store is not None and sessions is not None and sessions.rows != 0
        findings += readiness.check_store(options.store, sessions.size if sessions else 0)
        graph = dependencies.build(context.plan, catalog)
        extra["dependencies"] = {"graph": graph.to_dict(), "mermaid": graph.mermaid()}
        lap("coverage")
        encodings = {name: (source_server.encoding, server.encoding) for name, server in servers.items()}
        blocked = coverage.blocked(context.plan, catalog)
        watched = {context.source.name: source, **targets}

        def told(what: str, done: int, total: int) -> None:
            progress.update(PREFLIGHT, what, done, total, unit="sources")

        pace = Pace(options.limits, watched, targets, options.patience, lambda note: progress.note(PREFLIGHT, note))
        try:
            pace.breathe()
            scanned = scan.run(source, context.plan, catalog, encodings, blocked=blocked, pace=pace, progress=told)
            findings += scanned.findings
            rows = scanned.rows
            pace.breathe()
            followed = (*foreign_key_checks.build(context.plan, scanned.scans), *embedded_checks.build(context.plan, scanned.scans))
            findings += foreign_key_checks.check(source, targets, followed)
            pace.breathe()
            read = {name for scan in scanned.scans for name in scan.part.tables}
            findings += large_objects.check(source, context.source.schema, read)
            findings += source_indexes.check(source, [scan.part for scan in scanned.scans], context.source.schema)
            findings += collations.check(source, targets, context.plan, scanned.uniques) + collations.doubts(context.plan)
            lap("contract")
            aside: tuple[quarantine.Reject, ...] = ()
            if quarantine.quarantines(context.plan) and len(scanned.scans) == len(scanned_parts(context.plan)):
                pace.breathe()
                found, extra["quarantine"], aside = _quarantine(context, plan_time, options.quarantine_cap)
                findings += found
                lap("quarantine")
            if null_references.cells(context.plan) and stops(findings) == 0:
                pace.breathe()
                found, extra["nulled"] = _nulled(context, source, quarantine.by_part(aside))
                findings += found
            if stops(findings) == 0:
                pace.breathe()
                with driver.database_errors(context.source.place, "accounting for every row"):
                    refused = quarantine.by_part(aside)
                    accounts = row_accounting.account(lambda statement: without_indexes.rows(source, statement), context.plan, catalog, refused)
                findings += row_accounting.check(accounts)
                extra["accounting"] = [item.to_dict() for item in accounts]
                lap("accounting")
                pace.breathe()
                expected = estimates.estimate(source, scanned.scans, context.source.schema, rows, source_server.size, sessions, aside)
                extra["estimates"] = expected.to_dict()
                findings += estimates.check_space(expected, options.space_folder)
                findings += estimates.check_servers_space(expected, targets, context.targets)
                lap("estimates")
            pace.breathe()
            findings += collisions.check(context, source, scanned.scans, GENTLE)
            lap("collisions")
        except Impatient as exc:
            findings.append(Finding(STOP, "preflight", "pressure", str(exc), "run it again when it is over, or allow more in preflight_limits"))
    return Report(ordered(findings), rows, clock, extra)


def _nulled(context: Context, source: driver.Connection, refused: Mapping[tuple[str, str], Sequence[str]]) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Return how many references become NULL by policy, those to quarantined rows included."""
    with driver.database_errors(context.source.place, "counting references that become NULL"):
        null_references.tell(source, context.plan, refused)
        counted = null_references.count(lambda statement: driver.rows(source, statement), context.plan, context.source.schema, refused)
    step = "chosen in the mapping (foreign_key: null); validate expects exactly that"
    said = "become NULL in all: the row of {} is not there or is quarantined"
    findings = [
        Finding(INFO, item.target, "foreign_key", said.format(item.refers_to), step, item.target, item.column, item.rows)
        for item in counted
        if item.rows and refused  # else each has been counted with the rows' checks
    ]
    return findings, [item.to_dict() for item in counted]


def _quarantine(context: Context, plan_time: str, cap: int) -> tuple[list[Finding], list[dict[str, Any]], tuple[quarantine.Reject, ...]]:
    """Return how many rows stay behind by policy, for each target and rule, and which."""
    try:
        kept = quarantine.compute(context, plan_time=plan_time, cap=cap, settings=GENTLE)
    except MigrationError as exc:
        return [Finding(STOP, "policies", "quarantine", str(exc), "correct the source, or choose other policies")], [], ()
    counts = Counter((item.target, item.part, item.rule, item.column_name) for item in kept)
    step = "docs/preflight.md says how a corrected row is brought in"
    findings = [
        Finding(WARN, target, "quarantine", f"stay behind ({rule})", step, target, column, number)
        for (target, _part, rule, column), number in counts.items()
        if not target.endswith(".id_map")
    ]
    listed = [{"target": key[0], "part": key[1], "rule": key[2], "column": key[3], "rows": number} for key, number in counts.items()]
    return findings, listed, kept
