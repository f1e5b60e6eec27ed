# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start and stop server processes as a user that may run them, in folders that this user may use."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MigrationError

try:
    import psutil
except ImportError:  # only who starts servers needs it; alive() says so
    psutil = None  # type: ignore[assignment]  # a module or nothing

SOCKET_PATH_LIMIT = 107  # bytes of a Unix socket's path: sun_path without its closing zero (unix(7), Linux)


@dataclass(frozen=True)
class Account:
    """The user that server processes run as; PostgreSQL refuses root, so root lends them another."""

    uid: int
    gid: int

    @classmethod
    def for_servers(cls) -> Account | None:
        """Return nobody when we are root, None when we are an ordinary user already."""
        return cls(65534, 65534) if os.geteuid() == 0 else None


def new_root(prefix: str = "edulink-") -> Path:
    """Make a short temporary folder for servers: private to its user; root's can be passed through by the servers' account."""
    base = tempfile.gettempdir()
    if len(base) > 40 and os.access("/tmp", os.W_OK | os.X_OK):
        base = "/tmp"
    root = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    root.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return root


def folder(path: Path, account: Account | None, mode: int) -> Path:
    """Make a folder that belongs to the servers' account."""
    path.mkdir(exist_ok=True)
    path.chmod(mode)
    if account:
        os.chown(path, account.uid, account.gid)
    return path


def write(path: Path, text: str, account: Account | None) -> None:
    """Write a file that only the servers' account can read, replacing it in one step."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    if account:
        os.chown(fresh, account.uid, account.gid)
    fresh.replace(path)


def identity(account: Account | None) -> dict[str, Any]:
    """Return the arguments with which subprocess becomes the account."""
    return {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}


def environment(home: Path) -> dict[str, str]:
    """Return an environment in which nothing of the caller (PGHOST, LANG, HOME) leaks into a server."""
    return {"HOME": str(home), "PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def run(argv: Sequence[str], home: Path, account: Account | None) -> None:
    """Run a command to its end; raise MigrationError with the last lines it said."""
    done = subprocess.run(argv, cwd=home, env=environment(home), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **identity(account))
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise MigrationError(f"{Path(argv[0]).name} ended with status {done.returncode}: {said}; its folder is {home}")


def spawn(argv: Sequence[str], home: Path, log: Path, account: Account | None) -> subprocess.Popen[bytes]:
    """Start a server that outlives us, in a session of its own; what it says is appended to its log."""
    with open(log, "ab") as stream:
        log.chmod(0o600)
        return subprocess.Popen(
            argv,
            cwd=home,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **identity(account),
        )


def release(child: subprocess.Popen[bytes]) -> None:
    """Let a started server outlive its Popen object without a ResourceWarning."""
    child.returncode = 0


def alive(pid: int, marker: str) -> bool:
    """Tell whether `pid` is a living process whose command line has the argument `marker`: pids are used again."""
    if psutil is None:
        raise MigrationError("the Python package psutil is missing; install requirements.txt")
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # our own dead child: PostgreSQL would take the zombie for the living owner of its lock file
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return bool(process.num_threads() > 1)  # its other threads still hold the sockets
        return marker in process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def end(pid: int, marker: str, signals: Sequence[tuple[signal.Signals, float]]) -> None:
    """Send one signal after the other, each with its seconds to work, until the process has ended."""
    for number, seconds in signals:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not alive(pid, marker):
                return
            time.sleep(0.02)
    raise MigrationError(f"process {pid} does not end; end it by hand")


def tail(log: Path, start: int = 0, lines: int = 6) -> str:
    """Return the last lines that were logged after byte `start`."""
    if not log.exists():
        return "(no log)"
    with open(log, "rb") as stream:
        stream.seek(start)
        return "\n".join(stream.read().decode("utf-8", "replace").strip().splitlines()[-lines:])


def size(log: Path) -> int:
    """Return how long the log is now, in bytes."""
    return log.stat().st_size if log.exists() else 0
