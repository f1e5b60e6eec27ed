# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of a transfer by files: what lies in it, and that it is whole.

    folder/manifest.json                     what belongs to the folder; its absence means an unfinished export
    folder/000001.rows.gz, 000001.ids.gz     a chunk's rows, and the rows of the id map that they mint
    folder/rejects.gz                        the rows that the mappings' policies keep out, for migration.rejects
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checks.row_accounting import Account
from ..errors import MigrationError
from ..plan.model import Plan

MANIFEST = "manifest.json"
REJECTS = "rejects.gz"
VERSION = 3

Rejects = list[dict[str, Any]]


@dataclass(frozen=True)
class Piece:
    """One file: its name in the folder, its rows, its size in bytes and sha256 as it lies there."""

    name: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One chunk with its files; `ids` are the id map's rows that it mints."""

    id: int
    service: str
    target: str
    part: str
    low: str | None
    high: str | None
    nulls: bool
    rows: Piece
    ids: Piece | None


@dataclass(frozen=True)
class Manifest:
    """What a folder holds and which plan, namespace, timestamp and snapshot it was made with; `rejects` are the rows kept out of it.

    `accounts` say what became of every source row, `expected` how many rows each target is to be given.
    """

    plan_digest: str
    fingerprint: str
    plan_time: str
    epoch: str
    entries: tuple[Entry, ...]
    rejects: Piece | None = None
    accounts: tuple[Account, ...] = ()
    expected: Mapping[str, int] = field(default_factory=dict)

    @property
    def pieces(self) -> dict[str, Piece]:
        """Return every file that belongs to the folder, by its name."""
        found = [piece for entry in self.entries for piece in (entry.rows, entry.ids)]
        return {piece.name: piece for piece in (*found, self.rejects) if piece is not None}

    def write(self, folder: Path) -> None:
        """Write the manifest; it is the last file of an export."""
        data = {"version": VERSION, **asdict(self)}
        data["sha256"] = _digest_of(data)
        partial = folder / f"{MANIFEST}.partial"
        with writing(partial):
            with open(partial, "w", encoding="utf-8", opener=owners) as stream:
                stream.write(json.dumps(data, indent=1) + "\n")
            os.replace(partial, folder / MANIFEST)


def whole(folder: Path, plan: Plan, plan_time: str | None) -> Manifest:
    """Return the manifest of a folder that is whole and was made with this plan and timestamp (None: any); MigrationError when it is not."""
    manifest = _read_manifest(folder)
    if manifest.plan_digest != plan.digest:
        raise MigrationError(
            f"{folder}: was exported with plan {manifest.plan_digest[:12]}, this run has plan {plan.digest[:12]};"
            " use the same mappings, schema SQL and namespace on both sides, or remove the folder and export anew"
        )
    if plan_time not in (None, manifest.plan_time):
        raise MigrationError(
            f"{folder}: was exported with the timestamp '{manifest.plan_time}', this migration is pinned to '{plan_time}';"
            f" remove the folder and export anew with -e migrate_plan_time='{plan_time}'"
        )
    _check_files(folder, manifest)
    return manifest


def _read_manifest(folder: Path) -> Manifest:
    """Return a folder's manifest; MigrationError when it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != VERSION or data.pop("sha256") != _digest_of(data):
            raise MigrationError(f"{path}: the manifest is damaged or of another version; copy the folder again or export anew")
        entries = tuple(_entry(item) for item in data["entries"])
        refused = Piece(**data["rejects"]) if data["rejects"] else None
        accounts = tuple(Account(**item) for item in data["accounts"])
        return Manifest(data["plan_digest"], data["fingerprint"], data["plan_time"], data["epoch"], entries, refused, accounts, data["expected"])
    except FileNotFoundError as exc:
        raise MigrationError(f"{path}: there is no manifest, so the export has not finished; run it again (migrate_files_step: export)") from exc
    except OSError as exc:
        raise MigrationError(f"{path}: cannot be read: {exc.strerror}; copy it again from where it was exported") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise MigrationError(f"{path}: the manifest is damaged; copy the folder again or export anew") from exc


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Raise when a file of the manifest is missing or damaged, or a file is there that does not belong to it; names the file."""
    pieces = manifest.pieces
    for path in sorted(folder.iterdir()):
        if path.name not in pieces and path.name != MANIFEST:
            raise MigrationError(f"{path}: is not in the manifest; a file of another export? Remove it, or copy the folder again")
    for name, piece in sorted(pieces.items()):
        path = folder / name
        if not path.is_file():
            raise MigrationError(f"{path}: is missing; copy the folder again or export anew")
        try:
            found = piece_of(path, piece.rows)
        except OSError as exc:
            raise MigrationError(f"{path}: cannot be read: {exc.strerror}; mend that, or copy it again") from exc
        if found != piece:
            raise MigrationError(f"{path}: is damaged (its sha256 is not the manifest's); copy it again or export anew")


def piece_of(path: Path, rows: int) -> Piece:
    """Return what a manifest says of a file as it lies there; OSError when it cannot be read."""
    with path.open("rb") as stream:
        return Piece(path.name, rows, path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder and be the only one who writes into it; a second export waits here and then finds the first one's files."""
    with _usable(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _usable(folder):
            fcntl.flock(handle, fcntl.LOCK_EX)  # given back by dying
        yield
    finally:
        os.close(handle)


def owners(path: str, flags: int) -> int:
    """Open a file that is its owner's alone from its first byte on; an `opener` for open()."""
    return os.open(path, flags, 0o600)


def prepare(folder: Path) -> None:
    """Empty the folder of what an unfinished export left, and keep it to its owner; MigrationError when anything else is in it."""
    with _usable(folder):
        found = list(folder.iterdir())
        for path in found:
            if not re.fullmatch(r"\d{6,}\.(rows|ids)\.gz|rejects\.gz|manifest\.json\.partial", path.name):
                raise MigrationError(f"{path}: the folder for the export must be empty; name another one in migrate_files_dir")
        folder.chmod(0o700)
        for path in found:
            path.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write a file into a MigrationError that names it."""
    try:
        yield
    except OSError as exc:
        raise MigrationError(f"{path}: cannot be written: {exc.strerror}; make room or name another migrate_files_dir") from exc


def write_rejects(path: Path, kept_out: Rejects) -> Piece:
    """Write the rows that are kept out; return what the manifest says of the file."""
    with writing(path):
        with open(path, "wb", opener=owners) as stream:
            stream.write(gzip.compress(json.dumps(kept_out).encode(), mtime=0))
        return piece_of(path, len(kept_out))


def read_rejects(folder: Path, manifest: Manifest, targets: Collection[str]) -> Rejects:
    """Return the rows of some targets that the export kept out; whole() has seen that the file is whole."""
    if manifest.rejects is None:
        return []
    found: Rejects = json.loads(gzip.decompress((folder / manifest.rejects.name).read_bytes()))
    return [reject for reject in found if reject["target"] in targets]


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise MigrationError(f"{folder}: cannot be used for the export: {exc.strerror}; name another one in migrate_files_dir") from exc


def _digest_of(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _entry(data: dict[str, Any]) -> Entry:
    ids = data["ids"]
    return Entry(**{**data, "rows": Piece(**data["rows"]), "ids": Piece(**ids) if ids else None})
