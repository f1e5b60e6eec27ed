# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A transfer by way of files, or over several snapshots, accounts for every source row too, or fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair import reconcile
from ansible.module_utils.migration.transfer import chunks, file_transfer
from ansible.module_utils.migration.transfer import run as transfer
from ansible.module_utils.migration.upsert import upsert

from tests.conftest import execute
from tests.database.test_balance import OPTIONS, run, world  # noqa: F401 -- a fixture
from tests.mutation.world import PLAN_TIME


def test_files_are_held_against_the_snapshot_they_were_written_from(world: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def gapped(found: list[transfer.ledger.Chunk]) -> list[transfer.ledger.Chunk]:
        ordered = chunks.numbered(found)
        lost = next(item for item in ordered if item.target == "auth_service.users" and item.low and item.high)
        return [item for item in ordered if item is not lost]

    with monkeypatch.context() as patch:
        patch.setattr(file_transfer, "numbered", gapped)
        with pytest.raises(MigrationError, match=r"auth_service\.users: the source has 151 rows .* 111 were carried.*export anew"):
            file_transfer.export_files(world, PLAN_TIME, tmp_path / "gapped", OPTIONS, Progress(None))
    assert not (tmp_path / "gapped" / file_transfer.MANIFEST).exists()

    folder = tmp_path / "files"
    manifest, _ = file_transfer.export_files(world, PLAN_TIME, folder, OPTIONS, Progress(None))
    execute(world.source, "DELETE FROM auth_user_groups")  # later than the export
    more = replace(manifest, expected={**manifest.expected, "user_service.roles": manifest.expected["user_service.roles"] + 1})
    more.write(folder)
    with pytest.raises(MigrationError, match=r"user_service\.roles: the source has"):
        file_transfer.import_files(world, PLAN_TIME, "run", folder, OPTIONS, Progress(None))
    assert not transfer.finished(world)
    manifest.write(folder)
    done = file_transfer.import_files(world, PLAN_TIME, "run", folder, OPTIONS, Progress(None)).balance
    assert done is not None
    assert done.passed
    assert next(item for item in done.accounts if item.table == "auth_user").carried == 151


def test_several_snapshots_are_settled_to_the_last_row_or_fail(world: Context, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    run(world)
    execute(world.source, "UPDATE auth_user SET is_active = NOT is_active WHERE id % 5 = 0", "DELETE FROM auth_user_groups WHERE user_id % 2 = 0")
    execute(world.targets["auth_service"], "INSERT INTO auth_service.users (username, email, password_hash) VALUES ('own', 'own@example.org', 'x')")
    with monkeypatch.context() as patch:
        patch.setattr(reconcile, "settle", lambda *_arguments: upsert.Equalized())
        with pytest.raises(MigrationError, match=r"not every source row is accounted for: .*user_service\.roles: .*playbooks/migrate.yml compares anew"):
            reconcile.reconcile(world, PLAN_TIME)
    assert reconcile.reconcile(world, PLAN_TIME) > 0
    assert reconcile.reconcile(world, PLAN_TIME) == 0
