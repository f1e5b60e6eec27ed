# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that fills up while the snapshot is written."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.rollback import run as rollback
from ansible.module_utils.migration.snapshot import take
from ansible.module_utils.migration.snapshot.dump import DumpOptions
from ansible.module_utils.migration.snapshot.retention import Keeping

from tests.walk.environment import Walk, ask
from tests.walk.fixtures import project_plan, services_server, walk  # noqa: F401


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("compression", ["none", "gzip:1"])
def test_a_disk_that_fills_up_is_named_and_costs_no_older_snapshot(walk: Walk, small: Path, compression: str) -> None:  # noqa: F811
    place = replace(walk, root=small / "snapshots")
    first = take.take(place.context, place.taking(space_factor=0.0))
    rollback.close(place.context, place.rolling())
    rollback.roll_back(place.context, place.rolling())
    rollback.close(place.context, place.rolling())
    old = {str(path): path.stat().st_size for path in place.root.rglob("*")}
    text = "CREATE TABLE much AS SELECT g, encode(sha256(g::text::bytea), 'hex') || encode(sha256((-g)::text::bytea), 'hex') AS t"
    ask(place.monolith, f"{text} FROM generate_series(1, 200000) AS g")
    ask(place.monolith, f"GRANT SELECT ON much TO {place.context.source.user}")
    second = place.pass_preflight()
    options = place.taking(dump=DumpOptions(2, compression, place.bin_dir), keeping=Keeping(count=1))
    with pytest.raises(MigrationError, match=r"snapshots has .* free, the snapshot may need .*; free some space there, choose another snapshot_dir"):
        take.take(place.context, options)
    with pytest.raises(MigrationError, match=r"monolith .*: pg_dump: the disk is full; free some space there and run this again"):
        take.take(place.context, replace(options, space_factor=0.0))
    assert {str(path): path.stat().st_size for path in place.root.rglob("*")} == old, "the older snapshot is whole, and nothing else is there"
    assert place.history(take.KIND)[0].outcome == "failed"
    ask(place.monolith, "DROP TABLE much")
    taken = take.take(place.context, replace(options, space_factor=0.0))
    assert taken.run_id == second.run_id
    assert taken.removed == (first.folder,)
