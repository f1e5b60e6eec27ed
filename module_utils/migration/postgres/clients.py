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
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import MigrationError
from . import driver, faults
from .connect_errors import why
from .driver import Endpoint

PROGRAMS = ("pg_dump", "pg_restore", "pg_dumpall")
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)\S*)")
_SAID = re.compile(r"^\S*pg_\w+: (?:error|fatal): (.*)$", re.MULTILINE)
_SERVERS = re.compile(r"(?:^|.*?[:.] )(\w{4,}):  ")  # a severity in whatever language, with two blanks: from here on the server speaks
_ENTRY = re.compile(r"from TOC entry (\d+); \d+ \d+ ([A-Z][A-Z ]*[A-Z]) ")
_QUOTED = re.compile(r"""["'«»„“](?:[^"'«»„“]*)["'«»“”]""")
FULL = "the disk is full"
# pg_dump and pg_restore pin most of what matters by themselves; these of a role's own defaults would still end their work.
_OPTIONS = " ".join(f"-c {name}={driver.escaped(driver.PINNED[name])}" for name in (
    "default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable", "exit_on_error", "idle_session_timeout",
    "client_min_messages",
))  # fmt: skip
_PR_SET_PDEATHSIG = 1  # prctl(2)
# pg_restore 17 and newer begin with this, which older servers do not know; nothing else depends on it.
UNKNOWN_BEFORE_17 = "SET transaction_timeout = 0;"


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


def choose(available: Sequence[Clients], server_major: int, place: str, bin_dir: str | None = None, *, least: int = 0, reason: str = "") -> Clients:
    """Return the oldest clients that are not older than the server, nor than `least` for a `reason`; MigrationError that names what there is."""
    for clients in sorted(available, key=lambda item: item.major):
        if clients.major >= max(server_major, least):
            return clients
    where = f"in {bin_dir}" if bin_dir else "on this runner"
    seen = ", ".join(f"{item.program('pg_dump')} is {item.version}" for item in available)
    if seen and any(item.major >= server_major for item in available):
        raise MigrationError(f"{place}: {reason}, which takes clients of PostgreSQL {least} or newer ({seen}); install postgresql-client-{least}")
    if not seen:
        raise MigrationError(
            f"{place}: no pg_dump, pg_restore and pg_dumpall {where}; install postgresql-client-{server_major} there or name their folder in pg_bin_dir"
        )
    raise MigrationError(
        f"{place}: the server is PostgreSQL {server_major} and pg_dump refuses newer servers ({seen}); install postgresql-client-{server_major}"
        " or name its folder in pg_bin_dir"
    )


def major(version: str) -> int:
    """Return the major version in a version's text: 16 of "16.15 (Debian 16.15-1)"."""
    found = re.match(r"\d+", version)
    if found is None:
        raise MigrationError(f"{version!r} is no version of PostgreSQL; the manifest was changed by hand")
    return int(found[0])


