# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare every column of every row of both sides: one scan of each, then only what differs.

compare() scans both sides at one consistent point each, adds up the parts of a target, and opens the buckets that differ to
the row and then to the column. When anybody writes to a server meanwhile, differences are read again until they persist.
Nothing is written anywhere; a finding names keys, ids and columns, never values.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from . import digest as d
from .context import Context
from .errors import MigrationError
from .plan import BOOKKEEPING, Cell, Part, Plan, Target, one_of
from .quote import ident, literal
from .scan import ForeignKeys, Sides

MISSING, EXTRA, DIFFERENT, DUPLICATE, SERVICE_ROW = "missing", "extra", "different", "duplicate", "service_row"
BATCH_ROWS = 400_000  # rows that one opening holds in memory at most, roughly
COLUMN_BATCH = 2_000

Progress = Callable[[str, int, int], None]  # what, done rows, all rows


@dataclass(frozen=True)
class Options:
    """How to compare.

    `parallel` is PostgreSQL's max_parallel_workers_per_gather, `settle_*` are for servers that are written to. Who only wants
    to know which rows differ leaves `columns` and `references` out.
    """

    digest: str = d.AUTO
    workers: int = 2
    parallel: int = 0
    settle_attempts: int = 3
    settle_seconds: float = 2.0
    findings_kept: int = 10_000
    columns: bool = True
    references: bool = True
    after_cutover: bool = False


