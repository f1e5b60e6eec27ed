# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module around the transfer: what it says and keeps when the control database is not there for a while."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.state import control
from ansible.module_utils.migration.transfer.dry_run import Preview
from ansible.module_utils.migration.transfer.run import Outcome
from ansible.modules import migration_copy

from tests.conftest import execute
from tests.mutation.world import NAMESPACE, SERVICES, read_plan

DONE = Outcome((), carried=1, rows=1, keys_added=0, reconciled=0, epochs=(), seconds={})


@pytest.fixture
def context(databases: Callable[..., Endpoint]) -> Context:
    """An open migration."""
    endpoint = databases("control")
    found = Context(plan=read_plan(), source=endpoint, targets=dict.fromkeys(SERVICES, endpoint), control=endpoint, namespace=NAMESPACE)
    records = control.connect(endpoint)
    control.plan(records, found.plan.digest, found.plan.fingerprint)
    control.record(records, "preflight", "passed", {}, plan_digest=found.plan.digest)
    control.set_snapshot(records, control.begin(records, found.plan.digest), "tests")
    records.close()
    return found


def carry(context: Context, monkeypatch: pytest.MonkeyPatch, transfer: Callable[..., Outcome], *, check: bool = False) -> dict[str, object]:
    """Run the module's body around a transfer that does nothing but what the test says."""
    monkeypatch.setattr(migration_copy, "run", transfer)
    monkeypatch.setattr(migration_copy.Context, "from_params", lambda params, check: context)
    given = {"runner": "runner1", "workers": 1, "chunk_rows": 1, "limits": {}, "statement_timeout": 0, "lock_timeout": 1, "snapshot_max_age": 60}
    rest = {"maintenance_work_mem": "64MB", "quarantine_cap": 1, "via": "direct", "progress_file": None, "id_map_dir": None, "override_gates": False}
    result: dict[str, object] = migration_copy.carry(SimpleNamespace(params={**given, **rest}, check_mode=check))
    return result


def end_sessions(context: Context) -> None:
    """Do what a restart of the control database's server does."""
    execute(context.control, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")


def test_a_transfer_longer_than_its_connection_to_the_records_is_recorded_all_the_same(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def long(*_: object) -> Outcome:
        end_sessions(context)
        return DONE

    assert carry(context, monkeypatch, long)["changed"]
    records = connect(context.control, application_name="tests", autocommit=True)
    assert driver.rows(records, "SELECT outcome FROM migration.records WHERE kind = 'migrate'") == [("passed",)]
    records.close()


def test_the_transfers_own_fault_is_told_when_it_cannot_be_recorded(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Outcome:
        execute(dataclasses.replace(context.control, dbname="postgres"), f'DROP DATABASE "{context.control.dbname}" WITH (FORCE)')
        raise MigrationError("the fault itself")

    with pytest.raises(MigrationError, match=r"^the fault itself$"):
        carry(context, monkeypatch, broken)


def test_a_preview_says_what_the_real_run_would_refuse_to_begin_without(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> object:
        return carry(dataclasses.replace(context, check=True), monkeypatch, lambda *_: DONE, check=True)["verdict"]

    monkeypatch.setattr(migration_copy, "preview", lambda *_: Preview(()))
    assert said() == "would carry 0 rows in 0 chunks"
    execute(context.control, "INSERT INTO migration.records (kind, outcome, detail) VALUES ('preflight', 'failed', '{}')")
    assert "; would require a passed preflight: the last preflight (" in str(said())
    execute(context.control, "UPDATE migration.migrations SET plan_digest = 'another'")
    assert "; as things stand it would be refused: migration " in str(said())
    execute(context.control, "UPDATE migration.migrations SET state = 'rolled_back', closed_at = now()")
    assert str(said()).endswith("; as things stand it would be refused: no migration is open; run playbooks/preflight.yml and playbooks/snapshot.yml first")
