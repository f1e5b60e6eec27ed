# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare every column of every row of both sides: one scan of each, then only what differs.

compare() scans both sides at one consistent point each (pieces.py), opens the buckets that differ to the row and then to the
column (opening.py), and looks whether each reference has its row (references.py). When anybody writes to a server meanwhile, differences
are read again until they persist. Nothing is written anywhere; a finding names keys, ids and columns, never values.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from . import balance, references
from . import digest as d
from .context import Context
from .errors import MigrationError
from .opening import Located, name_columns, open_all, open_one, settle
from .outcome import DIFFERENT, DUPLICATE, EXTRA, MISSING, SERVICE_ROW, Finding, Reference, TableResult, Verification
from .pieces import PIECE_ROWS, Keeping, KeptPiece, Progress, Scan, Scanner
from .plan import Plan, Target
from .preflight import source_catalog
from .quarantine import Rejects, rejected
from .scan import Sides

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

NOTHING_KEPT = Keeping()


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
    with Sides(context, plan_time, chosen, snapshot, options.workers, options.parallel) as sides:
        positions = sides.positions()
        agreed = d.handshake(sides.leaders(), chosen, options.digest)
        rejects = rejected(sides, chosen)
        keys_of_source = sides.foreign_keys()
        scanner = Scanner(sides, chosen, agreed, rejects, keeping, options.piece_rows, shared=options.parallel > 0)
        checks = references.start(sides, context.plan, chosen, rejects, scanner.ranges, keys_of_source) if options.references else []
        counting = _count(sides, context, rejects) if options.accounts else None
        scans = list(scanner.scans(progress))
        counts = counting.result() if counting is not None else None  # before a newer consistent point is taken
        scanned = time.monotonic()
        located = open_all(sides, scans, agreed, rejects, options.workers)
        consistency = "judged at one consistent point of each database"
        if any(located.values()) and snapshot is None:  # who gives a snapshot wants to know about that one
            located, consistency = settle(
                sides, scans, agreed, rejects, located, options.settle_attempts, options.settle_seconds, options.workers
            )
        if scanner.taken_over:
            consistency += f"; {scanner.taken_over} of {scanner.pieces} pieces were read by an interrupted run, and their rows' versions are still the same"
        named = _named(sides, context.plan, agreed, located, options)
        opened = time.monotonic()
        checked = references.finish(sides, checks, located)
    ended = time.monotonic()
    order = {target.name: number for number, target in enumerate(chosen)}
    results = {
        scan.target.name: _result(scan, located.get(scan.target.name, []), rejects[scan.target.name], options)
        for scan in sorted(scans, key=lambda scan: order[scan.target.name])
    }
    return Verification(
        tables=results,
        findings=tuple(named),
        references=tuple(checked),
        differences=sum(result.differences for result in results.values()),
        digest=agreed,
        consistency=consistency,
        positions=positions,
        rejects=tuple({"target": name, "part": part, "rows": len(keys)} for name, parts in rejects.items() for part, keys in parts.items()),
        seconds=ended - started,
        balance=None if counts is None else counts.against({scan.target.name: scan.source_rows for scan in scans}),
        phases={"scan": scanned - started, "open": opened - scanned, "references": ended - opened},
    )


def differing_rows(context: Context, plan_time: str, snapshot: str) -> Iterator[Finding]:
    """Yield the rows of all targets that differ at an exported snapshot of the source, without their columns; however many, memory is flat."""
    targets, options = context.plan.targets, Options()
    with Sides(context, plan_time, targets, snapshot, options.workers, options.parallel) as sides:
        agreed = d.handshake(sides.leaders(), targets, options.digest)
        rejects = rejected(sides, targets)
        scanner = Scanner(sides, targets, agreed, rejects, NOTHING_KEPT, options.piece_rows, shared=False)
        for scan in list(scanner.scans(None)):
            if scan.differing:
                yield from (located.finding for located in open_one(sides, scan, agreed, rejects[scan.target.name]))


def _count(sides: Sides, context: Context, rejects: Rejects) -> Future[balance.Counts]:
    catalog = source_catalog.read(sides.leaders()[context.source.place], sides.schema)
    refused = {(name, part): keys for name, parts in rejects.items() for part, keys in parts.items()}
    return sides.source_job(lambda ask: balance.count(ask, context.plan, catalog, refused), "accounting for every row")


def choose(plan: Plan, names: Sequence[str] | None) -> tuple[Target, ...]:
    """Return the targets that the names stand for; MigrationError for a name that the plan does not have."""
    if names is None:
        return plan.targets
    known = {target.name: target for target in plan.targets}
    for name in names:
        if name not in known:
            raise MigrationError(f"validate: the plan has no target {name!r} (known: {', '.join(sorted(known))})")
    return tuple(known[name] for name in dict.fromkeys(names))


def _named(sides: Sides, plan: Plan, agreed: d.Digest, located: Mapping[str, Sequence[Located]], options: Options) -> list[Finding]:
    """Return the findings to keep, the different ones with their columns."""
    kept: list[Finding] = []
    targets = {target.name: target for target in plan.targets}
    for name, found in located.items():
        room = max(0, options.findings_kept - len(kept))
        kept += [_shown(item.finding, options) for item in found[:room] if item.finding.kind != DIFFERENT]
        different = [item for item in found[:room] if item.finding.kind == DIFFERENT]
        kept += name_columns(sides, targets[name], agreed, different) if options.columns else [item.finding for item in different]
    return kept


def _shown(finding: Finding, options: Options) -> Finding:
    return replace(finding, kind=SERVICE_ROW) if options.after_cutover and finding.kind == EXTRA else finding


def _result(scan: Scan, found: Sequence[Located], rejects: Mapping[str, Sequence[str]], options: Options) -> TableResult:
    kinds = Counter(_shown(item.finding, options).kind for item in found)
    return TableResult(
        target=scan.target.name,
        source_rows=scan.source_rows,
        target_rows=scan.target_rows,
        rejected=sum(len(keys) for keys in rejects.values()),
        differences=sum(count for kind, count in kinds.items() if kind != SERVICE_ROW),
        kinds=dict(kinds),
        buckets=1 << scan.bits,
        opened=len(scan.differing),
        seconds=round(scan.seconds, 3),
        source_digest=scan.source_digest,
        target_digest=scan.target_digest,
        bookkeeping=scan.target.bookkeeping,
    )
