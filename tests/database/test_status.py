# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Status and report tell the truth at every moment, from nothing to the end, and write nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.parse import parse_contract
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan.compiler import compile_plan
from ansible.module_utils.migration.plan.mapping_files import read_mappings
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.report import status
from ansible.module_utils.migration.report.collect import collect
from ansible.module_utils.migration.report.page import page
from ansible.module_utils.migration.state import control, ledger

PROJECT = Path(__file__).resolve().parents[2]
SERVICES = ("auth_service", "user_service")
NAMESPACE = "a namespace of this test alone, and long"


@pytest.fixture(scope="module")
def plan() -> Plan:
    contracts = {name: parse_contract(name, PROJECT / "roles/schema/files" / name) for name in SERVICES}
    return compile_plan(read_mappings(PROJECT / "mappings", SERVICES), contracts, ids.fingerprint(NAMESPACE))


@pytest.fixture
def context(databases: Callable[..., Endpoint], plan: Plan) -> Context:
    source, auth, user, records = (databases(name) for name in ("source", *SERVICES, "control"))
    return Context(plan, source, {"auth_service": auth, "user_service": user}, records, NAMESPACE)


def write(context: Context, act: Callable[[driver.Connection], object]) -> None:
    with contextlib.closing(control.connect(context.control)) as connection:
        act(connection)


def begin(context: Context, *, snapshot: bool = True) -> None:
    """Plan and open a migration; with its snapshot, if wanted."""

    def act(connection: driver.Connection) -> None:
        migration = control.plan(connection, context.plan.digest, context.plan.fingerprint)
        control.record(connection, "preflight", "passed", {"findings": [], "seconds": {"scan": 1.5}}, migration=migration)
        if snapshot:
            migration = control.begin(connection, context.plan.digest)
            control.set_snapshot(connection, migration, "there")

    write(context, act)


def record(context: Context, kind: str, outcome: str, detail: dict[str, object]) -> None:
    write(context, lambda connection: control.record(connection, kind, outcome, detail, migration=control.current(connection)))


def carry(context: Context, service: str, *, done: int, planned: int, finished: bool = False) -> None:
    """Give a service a ledger with chunks that are done and chunks that are not."""
    with contextlib.closing(context.connect_target(service, "tests", autocommit=False)) as connection:
        ledger.create(connection, context.plan, service, "2026-01-01 00:00:00", "run")
        target = context.plan.of(service)[0].name
        ledger.add_chunks(connection, [ledger.Chunk(number, target, "", None, None, False, 100, "load") for number in range(done + planned)])
        driver.rows(
            connection,
            "UPDATE migration.chunks SET state = 'done', rows = 90, started_at = clock_timestamp() - interval '2 s', finished_at = clock_timestamp()"
            " WHERE id < %s",
            (done,),
        )
        if finished:
            driver.rows(connection, "UPDATE migration.pin SET finished_at = clock_timestamp()")
        connection.commit()


def proven(context: Context, differences: int = 0) -> dict[str, object]:
    target = context.plan.of("auth_service")[0].name
    table = {"target": target, "source_rows": 90, "target_rows": 90, "differences": differences, "kinds": {"different": differences}}
    return {"tables": [table], "findings": []}


def finish_load(context: Context) -> None:
    for service in SERVICES:
        record(context, "schema", "passed", {"service": service})
        carry(context, service, done=2, planned=0, finished=True)
        record(context, "index", "passed", {"service": service})
    record(context, "migrate", "passed", {"seconds": {"copy": 2.0}})


def test_nothing_exists_yet_and_nothing_is_made(context: Context) -> None:
    seen = status.look(context)
    assert seen.migration is None
    assert seen.next.command == "playbooks/preflight.yml"
    assert collect(context)["migration"] is None
    for endpoint in (context.control, *context.targets.values()):
        with contextlib.closing(driver.connect(endpoint, application_name="tests")) as connection:
            assert driver.scalar(connection, "SELECT to_regnamespace('migration')") is None


def test_each_step_names_the_next(context: Context) -> None:
    seen = []
    begin(context, snapshot=False)
    seen.append(status.look(context).next.command)
    begin(context)
    seen.append(status.look(context).next.command)
    record(context, "schema", "passed", {"service": "auth_service"})
    seen.append(status.look(context).next.command)
    record(context, "schema", "passed", {"service": "user_service"})
    seen.append(status.look(context).next.command)
    assert [item.removeprefix("playbooks/") for item in seen] == ["snapshot.yml", "schema.yml", "schema.yml", "migrate.yml"]


