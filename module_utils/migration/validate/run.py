# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare every column of every row of both sides: one scan of each, then only what differs.

compare() scans both sides at one consistent point each (pieces.py), opens the buckets that differ to the row and then to the
column (opening.py), and looks whether each reference has its row (references.py). When anybody writes to a server meanwhile, differences
are read again until they persist. Nothing is written anywhere; a finding names keys, ids and columns, never values.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace

from ..checks import reconciliation, source_catalog
from ..context import Context
from ..errors import MigrationError
from ..plan import ownership
from ..plan.model import Plan, Target
from . import columns as shape
from . import digest as d
from . import references
from .drilldown import Located, Opener, Row, name_columns, open_one, settle
from .excluded import Rejects, rejected
from .readers import Sides
from .result import DIFFERENT, DUPLICATE, EXTRA, MISSING, SERVICE_ROW, Finding, Reference, TableResult, Verification
from .slices import PIECE_ROWS, Keeping, KeptPiece, Progress, Scan, Scanner

__all__ = [
    "DIFFERENT",
    "DUPLICATE",
    "EXTRA",
    "MISSING",
    "SERVICE_ROW",
    "Finding",
    "Keeping",
    "KeptPiece",
    "Options",
    "Reference",
    "TableResult",
    "Verification",
    "choose",
    "compare",
    "differing_rows",
]

NOTHING_KEPT, NOTHING_LOCATED = Keeping(), Located((), {})


@dataclass(frozen=True)
class Options:
    """How to compare.

    `parallel` is PostgreSQL's max_parallel_workers_per_gather, `settle_*` are for servers that are written to. Who only wants
    to know which rows differ leaves `columns` and `references` out. `accounts` holds what was read against the source's own counts,
    which needs every table.
    """

    digest: str = d.AUTO
    workers: int = 2
    parallel: int = 0
    settle_attempts: int = 3
    settle_seconds: float = 2.0
    findings_kept: int = 10_000
    columns: bool = True
    references: bool = True
    accounts: bool = False
    after_cutover: bool = False
    piece_rows: int = PIECE_ROWS


def compare(
    context: Context,
    plan_time: str,
    *,
    tables: Sequence[str] | None = None,
    snapshot: str | None = None,
    options: Options = Options(),
    progress: Progress | None = None,
    keeping: Keeping = NOTHING_KEPT,
) -> Verification:
    """Compare the targets named by `tables` (service.table; all by default) and return the verdict.

    `snapshot` is an exported snapshot of the source to compare at; `keeping` is where an interrupted run goes on.
    MigrationError when a server cannot be read.
    """
    chosen = choose(context.plan, tables)
    started = time.monotonic()
    every = context.plan.targets  # a part of them refers to others, in other databases too
    with Sides(context, plan_time, every, snapshot, options.workers, options.parallel) as sides:
        positions = sides.positions()
        unmapped = shape.require(sides, chosen)
        agreed = d.handshake(sides.leaders(), chosen, options.digest)
        rejects = rejected(sides, every)
        keys_of_source = sides.foreign_keys()
        counting = _count(sides, context, rejects) if options.accounts else None  # first: whole tables, by one connection
        scanner = Scanner(sides, chosen, agreed, rejects, keeping, options.piece_rows, shared=options.parallel > 0)
        checks = references.start(sides, context.plan, chosen, rejects, scanner.ranges, keys_of_source) if options.references else []
        order = {target.name: number for number, target in enumerate(chosen)}
        scans = sorted(scanner.scans(progress), key=lambda scan: order[scan.target.name])  # they end as they may; findings have one order
        counts = counting.result() if counting is not None else None  # before a newer consistent point is taken
        scanned = time.monotonic()
        opener = Opener(
            sides, agreed, rejects, options.workers, options.findings_kept, lambda target, findings: _shown(sides, target, findings, options)
        )
        located = opener.all(scans)
        _require_found(located)
        consistency = "judged at one consistent point of each database"
        if located and snapshot is None:  # who gives a snapshot wants to know about that one
            wait([job for check in checks for job in check.jobs])  # they use the connections that are given a newer point
            located, consistency = settle(opener, scans, located, options.settle_attempts, options.settle_seconds)
        if scanner.taken_over:
            consistency += f"; {scanner.taken_over} of {scanner.pieces} pieces were read by an interrupted run, and their rows' versions are still the same"
        named = _named(sides, context.plan, agreed, located, options)
        opened = time.monotonic()
        beyond = sum(found.beyond for found in located.values())
        if beyond and checks:
            consistency += f"; the references of {beyond} differing rows that are counted only were not looked up"
        checked = references.finish(sides, checks, {name: [row.finding for row in found.rows] for name, found in located.items()})
    ended = time.monotonic()
    results = {scan.target.name: _result(scan, located.get(scan.target.name, NOTHING_LOCATED), rejects[scan.target.name]) for scan in scans}
    return Verification(
        tables=results,
        findings=tuple(named),
        references=tuple(checked),
        differences=sum(result.differences for result in results.values()),
        digest=agreed,
        consistency=consistency,
        positions=positions,
        rejects=tuple({"target": name, "part": part, "rows": len(keys)} for name in results for part, keys in rejects[name].items()),
        seconds=ended - started,
        left_out=len(every) - len(chosen),
        unmapped=unmapped,
        balance=None if counts is None else counts.against({scan.target.name: scan.source_rows for scan in scans}),
        phases={"scan": scanned - started, "open": opened - scanned, "references": ended - opened},
    )


