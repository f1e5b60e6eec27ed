# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules migration_schema and migration_index: gates, check mode, idempotence, undo, and the records they leave."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.migration.contract.parse import parse_contract
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.state import control
from ansible.modules import migration_index, migration_schema

FILES = Path(__file__).resolve().parents[2] / "roles" / "schema" / "files"
NAMESPACE = "a namespace of the tests, long enough"
OPTIONS = {
    "service": "auth_service",
    "state": "present",
    "mode": "auto",
    "jobs": 2,
    "maintenance_work_mem": "16MB",
    "parallel_workers": None,
    "lock_timeout": "1s",
    "lock_tries": 2,
    "progress_file": None,
}


def option(endpoint: Endpoint, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "login_host": endpoint.host,
        "login_port": endpoint.port,
        "login_db": endpoint.dbname,
        "login_user": endpoint.user,
        "login_password": endpoint.password,
        "ssl_mode": endpoint.sslmode,
    }


@dataclasses.dataclass
class Phases:
    """Runs the two modules on a service database with a control database."""

    source: Endpoint
    target: Endpoint
    control: Endpoint
    plan: Plan

    def module(self, check: bool, **options: Any) -> Any:
        connections = {
            "source": option(self.source, "monolith"),
            "targets": [option(self.target, "auth_service")],
            "control": option(self.control, "migration_control"),
            "namespace": NAMESPACE,
        }
        return SimpleNamespace(check_mode=check, params={"plan": self.plan.to_dict(), "connections": connections, **OPTIONS, **options})

    def schema(self, check: bool = False, **options: Any) -> dict[str, Any]:
        return migration_schema.run(self.module(check, **options))

    def index(self, check: bool = False, **options: Any) -> dict[str, Any]:
        return migration_index.run(self.module(check, **options))

    def open(self, snapshot: str | None = "snapshot") -> None:
        with contextlib.closing(control.connect(self.control)) as connection:
            control.plan(connection, self.plan.digest, self.plan.fingerprint)
            migration = control.begin(connection, self.plan.digest)
            if snapshot:
                control.set_snapshot(connection, migration, snapshot)

    def ask(self, endpoint: Endpoint, statement: str) -> Any:
        with contextlib.closing(driver.connect(endpoint, application_name="psql", autocommit=True)) as connection:
            return driver.scalar(connection, statement)


@pytest.fixture
def phases(databases: Callable[..., Endpoint]) -> Phases:
    contract = parse_contract("auth_service", FILES / "auth_service")
    plan = Plan(targets=(), entities=(), contracts=(("auth_service", contract.to_dict()),), fingerprint=ids.fingerprint(NAMESPACE))
    return Phases(databases("monolith"), databases("auth", role=True), databases("control", role=True), plan)


def test_without_an_open_migration_both_refuse(phases: Phases) -> None:
    for phase in (phases.schema, phases.index):
        with pytest.raises(MigrationError, match="no migration is open"):
            phase()
    phases.open(snapshot=None)
    with pytest.raises(MigrationError, match="no snapshot yet"):
        phases.schema()
    assert phases.ask(phases.target, "SELECT to_regnamespace('auth_service')") is None


def test_check_mode_shows_all_ddl_on_untouched_databases_and_writes_nothing(phases: Phases) -> None:
    schema, index = phases.schema(check=True), phases.index(check=True)
    assert schema["changed"]
    assert index["changed"]
    assert "as things stand it would be refused: no migration is open" in schema["msg"]
    assert 'CREATE TABLE "auth_service"."users"' in schema["diff"]["after"]
    assert "ALTER DATABASE" in schema["diff"]["after"]
    for name in ("users_pkey", "idx_users_email", "user_permissions_granted_by_fkey"):
        assert name in index["diff"]["after"]
    for endpoint in (phases.target, phases.control):
        assert phases.ask(endpoint, "SELECT count(*) FROM pg_namespace WHERE nspname IN ('auth_service', 'migration')") == 0


def test_each_runs_once_and_then_changes_nothing(phases: Phases) -> None:
    phases.open()
    assert phases.schema()["changed"]
    first = phases.index()
    assert first["changed"]
    assert "made 3 primary keys, 3 unique keys, 3 foreign keys, 3 ANALYZE in " in first["msg"]
    assert {action["object"] for action in first["actions"] if action["kind"] == "foreign_key"} == {
        f"user_permissions_{column}_fkey on auth_service.user_permissions" for column in ("user_id", "permission_id", "granted_by")
    }
    assert not phases.schema()["changed"]
    assert not phases.index()["changed"]
    assert not phases.index(check=True)["changed"]
    assert "every key and index is there" in phases.index(check=True)["msg"]


def test_the_undo_drops_what_was_made_even_by_a_killed_run(phases: Phases, monkeypatch: pytest.MonkeyPatch) -> None:
    phases.open()
    phases.schema()

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(migration_index.build, "analyze", killed)
    with pytest.raises(KeyboardInterrupt):
        phases.index()
    monkeypatch.undo()
    count = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'auth_service'"
    assert phases.ask(phases.target, count) == 6
    preview = phases.index(check=True, state="absent")
    assert "would drop 9 keys and indexes" in preview["msg"]
    assert phases.ask(phases.target, count) == 6
    assert phases.index(state="absent")["changed"]
    assert phases.ask(phases.target, count) == 0
    assert not phases.index(state="absent")["changed"]
    assert phases.index()["changed"]


def test_keys_that_were_there_before_survive_the_undo(phases: Phases) -> None:
    phases.open()
    phases.schema()
    with contextlib.closing(driver.connect(phases.target, application_name="x", autocommit=True)) as connection:
        driver.rows(connection, "ALTER TABLE auth_service.users ADD PRIMARY KEY (id)")
    assert "2 primary keys, " in phases.index()["msg"]
    with contextlib.closing(driver.connect(phases.target, application_name="x", autocommit=True)) as connection:
        driver.rows(connection, "ALTER TABLE auth_service.permissions DROP CONSTRAINT permissions_pkey CASCADE")
    assert "made 1 primary key, 1 foreign key" in phases.index()["msg"]
    phases.index(state="absent")
    assert phases.ask(phases.target, "SELECT string_agg(indexname, ' ') FROM pg_indexes WHERE schemaname = 'auth_service'") == "users_pkey"


def test_a_difference_stops_the_phase_and_leaves_no_record_of_success(phases: Phases) -> None:
    phases.open()
    phases.schema()
    with contextlib.closing(driver.connect(phases.target, application_name="x", autocommit=True)) as connection:
        driver.rows(connection, "ALTER TABLE auth_service.users ALTER email TYPE varchar(100)")
    with pytest.raises(MigrationError, match=r"users\.email has type character varying\(100\).*010-tables\.sql:9.*character varying\(254\)"):
        phases.schema()
    assert phases.ask(phases.control, "SELECT count(*) FROM migration.records WHERE kind = 'schema'") == 1


def test_an_unknown_service_is_named(phases: Phases) -> None:
    phases.open()
    with pytest.raises(MigrationError, match="no service 'billing'"):
        phases.schema(service="billing")
