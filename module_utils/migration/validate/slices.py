# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Digest both sides, a piece at a time: ranges of a table's pages, or of chunk_by where the source is a query; bucket sums of all pieces added up.

A piece's sums may be kept, with what was seen of the versions of its rows (versions.py). Whoever goes on later takes them over where
the versions are still the same, which costs a part of reading the rows: whatever changes them shows, so what is taken over
is true at the new point too. Pieces begin at multiples of powers of two: growing tables add pieces and keep the others.
"""

from __future__ import annotations

import hashlib
import struct
import time
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ..plan.model import Part, Target
from ..plan.predicates import Predicate, between
from ..postgres.quote import ident, qualified
from . import digest as d
from .excluded import Rejects, without
from .readers import Ask, Rows, Sides
from .row_versions import Versioned, Versions, settle

PIECE_ROWS = 200_000
JOINED = 2  # times smaller are the pieces of a query: what a join remembers fits the processor's caches (m: 3.4 s, whole 4.0 s, for 1M users' profiles)
MOST_PIECES = 64
_SUM = struct.Struct("<iqQQ")
_LANE = 1 << 64

Sums = dict[int, tuple[int, int, int]]  # bucket -> rows, lane sums modulo 2^64
Progress = Callable[[str, int, int], None]  # what, done rows, all rows


@dataclass(frozen=True)
class Piece:
    """One statement of a scan; `part` is None on the target's side. `versions` looks at the versions of the rows that it reads, if they have any."""

    target: Target
    part: Part | None
    statement: str
    versions: Versioned | None

    @property
    def key(self) -> str:
        """Return what tells the piece from any other, of any digest, size or quarantine."""
        return hashlib.sha256(f"{self.target.name}\n{self.statement}".encode()).hexdigest()


@dataclass(frozen=True)
class KeptPiece:
    """A piece that was read: its sums hold as long as its rows are the same by what was seen of their versions."""

    key: str
    versions: str
    sums: str
    oldest: int = 0

    @classmethod
    def of(cls, piece: Piece, versions: Versions, sums: Sums) -> KeptPiece:
        """Return a piece as it can be kept."""
        packed = b"".join(_SUM.pack(number, *values) for number, values in sums.items())
        return cls(piece.key, versions.seen, b64encode(packed).decode(), versions.oldest)

    def unpacked(self) -> Sums:
        """Return the sums."""
        return {number: (rows, first, second) for number, rows, first, second in _SUM.iter_unpack(b64decode(self.sums))}


@dataclass(frozen=True)
class Keeping:
    """What is known of an interrupted run, where to keep pieces, and from how many seconds on a piece is worth it."""

    kept: Mapping[str, KeptPiece] = field(default_factory=dict)
    keep: Callable[[KeptPiece], None] | None = None
    seconds: float = 10.0


@dataclass(frozen=True)
class Scan:
    """One target, digested on both sides. `differing` has the buckets that differ, with their rows on both sides."""

    target: Target
    bits: int
    source_rows: int
    target_rows: int
    source_digest: str
    target_digest: str
    differing: Mapping[int, int]
    seconds: float


@dataclass(frozen=True)
class _Done:
    piece: Piece
    sums: Sums
    seconds: float
    versions: Versions | None
    taken_over: bool