@dataclass(frozen=True)
class Finding:
    """One row that is not as it should be. `part` and `source_key` are None for a row that no source row explains."""

    target: str
    part: str | None
    kind: str
    source_key: str | None
    id: str | None
    columns: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Return the finding in one line, without values."""
        where = f" part {self.part}" if self.part else ""
        key = f" key {self.source_key}" if self.source_key is not None else ""
        columns = f" columns {', '.join(self.columns)}" if self.columns else ""
        return f"{self.target}{where}: {self.kind}{key} id {self.id}{columns}"


@dataclass(frozen=True)
class TableResult:
    """What the comparison of one target table found; `rejected` rows were quarantined and are not expected in the target."""

    target: str
    source_rows: int
    target_rows: int
    rejected: int
    differences: int
    kinds: Mapping[str, int]
    buckets: int
    opened: int
    seconds: float
    source_digest: str
    target_digest: str
    bookkeeping: bool = False

    @property
    def rows_per_second(self) -> int:
        """Return how many rows of both sides were compared in a second."""
        return int((self.source_rows + self.target_rows) / self.seconds) if self.seconds > 0 else 0


@dataclass(frozen=True)
class Reference:
    """One column whose ids live in another table: how many of its values have no row there.

    `by` is `foreign key` where the source's own validated constraints prove it for rows that are equal; nothing is counted then.
    """

    target: str
    column: str
    refers_to: str
    checked: int
    dangling: int
    keys: tuple[str, ...] = ()
    by: str = "join"

    @property
    def line(self) -> str:
        """Return the check in one line."""
        return f"{self.target}.{self.column}: {self.dangling} of {self.checked} refer to no row of {self.refers_to}: {', '.join(self.keys[:5])}"


@dataclass(frozen=True)
class Verification:
    """The verdict and everything it rests on."""

    tables: Mapping[str, TableResult]
    findings: tuple[Finding, ...]
    references: tuple[Reference, ...]
    differences: int
    digest: d.Digest
    consistency: str
    positions: Mapping[str, str]
    rejects: tuple[Mapping[str, Any], ...]
    seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Tell whether both sides are equal and every reference has its row."""
        return self.differences == 0 and not any(reference.dangling for reference in self.references)

    @property
    def verdict(self) -> str:
        """Return one line."""
        rows = sum(table.source_rows for table in self.tables.values())
        rejected = sum(table.rejected for table in self.tables.values())
        aside = f", {rejected} rows quarantined" if rejected else ""
        if self.passed:
            return f"equal: {rows} rows in {len(self.tables)} tables, every column, no difference{aside}"
        dangling = sum(reference.dangling for reference in self.references)
        hanging = f", {dangling} references without a row" if dangling else ""
        return f"NOT equal: {self.differences} differences in {rows} rows of {len(self.tables)} tables{hanging}{aside}"

    def to_dict(self) -> dict[str, Any]:
        """Return what validation.json and the records keep."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "differences": self.differences,
            "digest": {"method": self.digest.method, "label": self.digest.label, "reason": self.digest.reason},
            "consistency": self.consistency,
            "positions": dict(self.positions),
            "tables": [{**asdict(table), "kinds": dict(table.kinds), "rows_per_second": table.rows_per_second} for table in self.tables.values()],
            "references": [asdict(reference) for reference in self.references],
            "rejects": [dict(item) for item in self.rejects],
            "findings": [asdict(finding) for finding in self.findings],
            "findings_total": self.differences,
            "seconds": round(self.seconds, 3),
            "phases": {name: round(value, 3) for name, value in self.phases.items()},
        }


@dataclass(frozen=True)
class _Scan:
    """The buckets of both sides of one target."""

    target: Target
    bits: int
    source: Mapping[int, tuple[int, int, int]]
    target_side: Mapping[int, tuple[int, int, int]]
    seconds: float

    @property
    def differing(self) -> list[int]:
        """Return the numbers of the buckets that differ."""
        numbers = self.source.keys() | self.target_side.keys()
        return sorted(number for number in numbers if self.source.get(number) != self.target_side.get(number))


@dataclass(frozen=True)
class _Located:
    """A finding and the value by which its source row is found again."""

    finding: Finding
    chunk: str | None = None


def compare(
    context: Context,
    plan_time: str,
    *,
    tables: Sequence[str] | None = None,
    snapshot: str | None = None,
    options: Options = Options(),
    progress: Progress | None = None,
    kept: Mapping[str, TableResult] = MappingProxyType({}),
    finished: Callable[[TableResult], None] = lambda result: None,
) -> Verification:
    """Compare the targets named by `tables` (service.table; all by default) and return the verdict.

    `finished` is told each table that was found equal, as soon as it is; `kept` are such results of an interrupted run,
    whose tables are not scanned again.

    `snapshot` is an exported snapshot of the source to compare at. MigrationError when a server cannot be read.
    """
    chosen = choose(context.plan, tables)
    started = time.monotonic()
    with Sides(context, plan_time, chosen, snapshot, options.workers, options.parallel) as sides:
        positions = sides.positions()
        agreed = d.handshake(sides.leaders(), chosen, options.digest)
        rejects = _rejects(sides, chosen)
        scans = []
        for scan in _scan(sides, [target for target in chosen if target.name not in kept], agreed, rejects, progress):
            scans.append(scan)
            if not scan.differing:
                finished(_result(scan, (), rejects[scan.target.name], options))
        scanned = time.monotonic()
        located = {scan.target.name: _open(sides, scan, agreed, rejects[scan.target.name]) for scan in scans if scan.differing}
        counts = {name: len(found) for name, found in located.items()}
        consistency = "judged at one consistent point of each database"
        if any(counts.values()) and snapshot is None:  # who gives a snapshot wants to know about that one
            located, consistency = _settle(sides, scans, agreed, rejects, located, options)
        named = _columns(sides, context.plan, agreed, located, options)
        opened = time.monotonic()
        references = _references(sides, context.plan, chosen, rejects, located) if options.references else []
    results = {target.name: kept[target.name] for target in chosen if target.name in kept}
    if results:
        consistency += f"; {len(results)} tables were found equal by an interrupted run and not read again"
    results |= {scan.target.name: _result(scan, located.get(scan.target.name, []), rejects[scan.target.name], options) for scan in scans}
    ended = time.monotonic()
    return Verification(
        tables=results,
        findings=tuple(named),
        references=tuple(references),
        differences=sum(result.differences for result in results.values()),
        digest=agreed,
        consistency=consistency,
        positions=positions,
        rejects=tuple({"target": name, "part": part, "rows": len(keys)} for name, parts in rejects.items() for part, keys in parts.items()),
        seconds=ended - started,
        phases={"scan": scanned - started, "open": opened - scanned, "references": ended - opened},
    )


def choose(plan: Plan, names: Sequence[str] | None) -> tuple[Target, ...]:
    """Return the targets that the names stand for; MigrationError for a name that the plan does not have."""
    if names is None:
        return plan.targets
    known = {target.name: target for target in plan.targets}
    for name in names:
        if name not in known:
            raise MigrationError(f"validate: the plan has no target {name!r} (known: {', '.join(sorted(known))})")
    return tuple(known[name] for name in dict.fromkeys(names))


Rejects = Mapping[str, Mapping[str, Sequence[str]]]  # target -> part -> source keys


def _rejects(sides: Sides, targets: Sequence[Target]) -> Rejects:
    """Return the quarantined source keys by target and part."""
    found: dict[str, dict[str, list[str]]] = {target.name: {} for target in targets}
    for service in dict.fromkeys(target.service for target in targets):
        if sides.ask(service, f"SELECT to_regclass('{BOOKKEEPING}.rejects')")[0][0] is None:
            continue
        for name, part, key in sides.ask(service, f"SELECT DISTINCT target, coalesce(part, ''), source_key FROM {BOOKKEEPING}.rejects"):
            if name in found:
                found[name].setdefault(part, []).append(key)
    return found


def _without(part: Part, rejects: Mapping[str, Sequence[str]]) -> str:
    """Return the WHERE that leaves out a part's quarantined rows: an anti-join, whatever their number."""
    keys = rejects.get(part.name, ())
    if not keys:
        return ""
    listed = "{" + ",".join('"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"' for key in keys) + "}"
    return f" WHERE NOT EXISTS (SELECT FROM unnest({literal(listed)}::text[]) AS rejected (key) WHERE rejected.key = {part.key_text})"