def test_a_transfer_under_way_shows_rows_rate_and_what_is_left(context: Context) -> None:
    begin(context)
    for service in SERVICES:
        record(context, "schema", "passed", {"service": service})
    carry(context, "auth_service", done=3, planned=1)
    seen = status.look(context)
    table = seen.services[0].tables[0]
    assert (table.rows, table.expected, table.chunks_done, table.chunks) == (270, 370, 3, 4)
    assert table.recent_rate > 0
    assert seen.next == status.Next("playbooks/migrate.yml", "1 chunk is left; nobody is at work, run it to go on")


def test_rates_and_the_snapshots_age_are_told_only_while_somebody_is_at_work(context: Context) -> None:
    begin(context)
    carry(context, "auth_service", done=3, planned=1)
    add = "INSERT INTO migration.epochs (id, snapshot, lsn, exported_at, runner) VALUES (1, 's', '0/0', clock_timestamp() - interval '5 min', 'here')"
    with contextlib.closing(context.connect_target("auth_service", "psql", autocommit=True)) as connection:
        driver.rows(connection, add)
    for application, told in (("somebody else", False), ("edulink-migration worker", True)):
        with contextlib.closing(context.connect_target("user_service", application, autocommit=True)):
            seen = status.to_dict(status.look(context))
        assert (seen["services"][0]["snapshot_age"] is not None) is told
        assert (seen["tables"][0]["recent_rate"] > 0) is told


def test_what_was_carried_must_be_proven_and_proven_again_after_a_repair(context: Context) -> None:
    begin(context)
    finish_load(context)
    assert status.look(context).next.command == "playbooks/validate.yml"
    record(context, "validate", "failed", proven(context, 3))
    assert status.look(context).next.command == "playbooks/repair.yml"
    assert collect(context)["verdict"] == {"level": "bad", "text": "The last validation failed: 3 rows differ."}
    record(context, "repair", "passed", {"rows": 3})
    assert status.look(context).next.command == "playbooks/validate.yml"
    record(context, "validate", "passed", proven(context))
    assert status.look(context).next.command == "playbooks/sessions.yml"
    report = collect(context)
    assert report["verdict"]["level"] == "good"
    assert report["outcomes"][context.plan.of("auth_service")[0].name]["equal"] == 90
    assert "</html>" in page(report)


def test_what_was_released_must_be_proven_too(context: Context) -> None:
    begin(context)
    finish_load(context)
    record(context, "validate", "failed", proven(context) | {"quarantine": {"passed": False, "verdict": "2 fit", "fit": 2}})
    assert status.look(context).next.command == "playbooks/release.yml"
    assert collect(context)["verdict"]["text"] == "The last validation failed: 2 fit."
    record(context, "release", "passed", {"tables": {"svc.t": 2}, "staying": 1})
    assert status.look(context).next.command == "playbooks/validate.yml"
    report = collect(context)
    assert report["verdict"]["level"] == "open"
    assert report["phases"][-1]["remark"] == "2 brought in, 1 left in quarantine"


def test_a_validation_that_could_not_run_is_run_again(context: Context) -> None:
    begin(context)
    finish_load(context)
    record(context, "validate", "error", {"error": "no connection"})
    assert status.look(context).next == status.Next("playbooks/validate.yml", "the last validation could not run")


def test_a_needless_transfer_that_failed_takes_nothing_back(context: Context) -> None:
    begin(context)
    finish_load(context)
    record(context, "validate", "passed", proven(context))
    record(context, "migrate", "failed", {"error": "no connection"})
    seen = status.look(context)
    assert seen.next.command == "playbooks/sessions.yml"
    assert {step.phase: step.outcome for step in seen.steps}["migrate"] == "passed"
    report = collect(context)
    assert report["verdict"]["level"] == "good"
    assert report["next"]["command"] == "playbooks/sessions.yml"


