# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest: what a snapshot consists of and what was in the databases, so that files and restores can be proven."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import MigrationError
from ..postgres.content_digest import Content
from ..postgres.databases import Properties

NAME = "manifest.json"
FORMAT = 1
_BLOCK = 1 << 20


@dataclass(frozen=True)
class File:
    """One file of the snapshot, its path relative to the snapshot's folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Dumped:
    """One database in the snapshot; sizes in bytes, seconds of the clock."""

    name: str
    side: str
    dbname: str
    server_version: str
    client_version: str
    size: int
    lsn: str
    taken_at: str
    snapshot: str
    roles: bool
    seconds: float
    properties: Properties
    content: Content

    @property
    def major(self) -> int:
        """Return the server's major version."""
        return int(self.server_version.split(".")[0].split(" ")[0])


@dataclass(frozen=True)
class Manifest:
    """A whole snapshot."""

    format: int
    run_id: str
    fingerprint: str
    encryption: str
    databases: tuple[Dumped, ...]
    files: tuple[File, ...]

    def to_json(self) -> str:
        """Return the manifest as the text of its file."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, place: str) -> Manifest:
        """Return the manifest of a text; MigrationError when it is none."""
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] != FORMAT:
                raise MigrationError(f"{place}: its format is {data['format']}, this version of the project reads {FORMAT}; use the version that wrote it")
            return cls(
                **{
                    **data,
                    "databases": tuple(_dumped(item) for item in data["databases"]),
                    "files": tuple(File(**item) for item in data["files"]),
                }
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise MigrationError(f"{place} is not a manifest ({type(exc).__name__}); it was cut or changed") from exc

    @property
    def digest(self) -> str:
        """Return the sha256 of the manifest's text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(item.size for item in self.files)

    def database(self, name: str) -> Dumped:
        """Return one database; MigrationError when the snapshot does not hold it."""
        for item in self.databases:
            if item.name == name:
                return item
        raise MigrationError(
            f"the snapshot of {self.run_id} holds no database {name!r}, only {', '.join(item.name for item in self.databases)}"
            "; name one of these, or take the snapshot of another migration"
        )


def _dumped(data: Mapping[str, Any]) -> Dumped:
    return Dumped(**{**data, "properties": Properties.from_dict(data["properties"]), "content": Content.from_dict(data["content"])})


def checksum(path: Path) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def list_files(folder: Path) -> tuple[File, ...]:
    """Return every file below the folder with its size and checksum, the manifest left out."""
    return tuple(File(str(path.relative_to(folder)), path.stat().st_size, checksum(path)) for path in _paths(folder))


def _paths(folder: Path) -> list[Path]:
    found = (Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in found if path != folder / NAME)


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and put everything on disk."""
    path = folder / NAME
    path.write_text(manifest.to_json(), encoding="utf-8")
    for item in [path, *folder.rglob("*"), folder]:
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _legible(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into a MigrationError."""
    try:
        yield
    except OSError as exc:
        raise MigrationError(f"{exc.filename or folder}: {exc.strerror}; run this with the account that took the snapshot, on a disk that can be read") from exc


def read(folder: Path, digest: str | None) -> Manifest:
    """Return the manifest of a finished snapshot; `digest` is the one on record, MigrationError when it is another."""
    path = folder / NAME
    with _legible(folder):
        if not folder.is_dir():
            raise MigrationError(f"the snapshot {folder} is not on this runner; run this on the runner that took it, or put the folder back")
        if not path.is_file():
            raise MigrationError(f"{path} is missing; put it back from the migration's artifacts (snapshot-manifest.json, the same file)")
        text = path.read_bytes().decode(errors="replace")
    manifest = Manifest.from_json(text, str(path))
    if digest is not None and manifest.digest != digest:
        raise MigrationError(f"{path} was changed since the snapshot was taken (its sha256 is not the one on record); put the original back from the artifacts")
    return manifest


def check_files(folder: Path, manifest: Manifest, prefix: str = "") -> None:
    """Compare the files (those whose path starts with `prefix`) with the manifest; MigrationError that names the first wrong, missing or added one."""
    with _legible(folder):
        _compare(folder, manifest, prefix)


def _compare(folder: Path, manifest: Manifest, prefix: str) -> None:
    advice = "bring the file back from a copy; this snapshot cannot be restored as it is"
    for item in manifest.files:
        if not item.path.startswith(prefix):
            continue
        path = folder / item.path
        if not path.is_file():
            raise MigrationError(f"{path} is missing; {advice}")
        size = path.stat().st_size
        if size != item.size:
            raise MigrationError(f"{path} has {size} bytes, the manifest says {item.size}: it was cut or changed; {advice}")
        if checksum(path) != item.sha256:
            raise MigrationError(f"{path} was changed since the snapshot was taken (sha256 differs); {advice}")
    listed = {item.path for item in manifest.files}
    for path in _paths(folder):  # pg_restore reads 42.dat rather than 42.dat.gz where there are both
        relative = str(path.relative_to(folder))
        if relative.startswith(prefix) and relative not in listed:
            raise MigrationError(f"{path} is not in the manifest: it was put there after the snapshot was taken; move it out of the folder")