class Scanner:
    """All pieces of some targets: `scans()` yields each target when it is through, `taken_over` counts pieces that were not read again."""

    def __init__(self, sides: Sides, targets: Sequence[Target], agreed: d.Digest, rejects: Rejects, keeping: Keeping, piece_rows: int, shared: bool) -> None:
        self.taken_over = 0
        self._sides, self._agreed, self._keeping, self._piece_rows = sides, agreed, keeping, piece_rows
        self._estimates = {target.name: sides.estimate(target) for target in targets}
        self._bits = {name: d.bits_for(rows) for name, rows in self._estimates.items()}
        self._targets = sorted(targets, key=lambda target: -self._estimates[target.name] * len(target.columns))
        self._plain = sides.plain_tables()
        self.ranges = {
            (target.name, part.name): _source_ranges(sides, part, piece_rows if part.query is None else max(1, piece_rows // JOINED))
            for target in targets
            for part in target.parts
        }
        found: list[Piece] = []
        for target in self._targets:
            found += [*self._source_pieces(target, rejects, shared), *self._target_pieces(target, shared)]
        self.pieces = len(found)
        self._jobs: dict[str, list[Future[_Done]]] = defaultdict(list)
        for piece in found:  # only now: the questions above would wait behind the scans
            self._jobs[piece.target.name].append(self._submit(piece))

    def scans(self, progress: Progress | None) -> Iterator[Scan]:
        """Yield every target's scan, in the order in which they end."""
        sums: dict[tuple[str, bool], Sums] = defaultdict(dict)
        seconds: dict[tuple[str, bool], float] = defaultdict(float)
        targets = {target.name: target for target in self._targets}
        left = {name: len(jobs) for name, jobs in self._jobs.items()}
        shares = {name: 2 * self._estimates[name] / len(jobs) for name, jobs in self._jobs.items()}
        total, done = 2 * sum(self._estimates.values()), 0.0
        waiting = [job for jobs in self._jobs.values() for job in jobs]
        self._jobs.clear()
        for job in as_completed(waiting):
            found = job.result()
            name, own = found.piece.target.name, found.piece.part is None
            _add(sums[name, own], found.sums)
            seconds[name, own] += found.seconds
            self._remember(found)
            left[name] -= 1
            done += shares[name]
            if progress:
                progress(name, int(done), int(total))
            if not left[name]:
                longer = max(seconds[name, False], seconds[name, True])
                yield _scan(targets[name], self._bits[name], sums.pop((name, False), {}), sums.pop((name, True), {}), longer)

    def _remember(self, found: _Done) -> None:
        self.taken_over += found.taken_over
        if self._keeping.keep and found.versions is not None and not found.taken_over:
            self._keeping.keep(KeptPiece.of(found.piece, found.versions, found.sums))

    def _submit(self, piece: Piece) -> Future[_Done]:
        known = self._keeping.kept.get(piece.key)
        worth = self._keeping.seconds if self._keeping.keep else float("inf")

        def job(ask: Ask) -> _Done:
            return _read(ask, piece, known, worth)

        if piece.part is None:
            return self._sides.target_job(piece.target.service, job, f"reading {piece.target.name}")
        return self._sides.source_job(job, f"reading {piece.part.label} for {piece.target.name}")

    def _source_pieces(self, target: Target, rejects: Rejects, shared: bool) -> Iterator[Piece]:
        schema = self._sides.schema
        for part in target.parts:
            blocks, rows = self._sides.source_size(str(part.table)) if part.whole and part.table in self._plain else (0, 0.0)  # a where hides the ctid
            predicates: Sequence[Predicate | None] = [range_of(*low_high) for low_high in self.ranges[target.name, part.name]]
            # Its pages in their order: an index would send the reader to and fro. Parallel workers share an index' range, not a range of pages.
            if blocks and not shared:
                predicates = _pages("src", blocks, rows, self._piece_rows)
            for predicate in predicates:
                item, where = part.apart(schema, part.chunk_by, predicate)  # what digests a row may be joined to the item
                row = replace(d.source_row(target, part, schema, self._agreed), source=item)
                where += without(part, rejects[target.name], predicate)
                statement = d.buckets(row, self._agreed, self._bits[target.name], where, shared=shared)
                versions = _source_versions(part, schema, predicate) if self._plain.issuperset(part.every_table) and not _unseen(part) else None
                yield Piece(target, part, statement, versions)

    def _target_pieces(self, target: Target, shared: bool) -> Iterator[Piece]:
        row = d.target_row(target, self._agreed)
        blocks = self._sides.blocks(target)
        for predicate in _pages("t", blocks, self._estimates[target.name], self._piece_rows):
            where = f" WHERE {predicate('')}" if predicate else ""
            statement = d.buckets(row, self._agreed, self._bits[target.name], where, shared=shared)
            yield Piece(target, None, statement, Versioned.of([(target.qualified, f"{target.qualified} AS t{where}")]) if blocks else None)


def _pages(alias: str, blocks: int, rows: float, piece_rows: int) -> list[Predicate | None]:
    """Return predicates that cut a table into ranges of pages, whatever column they are asked of; one that is no predicate where it stays whole."""

    def within(low: int | None, high: int | None) -> Predicate:
        bounds = [f"{alias}.ctid {sign} '({block},0)'::tid" for sign, block in ((">=", low), ("<", high)) if block is not None]
        return lambda _column: " AND ".join(bounds)

    if rows < 1.5 * piece_rows or not blocks:
        return [None]
    return [within(low, high) for low, high in pairwise(_edges(0, blocks, _pieces(rows, piece_rows)))]


def range_of(low: int | None, high: int | None) -> Predicate | None:
    """Return the predicate of a range; the first one has the rows without a value too, and the whole has no predicate."""
    if low is None and high is None:
        return None
    return between(None if low is None else str(low), None if high is None else str(high), nulls=low is None)


def _read(ask: Ask, piece: Piece, known: KeptPiece | None, worth: float) -> _Done:
    started = time.monotonic()
    if known is not None and piece.versions:
        now = piece.versions.look(ask)
        if now is not None and now.still(known.versions, known.oldest):
            return _Done(piece, known.unpacked(), time.monotonic() - started, None, taken_over=True)
    sums: Sums = {}
    _add(sums, sums_of(ask(piece.statement)))
    seconds = time.monotonic() - started
    versions = piece.versions.look(ask) if piece.versions and seconds >= worth else None
    if versions:
        settle(ask)
    return _Done(piece, sums, seconds, versions, taken_over=False)


def sums_of(rows: Rows) -> Sums:
    """Return the sums that a statement of digest.buckets() or digest.finer() gave."""
    return {number: (count, int(first) % _LANE, int(second) % _LANE) for number, count, first, second in rows}


def add_up(many: Iterable[Sums]) -> Sums:
    """Return the sums of several pieces together."""
    total: Sums = {}
    for sums in many:
        _add(total, sums)
    return total


def differing(source: Sums, target: Sums) -> dict[int, int]:
    """Return the buckets that differ, with the rows of both sides."""
    nothing = (0, 0, 0)
    numbers = [number for number in source.keys() | target.keys() if source.get(number) != target.get(number)]
    return {number: source.get(number, nothing)[0] + target.get(number, nothing)[0] for number in numbers}


def _add(sums: Sums, more: Sums) -> None:
    for number, (count, first, second) in more.items():
        old = sums.get(number)
        sums[number] = (old[0] + count, (old[1] + first) % _LANE, (old[2] + second) % _LANE) if old else (count, first, second)


def _scan(target: Target, bits: int, source: Sums, own: Sums, seconds: float) -> Scan:
    rows = [sum(values[0] for values in side.values()) for side in (source, own)]
    return Scan(target, bits, rows[0], rows[1], _fold(source), _fold(own), differing(source, own), seconds)


def _fold(sums: Sums) -> str:
    """Return a table's digest for reports: both lanes of all buckets, each modulo 2^64."""
    return "".join(f"{sum(values[lane] for values in sums.values()) % _LANE:016x}" for lane in (1, 2))


def _pieces(rows: float, piece_rows: int) -> int:
    return min(MOST_PIECES, max(1, round(rows / piece_rows)))


def _source_ranges(sides: Sides, part: Part, piece_rows: int) -> list[tuple[int | None, int | None]]:
    """Return ranges of chunk_by; one open range when the part is small or a table that it reads by chunk_by has no index on it."""
    tied = [(touch.table, touch.column) for touch in part.touches if touch.result == part.chunk_by]
    spans = [sides.span(table, column) for table, column in (tied if part.query is not None else [(str(part.table), part.chunk_by)])]
    found = [span for span in spans if span is not None]
    rows = max((span[2] for span in found), default=0.0)
    if len(found) < len(spans) or rows < 1.5 * piece_rows:
        return [(None, None)]
    edges = _edges(min(span[0] for span in found), max(span[1] for span in found), _pieces(rows, piece_rows))
    return list(pairwise(edges))


def _edges(low: int, high: int, pieces: int) -> list[int | None]:
    """Return the edges of about so many ranges, open at both ends, at multiples of a power of two."""
    step = 1 << max(0, ((high - low) // pieces).bit_length() - 1)
    return [None, *range((low // step + 1) * step, high + 1, step), None]


def _unseen(part: Part) -> bool:
    """Tell whether what a part yields hangs on something that its statement does not show: the quarantined keys of others."""
    return any(lookup.carried for lookup in part.lookups)


def _source_versions(part: Part, schema: str, predicate: Predicate | None) -> Versioned:
    looked_up = [(qualified(schema, table), qualified(schema, table)) for lookup in part.lookups for table in lookup.home.tables]
    if part.query is None:
        where = f" WHERE {predicate('src.' + ident(part.chunk_by))}" if predicate else ""
        return Versioned.of([(qualified(schema, str(part.table)), f"{qualified(schema, str(part.table))} AS src{where}"), *looked_up])
    tied = {touch.table: touch.column for touch in part.touches if touch.result == part.chunk_by}
    wheres = {table: f" WHERE {predicate(ident(tied[table]))}" if predicate and table in tied else "" for table in part.tables}
    return Versioned.of([(qualified(schema, table), f"{qualified(schema, table)}{where}") for table, where in wheres.items()] + looked_up)
