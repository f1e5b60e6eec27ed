# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypted dumps: proven, rolled back from, of no use without the key."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.rollback import run as rollback
from ansible.module_utils.migration.snapshot import take
from ansible.module_utils.migration.snapshot.encryption import Sealing

from tests.walk.environment import SERVICES, Walk
from tests.walk.fixtures import project_plan, services_server, walk  # noqa: F401


def age(folder: Path) -> Sealing:
    """Return a key of age in a file."""
    folder.mkdir(parents=True)
    subprocess.run(["age-keygen", "-o", str(folder / "key")], check=True, capture_output=True)
    public = subprocess.run(["age-keygen", "-y", str(folder / "key")], check=True, capture_output=True, text=True).stdout.strip()
    return Sealing("age", (public,), str(folder / "key"))


def gpg(folder: Path) -> Sealing:
    """Return a key of gpg in a key ring of its own."""
    folder.mkdir(mode=0o700, parents=True)
    argv = ["gpg", "--homedir", str(folder), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    subprocess.run([*argv, "--quick-gen-key", "ops@example.org", "default", "default"], check=True, capture_output=True)
    return Sealing("gpg", ("ops@example.org",), str(folder))


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a short name, for gpg's sockets; its agents end with it."""
    folder = tmp_path_factory.mktemp("k")
    yield folder
    for home in folder.glob("gpg*"):
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)


@pytest.mark.parametrize("tool", ["age", "gpg"])
def test_an_encrypted_snapshot_is_proven_and_rolled_back_from_by_who_has_the_key(walk: Walk, short: Path, tool: str) -> None:  # noqa: F811
    if shutil.which("age-keygen" if tool == "age" else "gpg") is None:
        pytest.skip(f"{tool} is not installed")
    make = {"age": age, "gpg": gpg}[tool]
    keys, others = make(short / f"{tool}1"), make(short / f"{tool}2")
    taken = take.take(walk.context, walk.taking(proof=True, sealing=keys))
    folder = Path(taken.folder)
    assert {path.name for path in folder.iterdir() if path.suffix == f".{tool}"} == {f"{name}.tar.{tool}" for name in ("monolith", *SERVICES)}
    assert not [path for path in folder.iterdir() if path.is_dir()]
    walk.carry()
    before = {service: walk.content(service) for service in SERVICES}
    without = "snapshot_identity" if tool == "age" else "decrypting"
    for wrong, said in ((replace(others, recipients=()), "decrypting the dump of auth_service"), (Sealing(), without)):
        with pytest.raises(MigrationError, match=said):
            rollback.roll_back(walk.context, walk.rolling(sealing=wrong))
        assert {service: walk.content(service) for service in SERVICES} == before
    assert rollback.roll_back(walk.context, walk.rolling(sealing=keys)).complete
    rollback.close(walk.context, walk.rolling())
    assert {service: walk.content(service) for service in SERVICES} == {service: {} for service in SERVICES}
    assert sorted(path.name for path in walk.root.iterdir()) == [folder.name, f"{folder.name}.evidence"], "nothing is left open"
