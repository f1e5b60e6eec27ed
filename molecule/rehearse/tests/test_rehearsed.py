# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rehearsal is on record and its copies and snapshots are gone."""

from __future__ import annotations

from typing import Any

from molecule_databases import INVENTORY, PROJECT, ask


def test_the_rehearsal_is_on_record_with_its_steps(host: Any) -> None:
    record = "SELECT outcome || ' ' || (detail->>'seconds')::numeric::int || ' ' || jsonb_array_length(detail->'steps') FROM migration.records"
    outcome, seconds, steps = ask(host, "migration_control", f"{record} WHERE kind = 'rehearse' ORDER BY id DESC LIMIT 1").split()
    assert outcome == "passed"
    assert int(seconds) > 0
    assert int(steps) > 10


def test_no_copy_is_left(host: Any) -> None:
    for database in ("auth_service", "user_service"):
        assert ask(host, database, "SELECT count(*) FROM pg_database WHERE datname LIKE '%rehearsal%'") == "0"


def test_no_personal_data_is_left(host: Any) -> None:
    folder = PROJECT / "artifacts" / INVENTORY.name / "rehearsal"
    assert not folder.exists() or not list(folder.iterdir())
