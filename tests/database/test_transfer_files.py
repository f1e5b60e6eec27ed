# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way by files under more than one hand: shared, killed at the last moment, foreseen, gentle."""

from __future__ import annotations

import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres.driver import connect
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.state import ledger
from ansible.module_utils.migration.throttle import monitor
from ansible.module_utils.migration.transfer import dry_run, file_set, file_transfer
from ansible.module_utils.migration.transfer.run import Options, Outcome

from tests.database.test_transfer import FREE, PLAN_TIME, RUN_ID, content, expected, nowhere, on, options, run, start_over, world

__all__ = ["world"]  # the fixture
WAIT = 1.0  # seconds in which an import of the small world would be over


def here(context: Context) -> Context:
    """Return the machine that reaches the source alone."""
    return dataclasses.replace(context, targets={name: nowhere(endpoint) for name, endpoint in context.targets.items()})


def there(context: Context) -> Context:
    """Return the machine that reaches the targets alone."""
    return dataclasses.replace(context, source=nowhere(context.source))


def export(context: Context, place: Path, progress: Progress | None = None, chosen: Options | None = None) -> tuple[file_set.Manifest, bool]:
    return file_transfer.export_files(here(context), PLAN_TIME, place, chosen or options(), progress or Progress(None))


def bring_in(context: Context, place: Path, progress: Progress | None = None, chosen: Options | None = None) -> Outcome:
    return file_transfer.import_files(there(context), PLAN_TIME, RUN_ID, place, chosen or options(), progress or Progress(None))


def test_two_imports_share_the_folder_and_none_closes_the_ledger_before_the_other_is_done(world: Context, tmp_path: Path) -> None:
    run(world)
    wanted = content(world)
    start_over(world)
    manifest, _ = export(world, tmp_path / "files")
    for service in world.plan.services:
        file_transfer._prepare_ledger(world, service, manifest, tmp_path / "files", PLAN_TIME, RUN_ID)
    held = connect(world.targets["user_service"], application_name="tests")
    assert ledger.claim(held, "a runner that dies") is not None
    with ThreadPoolExecutor(max_workers=2) as pool:
        both = [pool.submit(bring_in, world, tmp_path / "files") for _ in range(2)]
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and ledger.remaining(held) > 1:
            time.sleep(0.05)
        time.sleep(WAIT)
        assert not any(one.done() for one in both)
        held.close()
        done = [one.result(timeout=60) for one in both]
    assert sum(one.carried for one in done) == len(manifest.entries)
    assert all(table.chunks == table.chunks_done for one in done for table in one.tables)
    assert content(world) == wanted


def test_a_second_export_into_a_folder_waits_and_takes_what_the_first_one_wrote(world: Context, tmp_path: Path) -> None:
    place = tmp_path / "files"
    with ThreadPoolExecutor(max_workers=2) as pool:
        both = [pool.submit(export, world, place) for _ in range(2)]
        (one, first), (two, second) = (done.result(timeout=60) for done in both)
    assert one == two
    assert sorted((first, second)) == [False, True]
    assert file_set.whole(place, world.plan, PLAN_TIME) == one


def test_an_import_that_was_killed_between_closing_two_ledgers_is_ended_without_the_source(world: Context, tmp_path: Path) -> None:
    export(world, tmp_path / "files")
    bring_in(world, tmp_path / "files")
    wanted = content(world)
    on(world.targets["user_service"], "UPDATE migration.pin SET finished_at = NULL", "UPDATE migration.epochs SET reconciled_at = NULL")
    assert not bring_in(world, tmp_path / "files").changed
    assert content(world) == wanted


def test_a_dry_run_of_each_half_needs_that_half_alone_and_tells_what_would_move(world: Context, tmp_path: Path) -> None:
    place = tmp_path / "files"
    wanted = {name: rows for name, rows in expected(world).items() if not name.endswith("id_map")}
    with pytest.raises(MigrationError, match="there is no manifest"):
        dry_run.preview_import(there(world), PLAN_TIME, place)
    foreseen = dry_run.preview_export(here(world), options(), PLAN_TIME, place)
    assert {table.target: table.rows_then for table in foreseen.tables if not table.target.endswith("id_map")} == wanted
    assert not place.exists()
    manifest, _ = export(world, place)
    assert foreseen.chunks == len(manifest.entries)
    assert not dry_run.preview_export(here(world), options(), PLAN_TIME, place).changed
    foreseen = dry_run.preview_import(there(world), PLAN_TIME, place)
    assert {table.target: table.rows_then for table in foreseen.tables if not table.target.endswith("id_map")} == wanted
    assert foreseen.chunks == len(manifest.entries)
    bring_in(world, place)
    assert not dry_run.preview_import(there(world), PLAN_TIME, place).changed
    damaged = place / manifest.entries[0].rows.name
    damaged.write_bytes(b"")
    with pytest.raises(MigrationError, match=f"{damaged.name}: is damaged"):
        dry_run.preview_import(there(world), PLAN_TIME, place)


def test_both_halves_keep_the_rate_and_tell_why_they_pause(world: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "LOOK", 0.1)
    rows = sum(expected(world).values())
    slow = options(limits=dataclasses.replace(FREE, rows_per_second=rows / 2), chunk_rows=50)
    started = time.monotonic()
    export(world, tmp_path / "files", chosen=slow)
    assert time.monotonic() - started > WAIT
    notes = tmp_path / "progress.json"
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as pool:
        importing = pool.submit(bring_in, world, tmp_path / "files", Progress(str(notes), interval=0), slow)
        control = "INSERT INTO migration.controls VALUES ('pause', {0}) ON CONFLICT (name) DO UPDATE SET value = {0}"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                on(world.targets["auth_service"], control.format(1))
                break
            except Exception:  # the ledger is not there yet
                time.sleep(0.05)
        while time.monotonic() < deadline and json.loads(notes.read_text(encoding="utf-8"))["note"] != "paused: the ledger's control row 'pause' is set":
            time.sleep(0.05)
        assert not importing.done()
        on(world.targets["auth_service"], control.format(0))
        assert importing.result(timeout=60).changed
    assert time.monotonic() - started > WAIT
