# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the monolith's long expired sessions in a file, and delete them from its table when somebody has said how many.

    folder/expired-before-2026-11-01.csv.gz    sha256 of the session key, end, session_data; for its owner only
    folder/expired-before-2026-11-01.json      rows, digest and sums; its absence means an unfinished archive

The key itself is the cookie and stays out. Nothing is deleted unless the table still holds exactly what the file has.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import MigrationError
from ..postgres import driver
from ..postgres.quote import qualified

COLUMNS = ("session_sha256", "expire_date", "session_data")
_ROW = "sha256(convert_to(concat_ws(' ', session_key, extract(epoch FROM expire_date), session_data), 'UTF8'))"
_DIGEST = f"coalesce(sum(('x' || left(encode({_ROW}, 'hex'), 16))::bit(64)::bigint::numeric), 0)::text"


@dataclass(frozen=True)
class Archive:
    """One file: the sessions that ended before a day (UTC), how many, their digest as the source computes it, the file's sha256."""

    before: str
    rows: int
    digest: str
    sha256: str = ""

    @property
    def name(self) -> str:
        """Return the file's name."""
        return f"expired-before-{self.before}.csv.gz"


def look(source: driver.Connection, schema: str, days: int, place: str) -> Archive:
    """Return what an archive of the sessions that ended `days` or more before today (UTC) would hold."""
    if days < 0:
        raise MigrationError("sessions_archive_days must be 0 or more; set it so")
    table = qualified(schema, "django_session")
    with driver.database_errors(place, "counting expired sessions"):
        before = driver.scalar(source, "SELECT (date_trunc('day', now()) - %s * interval '1 day')::date::text", (days,))
        return _found(source, table, str(before))


def kept(folder: Path, wanted: Archive) -> Archive | None:
    """Return the finished archive of the same day, or None; MigrationError when its file is not what its manifest says."""
    manifest = folder / wanted.name.replace(".csv.gz", ".json")
    if not manifest.exists():
        return None
    try:
        found = Archive(**json.loads(manifest.read_text(encoding="utf-8"))["archive"])
        same = _sha256(folder / found.name) == found.sha256
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise MigrationError(f"{folder / wanted.name}: is not what its manifest says; restore it, or move both files away and run again")
    return found


def write(source: driver.Connection, schema: str, folder: Path, wanted: Archive, place: str) -> Archive:
    """Write the file and its manifest from one snapshot; return the archive. Rows may be deleted for its sake, so it is on disk then."""
    try:
        return _write(source, schema, folder, wanted, place)
    except OSError as exc:
        raise MigrationError(f"{folder / wanted.name}: {exc.strerror or exc}; make room or choose another sessions_archive_dir, and run it again") from exc


def _write(source: driver.Connection, schema: str, folder: Path, wanted: Archive, place: str) -> Archive:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, table = folder / wanted.name, qualified(schema, "django_session")
    part = path.with_suffix(".part")
    copy = (
        f"COPY (SELECT encode(sha256(convert_to(session_key, 'UTF8')), 'hex') AS {COLUMNS[0]}, {COLUMNS[1]}, {COLUMNS[2]} FROM {table}"
        f" WHERE expire_date < {_moment(wanted.before)} ORDER BY expire_date) TO STDOUT (FORMAT csv, HEADER)"
    )
    with driver.database_errors(place, "archiving expired sessions"), source.cursor() as cursor:
        found = _found(source, table, wanted.before)
        with open(part, "wb", opener=_own) as plain:
            with gzip.GzipFile("", "wb", 6, plain, mtime=0) as packed:
                cursor.copy_expert(copy, packed)
            _to_disk(plain)
    if (rows := count(part)) != found.rows:
        raise MigrationError(f"{part}: has {rows} rows, {place} gave {found.rows}; run it again")
    part.replace(path)
    made = Archive(found.before, found.rows, found.digest, _sha256(path))
    manifest = {"archive": asdict(made), "columns": list(COLUMNS), "place": place}
    final = path.with_name(path.name.replace(".csv.gz", ".json"))
    with open(part, "wb", opener=_own) as plain:  # whole or not at all, wherever a kill comes
        plain.write((json.dumps(manifest, indent=2) + "\n").encode())
        _to_disk(plain)
    part.replace(final)
    return made


def delete(target: driver.Connection, schema: str, archive: Archive, confirmed: int, place: str) -> int:
    """Delete the archived rows from the monolith; MigrationError unless `confirmed` is their number and they are as archived."""
    table = qualified(schema, "django_session")
    with driver.database_errors(place, "looking at expired sessions"):
        target.set_session(isolation_level="REPEATABLE READ", readonly=False)
        found = _found(target, table, archive.before)
    if found.rows == 0:
        return 0
    if confirmed != found.rows:
        raise MigrationError(
            f"{place}: {found.rows} sessions that ended before {archive.before} are in django_session, sessions_archive_delete says {confirmed};"
            " nothing was deleted"
        )
    if (found.rows, found.digest) != (archive.rows, archive.digest):
        raise MigrationError(f"{place}: django_session has changed since it was archived as {archive.name}; move the archive away and run again")
    try:
        with driver.database_errors(place, "deleting archived sessions"):
            driver.rows(target, f"DELETE FROM {table} WHERE expire_date < {_moment(archive.before)}")
            target.commit()
    except MigrationError as exc:
        raise MigrationError(f"{exc}; let the monolith's manage.py clearsessions delete them, or GRANT DELETE ON {table} to this login") from exc
    return found.rows


def count(path: Path) -> int:
    """Return how many sessions a file holds, reading all of it."""
    csv.field_size_limit(2**31 - 1)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        return sum(1 for _ in csv.reader(text)) - 1


def to_dict(archive: Archive) -> Mapping[str, Any]:
    """Return it for a result and a record."""
    return {"file": archive.name, **asdict(archive)}


def _found(connection: driver.Connection, table: str, before: str) -> Archive:
    ((rows, digest),) = driver.rows(connection, f"SELECT count(*), {_DIGEST} FROM {table} WHERE expire_date < {_moment(before)}")
    return Archive(before, rows, digest)


def _moment(before: str) -> str:
    return f"timestamptz '{before} 00:00:00+00'"


def _own(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
