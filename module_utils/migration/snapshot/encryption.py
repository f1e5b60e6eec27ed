# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypt the dumps with a standard tool, age or gpg, to public keys; open them with the private key of whoever restores."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MigrationError
from ..postgres import clients
from . import retention


@dataclass(frozen=True)
class Sealing:
    """The tool, the public keys to encrypt to, and the file with the private key (age) or the key ring's folder (gpg)."""

    tool: str = "none"
    recipients: tuple[str, ...] = ()
    identity: str | None = None

    def check(self) -> None:
        """MigrationError when the tool or the recipients are missing."""
        if self.tool == "none":
            return
        clients.tool(self.tool)
        clients.tool("tar")
        if not self.recipients:
            raise MigrationError(f"snapshot_encryption is {self.tool}, but snapshot_recipients names no public key to encrypt to; list one there")


def seal(folder: Path, name: str, sealing: Sealing) -> None:
    """Replace the folder `name` by one encrypted archive."""
    if sealing.tool == "none":
        return
    packed = folder / f"{name}.tar.{sealing.tool}"
    recipients = [item for key in sealing.recipients for item in ("--recipient", key)]
    if sealing.tool == "age":
        encrypt = [clients.tool("age"), *recipients, "--output", str(packed)]
    else:
        encrypt = [*_gpg(sealing), "--trust-model", "always", "--encrypt", *recipients, "--output", str(packed)]
    _pipe([clients.tool("tar"), "--create", "--directory", str(folder), name], encrypt, f"encrypting the dump of {name}")
    shutil.rmtree(folder / name)


@contextlib.contextmanager
def opened(folder: Path, name: str, sealing: Sealing, tool: str) -> Iterator[Path]:
    """Yield the folder of a dump; an encrypted one is unpacked beside the snapshot and removed at the end."""
    if tool == "none":
        yield folder / name
        return
    packed = folder / f"{name}.tar.{tool}"
    if tool == "age" and not sealing.identity:
        raise MigrationError(f"{packed} is encrypted; name the file with the private key in snapshot_identity")
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(retention.passing(folder.parent))
        except OSError as exc:
            raise MigrationError(f"{folder.parent}: {exc.strerror}; the dump of {name} is decrypted into a folder there") from exc
        decrypt = [clients.tool("age"), "--decrypt", "--identity", str(sealing.identity)] if tool == "age" else [*_gpg(sealing), "--decrypt"]
        _pipe([*decrypt, str(packed)], [clients.tool("tar"), "--extract", "--directory", str(place)], f"decrypting the dump of {name}")
        yield place / name


def _gpg(sealing: Sealing) -> list[str]:
    home = ["--homedir", sealing.identity] if sealing.identity else []
    return [clients.tool("gpg"), "--batch", "--yes", "--quiet", *home]


def _pipe(first: Sequence[str], second: Sequence[str], doing: str) -> None:
    """Run two programs, the output of the first into the second."""
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(first, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as producer:
            done = subprocess.run(second, stdin=producer.stdout, stdout=subprocess.DEVNULL, stderr=errors, check=False)
            if producer.stdout:
                producer.stdout.close()
            status = producer.wait()
        if status != 0 or done.returncode != 0:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            cause = "the disk is full" if any("No space left" in line for line in lines) else lines[0] if lines else f"status {status or done.returncode}"
            raise MigrationError(f"{doing}: {cause}")
