# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open what differs: the buckets to rows, the rows to columns; and read again what may only have been on its way.

Where many rows are in buckets that differ, the buckets are cut finer first. Memory holds about OPENED_ROWS rows at a time, whatever differs.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from . import digest as d
from .outcome import DIFFERENT, DUPLICATE, EXTRA, MISSING, Finding
from .pieces import Scan, add_up, differing, sums_of
from .plan import Part, Target, one_of
from .quarantine import Rejects, without
from .quote import ident, literal
from .scan import Sides, rows_of_copy

OPENED_ROWS = 100_000  # of both sides
MOST_GROUPS = 1 << 16
COLUMN_BATCH = 2_000
_LANES = 16  # bytes at the end of what digest.opened() gives


@dataclass(frozen=True)
class Located:
    """A finding and the value by which its source row is found again."""

    finding: Finding
    chunk: str | None = None


@dataclass(frozen=True)
class _Expected:
    """One row of the source: its lanes, and where it is from."""

    lanes: bytes
    part: str
    key: str
    chunk: str | None


def open_all(sides: Sides, scans: Iterable[Scan], agreed: d.Digest, rejects: Rejects, workers: int) -> dict[str, list[Located]]:
    """Return every row that differs by target, of the targets in which something does."""
    chosen = [scan for scan in scans if scan.differing]
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda scan: list(open_one(sides, scan, agreed, rejects[scan.target.name])), chosen))
    return {scan.target.name: located for scan, located in zip(chosen, found, strict=True)}


def open_one(sides: Sides, scan: Scan, agreed: d.Digest, rejects: Mapping[str, Sequence[str]]) -> Iterator[Located]:
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
) -> Iterator[Located]:
    reading = f"opening buckets of {target.name}"
    own = sides.target_copy(target.service, d.opened(d.target_row(target, agreed), agreed, bits, numbers, (), nulls=nulls), reading)
    theirs = []
    for part in target.parts:
        row = d.source_row(target, part, sides.schema, agreed)
        extra = (part.key_text, f"(src.{ident(part.chunk_by)})::text")
        theirs.append((part, sides.source_copy(d.opened(row, agreed, bits, numbers, extra, without(part, rejects), nulls=nulls), reading)))
    sources = [(part, job.result()) for part, job in theirs]
    return _match(target, sources, own.result())


def _match(target: Target, sources: Sequence[tuple[Part, bytes]], own: bytes) -> Iterator[Located]:
    """Yield the findings of one batch: rows whose id and lanes both sides have the same number of times are equal."""
    balance: dict[bytes, int] = {}
    for _, data in sources:
        for row in rows_of_copy(data):
            balance[row[0]] = balance.get(row[0], 0) + 1
    for (digested,) in rows_of_copy(own):
        left = balance.pop(digested, 0) - 1
        if left:
            balance[digested] = left
    ids = {digested[:-_LANES] for digested in balance}
    expected: dict[bytes, list[_Expected]] = defaultdict(list)
    present: dict[bytes, list[bytes]] = defaultdict(list)
    for part, data in sources:
        for digested, key, chunk in rows_of_copy(data):
            if digested[:-_LANES] in ids:
                expected[digested[:-_LANES]].append(_Expected(digested[-_LANES:], part.name, key.decode(), chunk.decode() or None))
    for (digested,) in rows_of_copy(own):
        if digested[:-_LANES] in ids:
            present[digested[:-_LANES]].append(digested[-_LANES:])
    for id_ in sorted(ids):
        yield from _judge(target, id_, expected.pop(id_, []), present.pop(id_, []))


def _judge(target: Target, id_: bytes, expected: Sequence[_Expected], present: Sequence[bytes]) -> list[Located]:
    """Return the findings for one id that is not the same on both sides."""
    shown = str(uuid.UUID(bytes=id_)) if len(id_) == 16 else id_.hex() or None
    if not expected:
        many = DUPLICATE if len(present) > 1 else EXTRA
        return [Located(Finding(target.name, None, many if index else EXTRA, None, shown)) for index in range(len(present))]
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
        found.append(Located(Finding(target.name, row.part, kind, row.key, shown), row.chunk))
    first = expected[0]
    return found + [Located(Finding(target.name, first.part, DUPLICATE, first.key, shown), first.chunk) for _ in remaining]


def settle(
    sides: Sides, scans: Sequence[Scan], agreed: d.Digest, rejects: Rejects, located: dict[str, list[Located]], attempts: int, seconds: float, workers: int
) -> tuple[dict[str, list[Located]], str]:
    """Read differences again, at newer points, until they persist or are gone; at once when nobody writes. Return them and what was done."""
    live = False
    for attempt in range(1, attempts + 1):
        if not sides.written_to():
            break
        live = True
        time.sleep(seconds)
        sides.renew()
        before = {name: {(item.finding.id, item.finding.source_key) for item in found} for name, found in located.items() if found}
        again = open_all(sides, [scan for scan in scans if scan.target.name in before], agreed, rejects, workers)
        located = {name: [item for item in found if (item.finding.id, item.finding.source_key) in before[name]] for name, found in again.items()}
        if not any(located.values()):
            return located, f"differences were read again until none was left (attempt {attempt}): the databases are written to"
    if live:
        return located, f"differences were read again and persisted ({attempts} attempts): the databases are written to"
    return located, "judged at one consistent point of each database; nobody wrote to them meanwhile"


def name_columns(sides: Sides, target: Target, agreed: d.Digest, items: Sequence[Located]) -> list[Finding]:
    """Return the findings of rows that differ with the columns in which they do."""
    named: list[Finding] = []
    for start in range(0, len(items), COLUMN_BATCH):
        named += _name_batch(sides, target, agreed, items[start : start + COLUMN_BATCH])
    return named


def _name_batch(sides: Sides, target: Target, agreed: d.Digest, items: Sequence[Located]) -> list[Finding]:
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