def differing_rows(context: Context, plan_time: str, snapshot: str, tables: Sequence[str] | None = None, *, apart: bool = False) -> Iterator[Finding]:
    """Yield the rows of the targets (all by default) that differ at an exported snapshot of the source, without their columns.

    However many there are, memory is flat. `apart` calls a service's own rows what they are.
    """
    targets, options = choose(context.plan, tables), Options(after_cutover=apart)
    with Sides(context, plan_time, context.plan.targets, snapshot, options.workers, options.parallel) as sides:
        agreed = d.handshake(sides.leaders(), targets, options.digest)
        rejects = rejected(sides, targets)
        scanner = Scanner(sides, targets, agreed, rejects, NOTHING_KEPT, options.piece_rows, shared=False)
        for scan in list(scanner.scans(None)):
            if scan.differing:
                found = open_one(sides, scan, agreed, rejects[scan.target.name])
                while batch := list(itertools.islice(found, 5000)):
                    yield from _shown(sides, scan.target, [row.finding for row in batch], options)


def _count(sides: Sides, context: Context, rejects: Rejects) -> Future[reconciliation.Counts]:
    catalog = source_catalog.read(sides.leaders()[context.source.place], sides.schema)
    refused = {(name, part): keys for name, parts in rejects.items() for part, keys in parts.items()}
    return sides.source_job(lambda ask: reconciliation.count(ask, context.plan, catalog, refused), "accounting for every row")


def choose(plan: Plan, names: Sequence[str] | None) -> tuple[Target, ...]:
    """Return the targets that the names stand for; MigrationError for a name that the plan does not have."""
    if names is None:
        return plan.targets
    if not names:
        raise MigrationError("validate: validate_tables names no table; leave it out to compare all of them")
    known = {target.name: target for target in plan.targets}
    for name in names:
        if name not in known:
            raise MigrationError(f"validate: the plan has no target {name!r}; name one of {', '.join(sorted(known))} in validate_tables")
    return tuple(known[name] for name in dict.fromkeys(names))


def _require_found(located: Mapping[str, Located]) -> None:
    """Raise MigrationError when digests differ and no row does: both were read at one point, so equal rows cannot be the reason."""
    for name, found in located.items():
        if not found.total:
            raise MigrationError(f"{name}: the digests of both sides differ, but no row was found that does; this is a fault of the program, report it")


def _named(sides: Sides, plan: Plan, agreed: d.Digest, located: Mapping[str, Located], options: Options) -> list[Finding]:
    """Return the findings to keep, the different ones with their columns; each target has its share of the room, the smallest first."""
    kept: list[Finding] = []
    targets = {target.name: target for target in plan.targets}
    smallest = sorted(located, key=lambda name: located[name].total)
    shares: dict[str, Sequence[Row]] = {}
    for number, name in enumerate(smallest):
        room = max(0, options.findings_kept - sum(map(len, shares.values()))) // (len(smallest) - number)
        shares[name] = located[name].rows[:room]
    for name in located:
        kept += [row.finding for row in shares[name] if row.finding.kind != DIFFERENT]
        different = [row for row in shares[name] if row.finding.kind == DIFFERENT]
        kept += name_columns(sides, targets[name], agreed, different) if options.columns else [row.finding for row in different]
    return kept


def _shown(sides: Sides, target: Target, findings: Sequence[Finding], options: Options) -> Sequence[Finding]:
    """Return findings as they are called: after the cutover an extra row is the service's own, unless it is known as the migration's."""
    extra = [finding.id for finding in findings if finding.kind == EXTRA and finding.id] if options.after_cutover else []
    known = ownership.known(target, extra, lambda statement: sides.ask(target.service, statement)) if extra else set()
    return [
        replace(finding, kind=SERVICE_ROW) if options.after_cutover and finding.kind == EXTRA and finding.id not in known else finding
        for finding in findings
    ]


def _result(scan: Scan, found: Located, rejects: Mapping[str, Sequence[str]]) -> TableResult:
    return TableResult(
        target=scan.target.name,
        source_rows=scan.source_rows,
        target_rows=scan.target_rows,
        rejected=sum(len(keys) for keys in rejects.values()),
        differences=sum(count for kind, count in found.kinds.items() if kind != SERVICE_ROW),
        kinds=dict(found.kinds),
        buckets=1 << scan.bits,
        opened=len(scan.differing),
        seconds=round(scan.seconds, 3),
        source_digest=scan.source_digest,
        target_digest=scan.target_digest,
        bookkeeping=scan.target.bookkeeping,
    )