def _scan(sides: Sides, targets: Sequence[Target], agreed: d.Digest, rejects: Rejects, progress: Progress | None) -> Iterator[_Scan]:
    """Scan all targets and all parts, the largest first, both sides at once; yield each target when it is through."""
    estimates = {target.name: sides.estimate(target) for target in targets}
    bits = {name: d.bits_for(rows) for name, rows in estimates.items()}
    order = sorted(targets, key=lambda target: -estimates[target.name])
    total, done = int(sum(estimates.values())) * 2, 0
    jobs: dict[tuple[str, str], list[Future[tuple[list[tuple[Any, ...]], float]]]] = defaultdict(list)
    for target in order:
        for part in target.parts:
            row = d.source_row(target, part, sides.schema, agreed)
            jobs[target.name, "source"].append(
                sides.source(d.buckets(row, agreed, bits[target.name], _without(part, rejects[target.name])), f"reading {part.label} for {target.name}")
            )
        statement = d.buckets(d.target_row(target, agreed), agreed, bits[target.name])
        jobs[target.name, "target"].append(sides.target(target.service, statement, f"reading {target.name}"))
    for target in order:
        sums: dict[str, dict[int, tuple[int, int, int]]] = {"source": {}, "target": {}}
        seconds = 0.0
        for side in ("source", "target"):
            spent = 0.0
            for job in jobs.pop((target.name, side)):  # popped, so that its rows are not held until the end
                rows, taken = job.result()
                spent += taken
                _add(sums[side], rows)
            seconds = max(seconds, spent)
        if progress:
            done += 2 * int(estimates[target.name])
            progress(target.name, done, total)
        yield _Scan(target, bits[target.name], sums["source"], sums["target"], seconds)


def _add(sums: dict[int, tuple[int, int, int]], rows: Iterable[tuple[Any, ...]]) -> None:
    for number, count, first, second in rows:
        old = sums.get(number, (0, 0, 0))
        sums[number] = (old[0] + count, old[1] + int(first), old[2] + int(second))


def _open(sides: Sides, scan: _Scan, agreed: d.Digest, rejects: Mapping[str, Sequence[str]]) -> list[_Located]:
    """Return every row that differs, from the buckets that differ, a batch of buckets at a time."""
    found: list[_Located] = []
    for numbers in _batches(scan):
        found += _open_batch(sides, scan, agreed, rejects, numbers)
    return found


def _batches(scan: _Scan) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    held = 0
    for number in scan.differing:
        rows = scan.source.get(number, (0,))[0] + scan.target_side.get(number, (0,))[0]
        if batches[-1] and held + rows > BATCH_ROWS:
            batches.append([])
            held = 0
        batches[-1].append(number)
        held += rows
    return batches


