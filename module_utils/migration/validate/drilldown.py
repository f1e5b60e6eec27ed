# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open what differs: the buckets to rows, the rows to columns; and read again what may only have been on its way.

Where many rows are in buckets that differ, the buckets are cut finer first. Memory holds about OPENED_ROWS rows at a time and as many
findings as are kept, whatever differs: all are counted.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..plan import row_id
from ..plan.model import Part, Target
from ..plan.predicates import one_of
from ..postgres.quote import ident
from . import digest as d
from .excluded import Rejects, without
from .readers import Sides, rows_of_copy
from .result import DIFFERENT, DUPLICATE, EXTRA, MISSING, Finding
from .slices import Scan, add_up, differing, sums_of

OPENED_ROWS = 100_000  # of both sides
MOST_GROUPS = 1 << 16
COLUMN_BATCH = 2_000
SHOWN_BATCH = 1_000
_LANES = 16  # bytes at the end of what digest.opened() gives


@dataclass(frozen=True)
class Row:
    """A finding and the value by which its source row is found again."""

    finding: Finding
    chunk: str | None = None

    @property
    def key(self) -> tuple[str | None, str | None]:
        """Return what a finding is known by when its row is read again: its id, as what differs now may be extra or missing then."""
        return self.finding.id, None if self.finding.id else self.finding.source_key


@dataclass(frozen=True)
class Located:
    """The rows of one target that differ: how many of each kind, and the first of them."""

    rows: tuple[Row, ...]
    kinds: Mapping[str, int]

    @property
    def total(self) -> int:
        """Return how many rows differ, kept or not."""
        return sum(self.kinds.values())

    @property
    def beyond(self) -> int:
        """Return how many of them are counted only."""
        return self.total - len(self.rows)


@dataclass(frozen=True)
class _Expected:
    """One row of the source: its lanes, and where it is from."""

    lanes: bytes
    part: str
    key: str
    chunk: str | None


@dataclass(frozen=True)
class Opener:
    """Opens what differs: at most `keep` findings a target are kept. `shown` turns findings of a target into what they are called."""

    sides: Sides
    agreed: d.Digest
    rejects: Rejects
    workers: int
    keep: int
    shown: Callable[[Target, Sequence[Finding]], Sequence[Finding]] = lambda target, findings: findings

    def all(self, scans: Iterable[Scan], only: Mapping[str, Set[tuple[str | None, str | None]]] | None = None) -> dict[str, Located]:
        """Return every row that differs by target, of the targets in which something does; of those that `only` names, the rows with these keys."""
        chosen = [scan for scan in scans if scan.differing]
        with ThreadPoolExecutor(self.workers) as pool:
            found = list(pool.map(lambda scan: self._one(scan, None if only is None else only.get(scan.target.name)), chosen))
        return {scan.target.name: located for scan, located in zip(chosen, found, strict=True)}

    def _one(self, scan: Scan, only: Set[tuple[str | None, str | None]] | None) -> Located:
        rows: list[Row] = []
        kinds: Counter[str] = Counter()
        found = (row for row in open_one(self.sides, scan, self.agreed, self.rejects[scan.target.name]) if only is None or row.key in only)
        while batch := list(itertools.islice(found, SHOWN_BATCH)):
            for row, finding in zip(batch, self.shown(scan.target, [row.finding for row in batch]), strict=True):
                kinds[finding.kind] += 1
                if len(rows) < self.keep:
                    rows.append(replace(row, finding=finding))
        return Located(tuple(rows), dict(kinds))


