# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole preflight: connect, read, judge. Writes nothing; the caller records the outcome."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from .. import control as records
from .. import ddl, driver
from ..context import Context
from ..contract import Contract
from ..errors import MigrationError
from ..sessions.announce import reset_links
from ..sessions.store import StoreOptions
from . import collisions, coverage, dependencies, estimates, readiness, rejects, scan, source_catalog
from .contract_checks import scanned as scanned_parts
from .findings import INFO, STOP, WARN, Finding, ordered, stops
from .readiness import require_reachable

__all__ = ["Options", "Report", "require_reachable", "run"]

APPLICATION_NAME = "edulink-migration preflight"
# Large generated expressions make just-in-time compilation slower than running them; grouping a million keys fits 128 MB.
GENTLE = {"jit": "off", "work_mem": "128MB", "lock_timeout": "5s"}
ANY_TIME = "2000-01-01 00:00:00"  # stands for the plan's timestamp before one is pinned


@dataclass(frozen=True)
class Options:
    """What the operator chose."""

    bin_dir: str | None = None
    quarantine_cap: int = 100_000
    space_folder: str | None = "/"
    store: StoreOptions | None = None
    reset_timeout: int = 3 * 86400  # Django's PASSWORD_RESET_TIMEOUT, in seconds


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


def run(context: Context, options: Options, live: records.Migration | None) -> Report:
    """Return what preflight finds; MigrationError when a database cannot be reached."""
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
        findings += readiness.check_store(options.store)
        if options.store is not None:
            findings.append(Finding(INFO, "sessions", "announce", reset_links(options.reset_timeout)[0], "the text to announce is in docs/sessions.md"))
        lap("readiness")
        with driver.database_errors(context.source.place, "reading the catalog"):
            catalog = source_catalog.read(source, context.source.schema)
            called = coverage.volatile_names(context.plan)
            findings += coverage.check_volatile(called, readiness.volatile_functions(source, called))
        elsewhere = coverage.check_database(context.plan, catalog, context.source.name, context.source.dbname)
        findings += elsewhere or coverage.check(context.plan, catalog)
        findings += _drift(context)
        findings += dependencies.check(context.plan, catalog)
        graph = dependencies.build(context.plan, catalog)
        extra["dependencies"] = {"graph": graph.to_dict(), "mermaid": graph.mermaid()}
        lap("coverage")
        encodings = {name: (source_server.encoding, server.encoding) for name, server in servers.items()}
        blocked = coverage.blocked(context.plan, catalog)
        scanned = scan.run(source, context.plan, catalog, encodings, blocked=blocked)
        findings += scanned.findings
        rows = scanned.rows
        lap("contract")
        if stops(findings) == 0:
            expected = estimates.estimate(source, scanned.scans, context.source.schema, rows, source_server.size)
            extra["estimates"] = expected.to_dict()
            findings += estimates.check_space(expected, options.space_folder)
            lap("estimates")
        findings += collisions.check(context, source, scanned.scans)
        lap("collisions")
        if rejects.quarantines(context.plan) and len(scanned.scans) == len(scanned_parts(context.plan)):
            found, extra["quarantine"] = _quarantine(context, plan_time, options.quarantine_cap)
            findings += found
            lap("quarantine")
    return Report(ordered(findings), rows, clock, extra)


def _quarantine(context: Context, plan_time: str, cap: int) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Return how many rows stay behind by policy, for each target and rule."""
    try:
        kept = rejects.compute(context, plan_time=plan_time, cap=cap, settings=GENTLE)
    except MigrationError as exc:
        return [Finding(STOP, "policies", "quarantine", str(exc), "correct the source, or choose other policies")], []
    counts = Counter((item.target, item.part, item.rule, item.column_name) for item in kept)
    step = "docs/preflight.md says how a corrected row is brought in"
    findings = [
        Finding(WARN, target, "quarantine", f"stay behind ({rule})", step, target, column, number)
        for (target, _part, rule, column), number in counts.items()
        if not target.endswith(".id_map")
    ]
    listed = [{"target": key[0], "part": key[1], "rule": key[2], "column": key[3], "rows": number} for key, number in counts.items()]
    return findings, listed


def _drift(context: Context) -> list[Finding]:
    """Return where an existing target differs from the contract."""
    findings = []
    for service, data in context.plan.contracts:
        contract = Contract.from_dict(data)
        try:
            with closing(ddl.connect(context.targets[service], contract, readonly=True)) as connection:
                ddl.plan_schema(connection, contract)
        except MigrationError as exc:
            said = str(exc).partition(ddl.UNCHANGED)[0]
            findings.append(Finding(STOP, service, "drift", said, f"bring the database and roles/schema/files/{service} together"))
    return findings