def _open_batch(sides: Sides, scan: _Scan, agreed: d.Digest, rejects: Mapping[str, Sequence[str]], numbers: Sequence[int]) -> list[_Located]:
    target = scan.target
    reading = f"opening buckets of {target.name}"
    own = sides.target(target.service, d.opened(d.target_row(target, agreed), agreed, scan.bits, numbers, ()), reading)
    theirs = []
    for part in target.parts:
        row = d.source_row(target, part, sides.schema, agreed)
        extra = (part.key_text, f"(src.{ident(part.chunk_by)})::text")
        theirs.append((part, sides.source(d.opened(row, agreed, scan.bits, numbers, extra, _without(part, rejects)), reading)))
    expected: dict[str | None, list[tuple[int, int, str, str, str | None]]] = defaultdict(list)
    for part, job in theirs:
        for id_, first, second, key, chunk in job.result()[0]:
            expected[id_].append((first, second, part.name, key, chunk))
    present: dict[str | None, list[tuple[int, int]]] = defaultdict(list)
    for id_, first, second in own.result()[0]:
        present[id_].append((first, second))
    found: list[_Located] = []
    for id_ in expected.keys() | present.keys():
        if id_ in expected and id_ in present and sorted(row[:2] for row in expected[id_]) == sorted(present[id_]):
            continue
        found += _judge(target, id_, expected.get(id_, []), present.get(id_, []))
    return found


def _judge(target: Target, id_: str | None, expected: Sequence[tuple[int, int, str, str, str | None]], present: Sequence[tuple[int, int]]) -> list[_Located]:
    """Return the findings for one id that is not the same on both sides."""
    shown = _uuid(id_)
    if not expected:
        many = DUPLICATE if len(present) > 1 else EXTRA
        return [_Located(Finding(target.name, None, many if index else EXTRA, None, shown)) for index in range(len(present))]
    remaining = list(present)
    unmatched = []
    for row in expected:
        if row[:2] in remaining:
            remaining.remove(row[:2])
        else:
            unmatched.append(row)
    found = []
    for _, _, part, key, chunk in unmatched:
        kind = DIFFERENT if remaining else MISSING
        if remaining:
            remaining.pop()
        found.append(_Located(Finding(target.name, part, kind, key, shown), chunk))
    _, _, part, key, chunk = expected[0]
    found += [_Located(Finding(target.name, part, DUPLICATE, key, shown), chunk) for _ in remaining]
    return found


def _uuid(hexadecimal: str | None) -> str | None:
    if hexadecimal is None:
        return None
    return "-".join((hexadecimal[:8], hexadecimal[8:12], hexadecimal[12:16], hexadecimal[16:20], hexadecimal[20:]))


def _settle(
    sides: Sides, scans: Sequence[_Scan], agreed: d.Digest, rejects: Rejects, located: dict[str, list[_Located]], options: Options
) -> tuple[dict[str, list[_Located]], str]:
    """Read differences again, at newer points, until they persist or are gone; at once when nobody writes."""
    live = False
    for attempt in range(1, options.settle_attempts + 1):
        if not sides.written_to():
            break
        live = True
        time.sleep(options.settle_seconds)
        sides.renew()
        again: dict[str, list[_Located]] = {}
        for scan in scans:
            before = {(item.finding.id, item.finding.source_key) for item in located.get(scan.target.name, [])}
            if before:
                found = _open(sides, scan, agreed, rejects[scan.target.name])
                again[scan.target.name] = [item for item in found if (item.finding.id, item.finding.source_key) in before]
        located = again
        if not any(located.values()):
            return located, f"differences were read again until none was left ({attempt} times): the databases are written to"
    if live:
        return located, f"differences were read again and persisted ({options.settle_attempts} times): the databases are written to"
    return located, "judged at one consistent point of each database; nobody wrote to them meanwhile"


def _columns(sides: Sides, plan: Plan, agreed: d.Digest, located: Mapping[str, Sequence[_Located]], options: Options) -> list[Finding]:
    """Return the findings to keep, the different ones with their columns."""
    kept: list[Finding] = []
    targets = {target.name: target for target in plan.targets}
    for name, found in located.items():
        target = targets[name]
        room = max(0, options.findings_kept - len(kept))
        for item in found[:room]:
            if item.finding.kind != DIFFERENT:
                finding = item.finding
                if options.after_cutover and finding.kind == EXTRA:
                    finding = replace(finding, kind=SERVICE_ROW)
                kept.append(finding)
        different = [item for item in found[:room] if item.finding.kind == DIFFERENT]
        if not options.columns:
            kept += [item.finding for item in different]
            continue
        for start in range(0, len(different), COLUMN_BATCH):
            kept += _name_columns(sides, target, agreed, different[start : start + COLUMN_BATCH])
    return kept