def open_one(sides: Sides, scan: Scan, agreed: d.Digest, rejects: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """Yield every row of a target that differs, a batch at a time."""
    bits, buckets = scan.bits, dict(scan.differing)
    while sum(buckets.values()) > OPENED_ROWS and bits < d.FINEST_BITS:
        finer = min(d.FINEST_BITS, bits + max(1, (MOST_GROUPS // len(buckets)).bit_length() - 1))
        held = sum(buckets.values())
        buckets = _finer(sides, scan, agreed, rejects, finer, bits, list(buckets))
        bits = finer
        if sum(buckets.values()) > held / 2:  # nearly everything differs
            break
    for index, numbers in enumerate(_batches(buckets)):
        yield from _open_batch(sides, scan.target, agreed, rejects, bits, numbers, nulls=index == 0)


def _finer(sides: Sides, scan: Scan, agreed: d.Digest, rejects: Mapping[str, Sequence[str]], bits: int, coarse: int, numbers: Sequence[int]) -> dict[int, int]:
    """Return the finer buckets that differ; rows without an id are opened with any of them."""
    target = scan.target
    doing = f"cutting buckets of {target.name} finer"
    own = sides.target(target.service, d.finer(d.target_row(target, agreed), agreed, bits, coarse, numbers), doing)
    theirs = [
        sides.source(d.finer(d.source_row(target, part, sides.schema, agreed), agreed, bits, coarse, numbers, without(part, rejects)), doing)
        for part in target.parts
    ]
    found = differing(add_up(sums_of(job.result()[0]) for job in theirs), sums_of(own.result()[0]))
    return {-1 if number is None else number: rows for number, rows in found.items()}


def _batches(buckets: Mapping[int, int]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    held = 0
    for number in sorted(buckets):
        if batches[-1] and held + buckets[number] > OPENED_ROWS:
            batches.append([])
            held = 0
        batches[-1].append(number)
        held += buckets[number]
    return batches


def _open_batch(
    sides: Sides, target: Target, agreed: d.Digest, rejects: Mapping[str, Sequence[str]], bits: int, numbers: Sequence[int], *, nulls: bool
) -> Iterator[Row]:
    reading = f"opening buckets of {target.name}"
    own = sides.target_copy(target.service, d.opened(d.target_row(target, agreed), agreed, bits, numbers, (), nulls=nulls), reading)
    theirs = []
    for part in target.parts:
        row = d.source_row(target, part, sides.schema, agreed)
        extra = (part.key_text, f"(src.{ident(part.chunk_by)})::text")
        theirs.append((part, sides.source_copy(d.opened(row, agreed, bits, numbers, extra, without(part, rejects), nulls=nulls), reading)))
    sources = [(part, job.result()) for part, job in theirs]
    return _match(target, sources, own.result())


def _match(target: Target, sources: Sequence[tuple[Part, bytes]], own: bytes) -> Iterator[Row]:
    """Yield the findings of one batch: rows whose id and lanes both sides have the same number of times are equal."""
    balance: dict[bytes, int] = {}
    for _, data in sources:
        for row in rows_of_copy(data):
            balance[row[0]] = balance.get(row[0], 0) + 1
    for digested, *_ in rows_of_copy(own):
        left = balance.pop(digested, 0) - 1
        if left:
            balance[digested] = left
    ids = {digested[:-_LANES] for digested in balance}
    expected: dict[bytes, list[_Expected]] = defaultdict(list)
    present: dict[bytes, list[bytes]] = defaultdict(list)
    names: dict[bytes, str] = {}
    for part, data in sources:
        for digested, *name, key, chunk in rows_of_copy(data):
            if digested[:-_LANES] in ids:
                names.update({digested[:-_LANES]: text.decode() for text in name})
                expected[digested[:-_LANES]].append(_Expected(digested[-_LANES:], part.name, key.decode(), chunk.decode() or None))
    for digested, *name in rows_of_copy(own):
        if digested[:-_LANES] in ids:
            names.update({digested[:-_LANES]: text.decode() for text in name})
            present[digested[:-_LANES]].append(digested[-_LANES:])
    for id_ in sorted(ids):
        shown = names.get(id_) or (str(uuid.UUID(bytes=id_)) if len(id_) == 16 else id_.hex())
        yield from _judge(target, shown or None, expected.pop(id_, []), present.pop(id_, []))


def _judge(target: Target, shown: str | None, expected: Sequence[_Expected], present: Sequence[bytes]) -> list[Row]:
    """Return the findings for one id that is not the same on both sides."""
    if not expected:
        many = DUPLICATE if len(present) > 1 else EXTRA
        return [Row(Finding(target.name, None, many if index else EXTRA, None, shown)) for index in range(len(present))]
    remaining = list(present)
    unmatched = []
    for row in expected:
        if row.lanes in remaining:
            remaining.remove(row.lanes)
        else:
            unmatched.append(row)
    found = []
    for row in unmatched:
        kind = DIFFERENT if remaining else MISSING
        if remaining:
            remaining.pop()
        found.append(Row(Finding(target.name, row.part, kind, row.key, shown), row.chunk))
    first = expected[0]
    return found + [Row(Finding(target.name, first.part, DUPLICATE, first.key, shown), first.chunk) for _ in remaining]


def settle(opener: Opener, scans: Sequence[Scan], located: dict[str, Located], attempts: int, seconds: float) -> tuple[dict[str, Located], str]:
    """Read differences again, at newer points, until they persist or are gone; at once when nobody writes. Return them and what was done.

    A target with more differences than are kept is counted anew at each point.
    """
    live = False
    for attempt in range(1, attempts + 1):
        if not opener.sides.written_to():
            break
        live = True
        time.sleep(seconds)
        opener.sides.renew()
        before = {name: {row.key for row in found.rows} for name, found in located.items() if found.total and not found.beyond}
        located = opener.all([scan for scan in scans if scan.target.name in located and located[scan.target.name].total], before)
        if not any(found.total for found in located.values()):
            return located, f"differences were read again until none was left (attempt {attempt}): the databases are written to"
    if not live:
        return located, "judged at one consistent point of each database; nobody wrote to them meanwhile"
    many = "; where more differ than are kept, those of the last point are counted" if any(found.beyond for found in located.values()) else ""
    return located, f"differences were read again and persisted ({attempts} attempts): the databases are written to{many}"


def name_columns(sides: Sides, target: Target, agreed: d.Digest, items: Sequence[Row]) -> list[Finding]:
    """Return the findings of rows that differ with the columns in which they do."""
    named: list[Finding] = []
    for start in range(0, len(items), COLUMN_BATCH):
        named += _name_batch(sides, target, agreed, items[start : start + COLUMN_BATCH])
    return named


def _name_batch(sides: Sides, target: Target, agreed: d.Digest, items: Sequence[Row]) -> list[Finding]:
    reading = f"naming the columns that differ in {target.name}"
    ids = [item.finding.id for item in items if item.finding.id]
    own = d.target_row(target, agreed)
    statement = (
        f"SELECT {row_id.target_name(target)}, {own.column_digests()} FROM {own.source} WHERE {row_id.among(target, ids)}"
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
    names = [name for name in target.columns if name not in target.identity]
    for item in items:
        theirs, ours = expected.get((item.finding.part, item.finding.source_key)), present.get(str(item.finding.id))
        differing = tuple(name for name, one, other in zip(names, theirs, ours, strict=True) if one != other) if theirs and ours else ()
        named.append(replace(item.finding, columns=differing))
    return named
