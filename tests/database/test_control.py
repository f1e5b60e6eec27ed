# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The records of the migration: what they say becomes names of folders, schemas and databases."""

from __future__ import annotations

import contextlib

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.state import control

from tests.conftest import execute

AWAY = ["../../etc/cron.d/x", "/etc/x", "..", "a/b", "", "x" * 41, "a\nb", "-x", "a;b"]


def test_a_run_id_that_is_no_name_is_refused_by_the_table_and_by_every_reader(database: Endpoint) -> None:
    with contextlib.closing(control.connect(database)) as records:
        planned = control.plan(records, "d" * 64, "f" * 16)
        assert control.checked_run_id(planned.run_id) == planned.run_id
        for name in AWAY:
            with pytest.raises(Exception, match="run_id_is_a_name"):
                driver.rows(records, "UPDATE migration.migrations SET run_id = %s", (name,))
        execute(database, "ALTER TABLE migration.migrations DROP CONSTRAINT run_id_is_a_name")  # records from before it, or a hostile owner
        for name in AWAY:
            driver.rows(records, "UPDATE migration.migrations SET run_id = %s", (name,))
            for read in (control.current, control.newest, control.run_ids):
                with pytest.raises(MigrationError, match="run_id is no name"):
                    read(records)


def test_of_many_long_records_only_the_newest_of_each_kind_brings_findings_and_only_so_many(database: Endpoint) -> None:
    with contextlib.closing(control.connect(database)) as records:
        for number in range(3):
            for kind in ("validate", "preflight"):
                control.record(records, kind, "failed", {"number": number, "findings": [{"id": place} for place in range(2500)], "findings_total": 9000})
        control.record(records, "repair", "passed", {"inserted": 1})
        control.record(records, "odd", "passed", {"findings": "none"})
        found = control.history(records, findings=1000)
        assert [(item.kind, len(item.detail["findings"]), item.detail.get("findings_left_out")) for item in found if item.kind not in ("repair", "odd")] == [
            ("preflight", 1000, 1500), ("validate", 1000, 1500), ("preflight", 0, 2500), ("validate", 0, 2500), ("preflight", 0, 2500), ("validate", 0, 2500)
        ]
        assert found[-1].detail == {"number": 0, "findings": [], "findings_total": 9000, "findings_left_out": 2500}
        assert [item["id"] for item in found[2].detail["findings"]] == list(range(1000)), "the first ones: those that stop come first"
        assert all(not item.detail["findings"] for item in control.history(records, kind="validate")), "who asks for none gets none"
        whole = control.latest(records, "validate")
        assert whole is not None
        assert len(whole.detail["findings"]) == 2500, "repair works from all of them"
        assert [item.detail for item in found[:2]] == [{"findings": "none"}, {"inserted": 1}]
