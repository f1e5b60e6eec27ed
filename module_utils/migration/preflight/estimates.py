# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much, how long: rows, bytes, chunks and minutes for each phase, from the catalog's sizes and a short measured sample."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..checks.findings import INFO, WARN, Finding
from ..checks.quarantine import Reject
from ..checks.row_checks import PartScan
from ..checks.source_catalog import SourceTable
from ..plan.predicates import between, none_of
from ..postgres import driver
from ..postgres.quote import ident

SAMPLE = 20_000  # rows of each part that are timed
CHUNK = 50_000
# Relative to the time of reading the projection, measured on two cores (docs/preflight.md says how); minutes are an order of magnitude.
FACTORS = {"migrate": 1.6, "index": 0.8, "validate": 1.5}
SCHEMA_SECONDS = 5.0
SESSIONS_PER_SECOND = 20_000  # read, signed anew and written, one worker
DUMP_BYTES_PER_SECOND = 60e6  # pg_dump with compression, one job
RATIO_DUMP = 0.35  # a compressed directory dump, of the tables' size
RATIO_TARGET = 1.5  # rows and indexes of the targets, of the rows' bytes
RATIO_WAL = 2.0


@dataclass(frozen=True)
class PartEstimate:
    """A part's size: rows, bytes of its binary COPY, chunks, seconds to read the projection with one connection."""

    target: str
    part: str
    rows: int
    bytes: int
    chunks: int
    seconds: float


@dataclass(frozen=True)
class PhaseEstimate:
    """The expected length of one phase."""

    phase: str
    minutes: float
    what: str


@dataclass(frozen=True)
class Estimates:
    """All estimates; `space` are bytes needed by place."""

    parts: tuple[PartEstimate, ...]
    phases: tuple[PhaseEstimate, ...]
    space: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the estimates as JSON can carry them."""
        return {"parts": [asdict(part) for part in self.parts], "phases": [asdict(phase) for phase in self.phases], "space": dict(self.space)}


class _Counter:
    """Counts what is written to it."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        return len(data)


def sample(connection: driver.Connection, scan: PartScan, schema: str, rows: int, refused: Sequence[str] = ()) -> PartEstimate:
    """Return a part's estimate from timing its first chunk, without the `refused` keys."""
    part = scan.part
    counter = _Counter()
    with driver.database_errors(part.label, "timing a sample"):
        bound = _sample_bound(connection, scan, rows)
        start = time.monotonic()
        with connection.cursor() as cursor:
            inside = part.select(schema, between(None, bound, nulls=True))
            kept = f" AND {none_of(refused)(part.key_text)}" if refused else ""
            cursor.copy_expert(f"COPY ({inside}{kept}) TO STDOUT (FORMAT binary)", counter)
            copied = max(cursor.rowcount, 0)
        seconds = time.monotonic() - start
    factor = rows / copied if copied else 0.0
    return PartEstimate(scan.target.name, part.name, rows, int(counter.bytes * factor), -(-rows // CHUNK), round(seconds * factor, 3))


def _sample_bound(connection: driver.Connection, scan: PartScan, rows: int) -> str | None:
    if rows <= SAMPLE:
        return None
    column = f"src.{ident(scan.part.chunk_by)}"
    found = driver.scalar(connection, f"SELECT max(v)::text FROM (SELECT {column} AS v FROM {scan.base} ORDER BY 1 LIMIT {SAMPLE}) AS first")
    return None if found is None else str(found)


def estimate(
    connection: driver.Connection,
    scans: Sequence[PartScan],
    schema: str,
    rows: Mapping[tuple[str, str], int],
    source_size: int,
    sessions: SourceTable | None = None,
    aside: Sequence[Reject] = (),
) -> Estimates:
    """Return all estimates; `source_size` are the bytes of the source's database, `sessions` its table of sessions, `aside` stays behind."""
    refused: dict[tuple[str, str], list[str]] = {}
    for item in aside:
        refused.setdefault((item.target, item.part), []).append(item.source_key)
    places = [(scan, (scan.target.name, scan.part.name)) for scan in scans]
    parts = tuple(sample(connection, scan, schema, rows.get(place, 0), refused.get(place, ())) for scan, place in places)
    seconds = sum(part.seconds for part in parts)
    carried = sum(part.bytes for part in parts)
    total = sum(part.rows for part in parts)
    phases = [PhaseEstimate("snapshot", round(source_size / DUMP_BYTES_PER_SECOND * 2 / 60, 1), f"dump and proof of {_size(source_size)}")]
    phases.append(PhaseEstimate("schema", round(SCHEMA_SECONDS / 60, 1), "tables, columns, defaults"))
    phases += [
        PhaseEstimate(name, round(seconds * factor / 60, 1), f"{total:,} rows, {_size(carried)}, one worker" if name == "migrate" else f"{total:,} rows")
        for name, factor in FACTORS.items()
    ]
    if sessions is not None:
        live = max(0, int(sessions.rows))
        phases.append(PhaseEstimate("sessions", round(live / SESSIONS_PER_SECOND / 60, 1), f"about {live:,} rows of {sessions.name}"))
    space = {
        "snapshot folder": int(source_size * RATIO_DUMP),
        "targets": int(carried * RATIO_TARGET),
        "WAL of the targets": int(carried * RATIO_WAL),
    }
    return Estimates(parts, tuple(phases), space)


def check_space(estimates: Estimates, folder: str | None) -> list[Finding]:
    """Return what is needed on disk, and whether the runner's folder for snapshots has it."""
    needed = ", ".join(f"{name} {_size(size)}" for name, size in estimates.space.items())
    findings = [Finding(INFO, "space", "disk", f"needed, about: {needed}", "compare with df on each server; preflight sees only this runner's disk")]
    if folder:
        free = shutil.disk_usage(folder).free
        if free < estimates.space["snapshot folder"] * 1.2:
            findings.append(
                Finding(
                    WARN,
                    "this runner",
                    "disk",
                    f"{_size(free)} are free under {folder}, the snapshot needs about {_size(estimates.space['snapshot folder'])}",
                    "free some, or choose another folder",
                )
            )
    return findings


def check_servers_space(estimates: Estimates, connections: Mapping[str, driver.Connection], endpoints: Mapping[str, driver.Endpoint]) -> list[Finding]:
    """Return what is free beside the data of a target whose server runs on this machine, where its role may know the place."""
    findings = []
    needed = estimates.space["targets"] + estimates.space["WAL of the targets"]
    for name, connection in connections.items():
        folder = _data_directory(connection) if endpoints[name].host in ("", "localhost", "127.0.0.1", "::1") or endpoints[name].host.startswith("/") else None
        if folder is None:
            continue
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            continue
        message = f"{_size(free)} are free where its data lies, all targets need about {_size(needed)}"
        findings.append(Finding(WARN, name, "disk", message, "free some") if free < needed else Finding(INFO, name, "disk", message))
    return findings


def _data_directory(connection: driver.Connection) -> str | None:
    known = driver.scalar(connection, "SELECT setting FROM pg_settings WHERE name = 'data_directory'")
    return str(known) if known else None


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