def _ask(folder: Path) -> Clients | None:
    try:
        said = subprocess.run([str(folder / "pg_dump"), "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(said)
    return Clients(folder, int(found[2]), found[1]) if found else None


@dataclass(frozen=True)
class Access:
    """How a client reaches a database: its environment, and the descriptors that it inherits."""

    env: Mapping[str, str] = field(repr=False)
    descriptors: tuple[int, ...] = ()


@contextlib.contextmanager
def access(endpoint: Endpoint, application_name: str) -> Iterator[Access]:
    """Yield a client's way to the endpoint; a password lies in memory that ends with its processes, so a killed run leaves nothing on a disk."""
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
        "PGOPTIONS": _OPTIONS,
        "PGCONNECT_TIMEOUT": "10",
        "LC_ALL": "C.UTF-8",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LANG"))}
    chosen = {**inherited, **{name: value for name, value in given.items() if value}}
    if not endpoint.password:
        yield Access(chosen)
        return
    with _passfile(endpoint.user, endpoint.password) as descriptor:
        if descriptor is None:
            yield Access({**chosen, "PGPASSWORD": endpoint.password})
        else:
            yield Access({**chosen, "PGPASSFILE": f"/dev/fd/{descriptor}"}, (descriptor,))


@contextlib.contextmanager
def _passfile(user: str, password: str) -> Iterator[int | None]:
    """Yield the descriptor of a password file of mode 0600 without a name (memfd_create(2)); None where the system has no such thing."""
    descriptor = os.memfd_create("pgpass") if hasattr(os, "memfd_create") else None
    try:
        if descriptor is None or not os.path.exists(f"/dev/fd/{descriptor}"):
            yield None
            return
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, f"*:*:*:{_field(user)}:{_field(password)}\n".encode())
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _field(text: str) -> str:
    """Escape a field of a password file (PostgreSQL manual, "The Password File")."""
    return text.replace("\\", "\\\\").replace(":", "\\:")


def dbname(name: str) -> str:
    """Return a database's name as an argument: a bare one that looks like a connection string would be read as one (libpq, "Connection Strings")."""
    return "dbname='" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"


def run(argv: Sequence[str], way: Access, place: str, doing: str, *, tolerated: str = "") -> str:
    """Run a client, which dies when this process does; return its output, or raise MigrationError with its error, redacted.

    A client that could do everything but the one statement `tolerated` has done its work.
    """
    with contextlib.ExitStack() as stack:
        try:
            out, err = stack.enter_context(tempfile.TemporaryFile()), stack.enter_context(tempfile.TemporaryFile())
            child = subprocess.Popen(
                list(argv), env=dict(way.env), stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=way.descriptors, preexec_fn=_die_with_parent
            )
        except OSError as exc:  # a full /tmp, a program that is gone
            raise MigrationError(
                f"{place}: {doing} cannot be started: {exc.strerror}: {exc.filename or tempfile.gettempdir()}"
                "; mend that on the runner, then run this again"
            ) from exc
        try:
            status = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
        out.seek(0)
        err.seek(0)
        stderr = err.read().decode(errors="replace")
        left = without(stderr, tolerated) if tolerated else stderr
        if status != 0 and not (status == 1 and left != stderr and not _SAID.search(left)):
            raise MigrationError(f"{place}: {doing}: {said(left, status)}")
        return out.read().decode(errors="replace")


def without(stderr: str, statement: str) -> str:
    """Return a client's errors without those of one statement."""
    return re.sub(rf"^\S*pg_restore: error: .*\n(?:.*\n)??Command was: {re.escape(statement)}\n", "", stderr, flags=re.MULTILINE)


def said(stderr: str, status: int) -> str:
    """Return what a client's first error may say aloud, and a next step.

    The client's own words are shown but for what it quotes; the server's, which a function may have raised, never are.
    """
    if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
        return f"{FULL}; free some space there and run this again"
    if status < 0:
        return f"it was ended by signal {signal.Signals(-status).name}; run this again"
    found = _SAID.search(stderr)
    if found and "Query was: LOCK TABLE" in stderr and "permission denied" not in stderr:
        return "somebody holds a lock on a table (pg_locks says who); wait for that and run this again"
    if not found:
        return f"it ended with status {status}; run this again, and look at the server's log"
    servers = _SERVERS.match(found[1])
    entry = _ENTRY.search(stderr, 0, found.start())
    where = f", at entry {entry[1]} of the dump, a {entry[2]} (pg_restore --list names it)" if entry else ""
    if "connection to server" in found[1]:
        fault, step = why(found[1])
        return f"{fault}; {step} host_vars"
    own = _QUOTED.sub(lambda name: name[0] if faults.known(name[0][1:-1]) else "(name not shown)", found[1][: servers.start(1)] if servers else found[1])
    own = " ".join(own.split()).rstrip(": ")
    if not servers:
        return f"{own}{where}; mend that, then run this again"
    fault = faults.said_by_client(found[1][servers.end() :]) or "the server refused it"
    return f"{f'{own}: ' if own else ''}{fault}{where}; the text can hold values, so only the server's log has it: mend the cause, then run this again"


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