def test_a_transfer_that_failed_before_its_end_has_failed(context: Context) -> None:
    begin(context)
    for service in SERVICES:
        record(context, "schema", "passed", {"service": service})
    carry(context, "auth_service", done=1, planned=1)
    record(context, "migrate", "failed", {"error": "no connection"})
    seen = status.look(context)
    assert seen.next.command == "playbooks/migrate.yml"
    assert {step.phase: step.outcome for step in seen.steps}["migrate"] == "failed"


def test_a_transfer_that_goes_on_after_it_failed_is_running_and_then_interrupted(context: Context) -> None:
    begin(context)
    for service in SERVICES:
        record(context, "schema", "passed", {"service": service})
    record(context, "migrate", "failed", {"error": "no connection"})
    carry(context, "auth_service", done=1, planned=1)
    for application, outcome, why in (
        ("edulink-migration worker", "running", "1 chunk is left; 1 session is at work now: wait, or run it on another runner too"),
        ("edulink-migration validate", "interrupted", "1 chunk is left; 1 session is at work now: wait, or run it on another runner too"),
        ("somebody else", "interrupted", "1 chunk is left; nobody is at work, run it to go on"),
    ):
        with contextlib.closing(context.connect_target("auth_service", application, autocommit=True)):
            seen = status.look(context)
        assert [(step.phase, step.outcome) for step in seen.steps][-2:] == [("schema", "passed"), ("migrate", outcome)]
        assert seen.next == status.Next("playbooks/migrate.yml", why)


def test_a_database_that_is_gone_is_named_and_the_others_are_shown(context: Context) -> None:
    begin(context)
    finish_load(context)  # with one service alone, the next step would be to validate
    gone = dataclasses.replace(context.targets["user_service"], dbname="nowhere")
    seen = status.look(dataclasses.replace(context, targets={**context.targets, "user_service": gone}))
    assert len(seen.faults) == 1
    assert "nowhere" in seen.faults[0]
    assert "host_vars" in seen.faults[0]
    assert seen.services[0].tables != ()
    assert seen.next == status.Next("playbooks/status.yml", "mend the connection to user_service first; what is there is not known")


def test_the_playbook_shows_the_status_once_and_then_the_fault_alone(context: Context, tmp_path: Path) -> None:
    gone = dataclasses.replace(context.targets["user_service"], host="/nowhere")

    def host(endpoint: Endpoint) -> dict[str, object]:
        reached = {"login_host": endpoint.host, "login_port": endpoint.port, "login_db": endpoint.dbname, "login_user": endpoint.user}
        return {**reached, "login_password": endpoint.password, "ssl_mode": "disable"}

    targets = {"auth_service": host(context.targets["auth_service"]), "user_service": host(gone)}
    groups = {"source": {"monolith": host(context.source)}, "targets": targets, "control": {"migration_control": host(context.control)}}
    runner = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}", "migration_namespace": NAMESPACE}
    databases = {"children": {name: {"hosts": hosts} for name, hosts in groups.items()}}
    inventory = {"all": {"children": {"databases": databases, "runners": {"hosts": {"runner1": runner}}}}}
    place = tmp_path / "inventories" / "gone" / "hosts.yml"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(inventory), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "playbooks/status.yml", "-i", str(place.parent)]
    done = subprocess.run(
        [*command, "-e", json.dumps({"migration_artifacts_dir": str(tmp_path / "artifacts")})],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert said.count("Next: ") == 1, said
    assert said.count("No migration has begun.") == 1
    assert re.search(r"ERROR\]: Task failed: (Action failed: )?cannot connect to user_service .*; start the server, or correct login_host", said), said


def test_after_a_rollback_it_starts_again(context: Context) -> None:
    begin(context)
    record(context, "validate", "passed", proven(context))
    assert status.to_dict(status.look(context))["tables"] != []
    write(context, lambda connection: control.close(connection, control.current(connection), "rolled_back"))
    seen = status.look(context)
    assert status.to_dict(seen)["tables"] == []  # what was proven then is gone now
    assert seen.migration is not None
    assert seen.next.command == "playbooks/preflight.yml"
    assert "rolled back" in seen.next.why


def test_a_changed_mapping_is_noticed(context: Context) -> None:
    begin(context)
    write(context, lambda connection: driver.rows(connection, "UPDATE migration.migrations SET plan_digest = 'another'"))
    assert "are not those of migration" in status.look(context).next.why
