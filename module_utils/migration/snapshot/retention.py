# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which old snapshots may go, and what killed attempts left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..errors import MigrationError
from . import manifest

PARTIAL = ".partial-"
PASSING = ".passing-"


@dataclass(frozen=True)
class Keeping:
    """How many of the newest snapshots and those of how many days are kept; 0 and 0 keep all."""

    count: int = 0
    days: int = 0


@dataclass(frozen=True)
class Stored:
    """A finished snapshot in the folder."""

    folder: Path
    run_id: str
    taken_at: datetime


def stored(root: Path, fingerprint: str, databases: Collection[tuple[str, str]]) -> list[Stored]:
    """Return the finished snapshots of these databases (inventory host, name), newest first; a folder whose manifest cannot be read is not one.

    A rehearsal's copies have other names, so neither retires the snapshots of the other.
    """
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        if PARTIAL in folder.name or not (folder / manifest.NAME).is_file():
            continue
        try:
            read = manifest.read(folder, None)
        except MigrationError:
            continue
        same = {(item.name, item.dbname) for item in read.databases} == set(databases)
        if same and read.fingerprint == fingerprint and read.run_id == folder.name:
            taken = min(_moment(item.taken_at) for item in read.databases)
            found.append(Stored(folder, read.run_id, taken))
    return sorted(found, key=lambda item: item.taken_at, reverse=True)


def expired(found: list[Stored], keeping: Keeping, needed: Collection[str], now: datetime) -> list[Stored]:
    """Return the snapshots that neither rule keeps; never the newest one, nor one that is needed."""
    if keeping.count <= 0 and keeping.days <= 0:
        return []
    oldest = now - timedelta(days=keeping.days)
    return [
        item
        for place, item in enumerate(found)
        if place >= max(1, keeping.count) and not (keeping.days > 0 and item.taken_at >= oldest) and item.run_id not in needed
    ]


def remove_partial(root: Path, run_id: str) -> None:
    """Remove what killed attempts at this migration's snapshot left."""
    for folder in root.glob(f"{run_id}{PARTIAL}*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def passing(root: Path) -> Iterator[Path]:
    """Yield a folder for what must not outlive this run, of mode 0700; what killed runs left of the kind is removed first."""
    for left in root.glob(f"{PASSING}*"):
        with _held(left) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PASSING, dir=root) as place, _held(Path(place)):
        yield Path(place)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder until the end, which a kill is too; False when another run holds it, or the file system has no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _moment(text: str) -> datetime:
    """Read a timestamptz as PostgreSQL writes it in UTC (`2026-01-31 12:00:00.5+00`)."""
    return datetime.fromisoformat(text.split("+")[0]).replace(tzinfo=UTC)