def _name_columns(sides: Sides, target: Target, agreed: d.Digest, items: Sequence[_Located]) -> list[Finding]:
    reading = f"naming the columns that differ in {target.name}"
    ids = "{" + ",".join(str(item.finding.id) for item in items if item.finding.id) + "}"
    own = d.target_row(target, agreed)
    statement = (
        f"SELECT t.{ident(target.id_column)}::text, {own.column_digests()} FROM {own.source} WHERE t.{ident(target.id_column)} = ANY ({literal(ids)}::uuid[])"
    )
    present: dict[str, list[str]] = dict(sides.target(target.service, statement, reading).result()[0])
    expected: dict[tuple[str | None, str | None], list[str]] = {}
    for part in target.parts:
        wanted = [item for item in items if item.finding.part == part.name]
        if not wanted:
            continue
        row = d.source_row(target, part, sides.schema, agreed)
        by_chunk = one_of(sorted({item.chunk for item in wanted if item.chunk is not None}))
        predicate = None if any(item.chunk is None for item in wanted) else by_chunk
        select = part.select_columns([part.key_text, row.column_digests()], sides.schema, predicate)
        keys = {item.finding.source_key for item in wanted}
        for key, digests in sides.source(select, reading).result()[0]:
            if key in keys:
                expected[part.name, key] = digests
    named = []
    names = [name for name in target.columns if name != target.id_column]
    for item in items:
        theirs, ours = expected.get((item.finding.part, item.finding.source_key)), present.get(str(item.finding.id))
        differing = tuple(name for name, one, other in zip(names, theirs, ours, strict=True) if one != other) if theirs and ours else ()
        named.append(replace(item.finding, columns=differing))
    return named


def _references(sides: Sides, plan: Plan, targets: Sequence[Target], rejects: Rejects, located: Mapping[str, Sequence[_Located]]) -> list[Reference]:
    """Check that each id of another table exists there.

    Rows that were proven equal are checked on the source, by their integer keys, against what the other table's part
    yields; ids of rows that were not proven equal, and rows that miss in the other table, are looked up in the targets.
    """
    entities = {entity.name: entity for entity in plan.entities}
    by_table = {(target.service, target.table): target for target in plan.targets}
    jobs = []
    keys_of_source = sides.foreign_keys()
    for target in targets:
        if target.bookkeeping:
            continue
        for column in target.columns:
            cells = [(part, cell) for part in target.parts for cell in part.cells if cell.name == column and cell.is_id and cell.key]
            for entity in dict.fromkeys(cell.entity for _, cell in cells):
                other = by_table.get((entities[str(entity)].service, entities[str(entity)].target))
                if other is None:  # minted without a table of its own: its id map is what others hold
                    continue
                home = next(part for part in other.parts if part.entity == entity)
                statements = [
                    _reference_statement(sides.schema, part, str(cell.key), home, rejects[target.name], rejects.get(other.name, {}))
                    for part, cell in cells
                    if cell.entity == entity and not (_by_foreign_key(part, cell, home, keys_of_source) and not rejects.get(other.name))
                ]
                checks = [sides.source(statement, f"checking {target.name}.{column}") for statement in statements]
                jobs.append((target, column, other, checks))
    found = []
    for target, column, other, checks in jobs:
        checked = dangling = 0
        keys: list[str] = []
        for check in checks:
            for count, bad, some in check.result()[0]:
                checked, dangling = checked + count, dangling + bad
                keys += some or []
        bad, some_ids = _look_up(sides, target, column, other, located)
        by = "join" if checks else "foreign key"
        found.append(Reference(target.name, column, other.name, checked, dangling + bad, (*keys, *some_ids)[:20], by))
    return found


