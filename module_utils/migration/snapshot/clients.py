# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's client programs: which ones to run, how they learn a password, what their errors may say."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..driver import Endpoint
from ..errors import MigrationError

PROGRAMS = ("pg_dump", "pg_restore", "pg_dumpall")
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)\S*)")
_SAID = re.compile(r"^\S*pg_\w+: (?:error|fatal): (.*)$", re.MULTILINE)
_QUOTED_VALUE = re.compile(r'((?:invalid|out of range|too long)[^"\n]*: ).*$')
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Clients:
    """One folder with pg_dump, pg_restore and pg_dumpall of one version."""

    folder: Path
    major: int
    version: str

    def program(self, name: str) -> str:
        """Return the path of a program."""
        return str(self.folder / name)


def candidates(bin_dir: str | None, path: str | None = None, places: Sequence[str] = _PLACES) -> list[Clients]:
    """Return the installed clients, oldest first; with `bin_dir` only the ones in that folder."""
    if bin_dir:
        folders = [Path(bin_dir)]
    else:
        on_path = [Path(item) for item in (os.environ.get("PATH", "") if path is None else path).split(os.pathsep) if item]
        folders = [*on_path, *(found for place in places for found in Path("/").glob(place.lstrip("/")))]
    found: dict[Path, Clients] = {}
    for folder in folders:
        # Debian's /usr/bin/pg_dump is a script that chooses a version by itself, so the folder it stands in is not a version's.
        if not all((folder / name).exists() for name in PROGRAMS) or (folder / "pg_dump").resolve().name == "pg_wrapper":
            continue
        clients = _ask(folder)
        if clients:
            found.setdefault((folder / "pg_dump").resolve(), clients)
    return sorted(found.values(), key=lambda item: item.major)


def choose(available: Sequence[Clients], server_major: int, place: str, bin_dir: str | None = None) -> Clients:
    """Return the oldest clients that are not older than the server; MigrationError that names what there is."""
    for clients in sorted(available, key=lambda item: item.major):
        if clients.major >= server_major:
            return clients
    where = f"in {bin_dir}" if bin_dir else "on this runner"
    seen = ", ".join(f"{item.program('pg_dump')} is {item.version}" for item in available)
    if not seen:
        raise MigrationError(
            f"{place}: no pg_dump, pg_restore and pg_dumpall {where}; install postgresql-client-{server_major} there or name their folder in pg_bin_dir"
        )
    raise MigrationError(
        f"{place}: the server is PostgreSQL {server_major} and pg_dump refuses newer servers ({seen}); install postgresql-client-{server_major}"
        " or name its folder in pg_bin_dir"
    )


def _ask(folder: Path) -> Clients | None:
    try:
        said = subprocess.run([str(folder / "pg_dump"), "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(said)
    return Clients(folder, int(found[2]), found[1]) if found else None


@contextlib.contextmanager
def environment(endpoint: Endpoint, application_name: str) -> Iterator[dict[str, str]]:
    """Yield the environment with which a client reaches the endpoint; the password lies in a file of mode 0600 until the end."""
    given = {
        "PGHOST": endpoint.host,
        "PGPORT": str(endpoint.port),
        "PGDATABASE": endpoint.dbname,
        "PGUSER": endpoint.user,
        "PGSSLMODE": endpoint.sslmode,
        "PGSSLROOTCERT": endpoint.sslrootcert,
        "PGSSLCERT": endpoint.sslcert,
        "PGSSLKEY": endpoint.sslkey,
        "PGAPPNAME": application_name,
        "PGCONNECT_TIMEOUT": "10",
        "LC_ALL": "C.UTF-8",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name not in ("LANG", "LANGUAGE")}
    chosen = {**inherited, **{name: value for name, value in given.items() if value}}
    with tempfile.TemporaryDirectory(prefix="pgpass-") as folder:
        passfile = Path(folder) / "pgpass"
        with open(os.open(passfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            if endpoint.password:
                file.write(f"*:*:*:{_field(endpoint.user)}:{_field(endpoint.password)}\n")
        yield {**chosen, "PGPASSFILE": str(passfile)}


def _field(text: str) -> str:
    """Escape a field of a password file (PostgreSQL manual, "The Password File")."""
    return text.replace("\\", "\\\\").replace(":", "\\:")


def run(argv: Sequence[str], env: Mapping[str, str], place: str, doing: str) -> str:
    """Run a client, which dies when this process does; return its output, or raise MigrationError with its error, redacted."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(list(argv), env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=err, preexec_fn=_die_with_parent)
        try:
            status = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
        out.seek(0)
        err.seek(0)
        if status != 0:
            raise MigrationError(f"{place}: {doing}: {said(err.read().decode(errors='replace'), status)}")
        return out.read().decode(errors="replace")


def said(stderr: str, status: int) -> str:
    """Return what a client's error may say aloud: its first error, without DETAIL, CONTEXT, statements and values."""
    if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
        return "the disk is full; free some space there and run this again"
    found = _SAID.search(stderr)
    if found:
        return _QUOTED_VALUE.sub(r"\1(value not shown)", " ".join(found[1].split()))
    return f"it was ended by signal {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"


def _die_with_parent() -> None:
    """Have the kernel end this child when its parent is killed (Linux); elsewhere a killed parent leaves it to finish alone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def tool(name: str) -> str:
    """Return the path of a program on PATH; MigrationError when there is none."""
    found = shutil.which(name)
    if not found:
        raise MigrationError(f"the program {name} is missing on this runner; install the package {name} there")
    return found
