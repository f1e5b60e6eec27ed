# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A certificate authority for one campaign, with openssl: servers' certificates for localhost, a client's for each role."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.migration.embedded import process

from tests.servers.software import Missing


@dataclass(frozen=True)
class Authority:
    """A CA in a folder; `account` owns what servers read."""

    folder: Path
    account: process.Account | None

    @property
    def certificate(self) -> Path:
        """Return the CA's certificate, which clients and servers trust."""
        return self.folder / "ca.crt"

    def issue(self, name: str, *, server: bool) -> tuple[Path, Path]:
        """Return the certificate and key of a server (for localhost) or of a client (for the role `name`)."""
        key, request, made = (self.folder / f"{name}.{ending}" for ending in ("key", "csr", "crt"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n" if server else "extendedKeyUsage=clientAuth\n", encoding="utf-8")
        subject = "localhost" if server else name
        _openssl("req", "-new", *_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={subject}")
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.folder / "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", extensions, "-out", made,
        )  # fmt: skip
        key.chmod(0o600)
        if server and self.account:
            os.chown(key, self.account.uid, self.account.gid)
        return made, key


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def authority(folder: Path, name: str, account: process.Account | None) -> Authority:
    """Make a CA of that name in the folder; Missing without openssl."""
    if shutil.which("openssl") is None:
        raise Missing("the cells with TLS need the program openssl (Debian: apt install openssl)")
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    made = Authority(folder, account)
    _openssl("req", "-x509", *_KEY, "-keyout", folder / "ca.key", "-out", made.certificate, "-days", "2", "-subj", f"/CN={name}")
    return made


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"openssl {arguments[0]} failed: {done.stderr.strip().splitlines()[-1]}")