def _by_foreign_key(part: Part, cell: Cell, home: Part, foreign_keys: ForeignKeys) -> bool:
    """Tell whether the source itself guarantees that the cell's key has its row, and that row is one of the other table's."""
    if part.table is None or home.table is None or len(cell.reads) != 1 or cell.key != f"src.{ident(cell.reads[0])}":
        return False
    return (part.table, cell.reads[0], home.table, home.key[0]) in foreign_keys


def _reference_statement(
    schema: str, part: Part, key: str, home: Part, own_rejects: Mapping[str, Sequence[str]], other_rejects: Mapping[str, Sequence[str]]
) -> str:
    """Return the SELECT of (checked, dangling, some source keys) for one part's column."""
    inner = home.select_columns([f"src.{ident(home.key[0])} AS home_key"], schema) + _without(home, other_rejects)
    outer = part.select_columns([f"({key}) AS refers", f"{part.key_text} AS key"], schema) + _without(part, own_rejects)
    return (
        "SELECT count(*), count(*) FILTER (WHERE home.home_key IS NULL), (array_agg(rows.key) FILTER (WHERE home.home_key IS NULL))[1:20]"
        f" FROM ({outer}) AS rows LEFT JOIN ({inner}) AS home ON home.home_key = rows.refers WHERE rows.refers IS NOT NULL"
    )


def _look_up(sides: Sides, target: Target, column: str, other: Target, located: Mapping[str, Sequence[_Located]]) -> tuple[int, list[str]]:
    """Return how many references hang that the source cannot know of, and some ids of their rows."""
    unproven = [str(item.finding.id) for item in located.get(target.name, []) if item.finding.kind != MISSING and item.finding.id]
    gone = [str(item.finding.id) for item in located.get(other.name, []) if item.finding.kind == MISSING and item.finding.id]
    mine, name = f"t.{ident(target.id_column)}", f"t.{ident(column)}"
    reading = f"looking up {target.name}.{column}"
    pairs: dict[str, str] = {}
    for where, values in ((mine, unproven), (name, gone)):
        for start in range(0, len(values), 50_000):
            listed = literal("{" + ",".join(values[start : start + 50_000]) + "}")
            statement = f"SELECT {mine}::text, {name}::text FROM {target.qualified} AS t WHERE {where} = ANY ({listed}::uuid[]) AND {name} IS NOT NULL"
            pairs.update(sides.target(target.service, statement, reading).result()[0])
    wanted = sorted(set(pairs.values()))
    there: set[str] = set()
    for start in range(0, len(wanted), 50_000):
        listed = literal("{" + ",".join(wanted[start : start + 50_000]) + "}")
        statement = f"SELECT o.{ident(other.id_column)}::text FROM {other.qualified} AS o WHERE o.{ident(other.id_column)} = ANY ({listed}::uuid[])"
        there |= {row[0] for row in sides.target(other.service, statement, reading).result()[0]}
    hanging = [id_ for id_, refers in pairs.items() if refers not in there]
    return len(hanging), [f"id {id_}" for id_ in hanging[:20]]


def _result(scan: _Scan, found: Sequence[_Located], rejects: Mapping[str, Sequence[str]], options: Options) -> TableResult:
    kinds: dict[str, int] = defaultdict(int)
    for item in found:
        kinds[SERVICE_ROW if options.after_cutover and item.finding.kind == EXTRA else item.finding.kind] += 1
    return TableResult(
        target=scan.target.name,
        source_rows=sum(bucket[0] for bucket in scan.source.values()),
        target_rows=sum(bucket[0] for bucket in scan.target_side.values()),
        rejected=sum(len(keys) for keys in rejects.values()),
        differences=sum(count for kind, count in kinds.items() if kind != SERVICE_ROW),
        kinds=dict(kinds),
        buckets=1 << scan.bits,
        opened=len(scan.differing),
        seconds=round(scan.seconds, 3),
        source_digest=_fold(scan.source),
        target_digest=_fold(scan.target_side),
        bookkeeping=scan.target.bookkeeping,
    )


def _fold(sums: Mapping[int, tuple[int, int, int]]) -> str:
    """Return a table's digest for reports: both lanes of all buckets, each modulo 2^64."""
    return "".join(f"{sum(bucket[lane] for bucket in sums.values()) % (1 << 64):016x}" for lane in (1, 2))
