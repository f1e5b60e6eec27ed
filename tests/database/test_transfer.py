# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The transfer on real databases: complete, exactly once, resumable, shared, equal to an undisturbed run."""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import os
import re
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan.model import Policy
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.postgres.quote import literal
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair import reconcile
from ansible.module_utils.migration.schema import build, ddl
from ansible.module_utils.migration.schema.tables import plan_schema
from ansible.module_utils.migration.state import ledger
from ansible.module_utils.migration.state.limits import Limits
from ansible.module_utils.migration.transfer import file_transfer, id_map_csv
from ansible.module_utils.migration.transfer import run as transfer
from ansible.module_utils.migration.validate import run as validate

from tests.conftest import execute
from tests.mutation.world import NAMESPACE, PLAN_TIME, SERVICES, fill, read_plan

RUN_ID = "test-run"
FREE = Limits(cpu_percent=0, memory_percent=0, disk_percent=0)


def options(**changes: object) -> transfer.Options:
    """Return options under which a few hundred users make many chunks."""
    return transfer.Options(**{"runner": "runner1", "workers": 2, "chunk_rows": 100, "limits": FREE, **changes})  # type: ignore[arg-type]


def never(_context: Context, _plan_time: str) -> int:
    raise AssertionError("one snapshot needs no reconciliation")


@pytest.fixture
def world(databases: Callable[..., Endpoint]) -> Context:
    """A filled monolith and two services with empty tables."""
    source = databases("monolith")
    targets = {service: databases(service) for service in SERVICES}
    plan = read_plan()
    fill(source, 1500, seed=7)
    for name, contract in plan.contracts:
        connection = ddl.connect(targets[name], Contract.from_dict(contract))
        ddl.apply(connection, plan_schema(connection, Contract.from_dict(contract)))
        connection.close()
    return Context(plan=plan, source=source, targets=targets, control=source, namespace=NAMESPACE)


def run(context: Context, **changes: object) -> transfer.Outcome:
    return transfer.run(context, PLAN_TIME, RUN_ID, options(**changes), Progress(None), reconcile.reconcile)


def content(context: Context) -> dict[str, str]:
    """Return a digest of every target table, made by PostgreSQL alone."""
    found = {}
    for service in context.plan.services:
        connection = connect(context.targets[service], application_name="tests", autocommit=True)
        for target in context.plan.of(service):
            found[target.name] = driver.scalar(
                connection, f"SELECT count(*) || ' ' || md5(coalesce(string_agg(md5(t::text), '' ORDER BY md5(t::text)), '')) FROM {target.qualified} AS t"
            )
        connection.close()
    return found


def expected(context: Context) -> dict[str, int]:
    """Return the rows that each target should have, counted on the source."""
    connection = context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)
    counts: dict[str, int] = {}
    for target in context.plan.targets:
        for part in target.parts:
            count = driver.scalar(connection, part.select_columns(["count(*)"], context.source.schema))
            counts[target.name] = counts.get(target.name, 0) + int(count)
    connection.close()
    return counts


def test_everything_arrives_once_and_a_second_run_changes_nothing(world: Context) -> None:
    first = run(world)
    assert first.changed
    assert re.fullmatch(r"every source row is accounted for: .*; every chunk is carried", first.verdict)
    assert first.keys_added == len(world.plan.targets)
    counts = {name: int(text.split()[0]) for name, text in content(world).items()}
    assert counts == expected(world)
    assert all(counts.values())
    before = content(world)
    second = run(world)
    assert not second.changed
    assert content(world) == before


def test_the_id_map_is_exported_whole_for_its_owner_alone(world: Context, tmp_path: Path) -> None:
    run(world)
    written = id_map_csv.export(world, tmp_path / "run")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    lines = [line.split(",") for path in written.values() for line in Path(path).read_text(encoding="utf-8").splitlines()[1:]]
    assert {Path(path).stat().st_mode & 0o777 for path in written.values()} == {0o600}
    assert len(lines) == sum(count for name, count in expected(world).items() if name.endswith(".id_map"))
    assert all(ids.compute(ids.prefix(NAMESPACE, entity), [int(key)]) == uuid.UUID(value) for entity, key, value in lines)
    assert {entity for entity, _, _ in lines} == {"users", "permissions", "groups", "companies", "institutions"}
    service = next(name for name in world.plan.services if name in written)
    keys = ["=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(1)", "\t=1", "-7", "plain"]
    execute(world.targets[service], *(f"INSERT INTO migration.id_map VALUES ('texts', {literal(key)}, gen_random_uuid())" for key in keys))
    with open(id_map_csv.export(world, tmp_path / "run")[service], encoding="utf-8", newline="") as stream:
        shown = [row["source_key"] for row in csv.DictReader(stream) if row["entity"] == "texts"]
    assert shown == [f"'{key}" for key in keys[:5]] + keys[5:], "a spreadsheet takes no key for a formula"


def test_the_size_of_chunks_and_the_number_of_workers_do_not_change_the_result(world: Context, databases: Callable[..., Endpoint]) -> None:
    run(world, chunk_rows=100, workers=3)
    one = content(world)
    for service in SERVICES:
        connection = connect(world.targets[service], application_name="tests", autocommit=True)
        for target in world.plan.of(service):
            driver.rows(connection, f"TRUNCATE {target.qualified}" if not target.bookkeeping else "SELECT 1")
        driver.rows(connection, "DROP SCHEMA migration CASCADE")
        connection.close()
    run(world, chunk_rows=1_000_000, workers=1)
    assert content(world) == one


def _run_and_die(context: Context, seconds: float) -> None:
    os.setpgrp()
    slow = dataclasses.replace(FREE, rows_per_second=4000)
    transfer.run(context, PLAN_TIME, RUN_ID, options(limits=slow), Progress(None), never)


def test_a_killed_run_is_resumed_without_repeating_finished_chunks(world: Context) -> None:
    process = multiprocessing.get_context("fork").Process(target=_run_and_die, args=(world, 0.0))
    process.start()
    done = _wait_for_chunks(world, 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    outcome = run(world)
    total = sum(table.chunks for table in outcome.tables)
    assert outcome.carried <= total - done
    compared = "both sides were compared row by row, 0 rows settled, and every source row is accounted for; every chunk is carried"
    assert outcome.verdict == compared
    assert run(world).verdict == "playbooks/validate.yml proves the rows; every chunk is carried"
    assert {name: int(text.split()[0]) for name, text in content(world).items()} == expected(world)


def _wait_for_chunks(context: Context, wanted: int) -> int:
    for _ in range(600):
        done = 0
        for service in SERVICES:
            connection = connect(context.targets[service], application_name="tests", autocommit=True)
            if ledger.exists(connection):
                done += int(driver.scalar(connection, "SELECT count(*) FROM migration.chunks WHERE state = 'done'"))
            connection.close()
        if done >= wanted:
            return done
        time.sleep(0.05)
    raise AssertionError("the transfer did not start")


def test_progress_counts_a_row_once_however_early_its_chunk_is_done(world: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listen = transfer._Crew._listen

    def late(self: transfer._Crew, *args: object) -> None:
        _wait_for_chunks(world, 3)
        listen(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer._Crew, "_listen", late)
    killed_on_the_way(world)
    progress = Progress(str(tmp_path / "progress.json"), interval=0)
    outcome = transfer.run(world, PLAN_TIME, RUN_ID, options(), progress, reconcile.reconcile)
    progress.close()
    told = json.loads((tmp_path / "progress.json").read_text(encoding="utf-8"))["tables"]
    assert {name: table["done"] for name, table in told.items()} == {table.target: table.rows for table in outcome.tables}


def test_what_changed_between_two_snapshots_is_settled(world: Context) -> None:
    process = multiprocessing.get_context("fork").Process(target=_run_and_die, args=(world, 0.0))
    process.start()
    _wait_for_chunks(world, 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    source = connect(world.source, application_name="tests", autocommit=True)
    driver.rows(source, "UPDATE users_profile SET bio = 'changed between the snapshots'")
    driver.rows(source, "DELETE FROM users_role WHERE id % 7 = 0")
    driver.rows(source, "UPDATE auth_user SET email = 'new-' || email WHERE id % 5 = 0")
    driver.rows(source, "INSERT INTO auth_user_groups (user_id, group_id) SELECT u.id, g.id FROM auth_user AS u, auth_group AS g ON CONFLICT DO NOTHING")
    source.close()
    outcome = run(world)
    assert outcome.reconciled > 0
    after = content(world)
    for service in SERVICES:
        connection = connect(world.targets[service], application_name="tests", autocommit=True)
        for target in world.plan.of(service):
            driver.rows(connection, f"TRUNCATE {target.qualified} CASCADE")
        driver.rows(connection, "DROP SCHEMA migration CASCADE")
        connection.close()
    run(world)
    assert content(world) == after


def test_two_runners_share_the_chunks_and_a_survivor_finishes(world: Context) -> None:
    fork = multiprocessing.get_context("fork")
    slow = fork.Process(target=_run_and_die, args=(world, 0.0))
    slow.start()
    _wait_for_chunks(world, 2)
    os.kill(slow.pid, signal.SIGKILL)  # the runner's module dies; its workers notice and end
    outcome = run(world, runner="runner2")
    slow.join()
    assert outcome.carried > 0
    assert {name: int(text.split()[0]) for name, text in content(world).items()} == expected(world)


def test_a_table_gets_its_key_when_its_last_chunk_is_in_and_not_before(world: Context) -> None:
    transfer.prepare(world, PLAN_TIME, RUN_ID, options())
    held = connect(world.targets["user_service"], application_name="tests")
    driver.rows(held, "SELECT id FROM migration.chunks WHERE target = 'user_service.roles' ORDER BY id DESC LIMIT 1 FOR UPDATE")
    process = multiprocessing.get_context("fork").Process(target=run, args=(world,))
    process.start()
    others = {target.name for target in world.plan.targets} - {"user_service.roles"}
    for _ in range(600):
        if (keyed := _with_primary_key(world)) >= others:
            break
        time.sleep(0.05)
    assert keyed == others
    assert process.is_alive()
    held.rollback()
    held.close()
    process.join()
    assert _with_primary_key(world) == others | {"user_service.roles"}
    assert {name: int(text.split()[0]) for name, text in content(world).items()} == expected(world)


def _with_primary_key(context: Context) -> set[str]:
    found = set()
    for service in context.plan.services:
        connection = connect(context.targets[service], application_name="tests", autocommit=True)
        for target in context.plan.of(service):
            if driver.rows(connection, "SELECT 1 FROM pg_index WHERE indrelid = to_regclass(%s) AND indisprimary AND indisvalid", (target.qualified,)):
                found.add(target.name)
        connection.close()
    return found


def test_another_plan_is_refused_with_what_has_changed_and_the_command_that_starts_over(world: Context) -> None:
    transfer.prepare(world, PLAN_TIME, RUN_ID, options())
    users = next(target for target in world.plan.targets if target.name == "auth_service.users")
    part = dataclasses.replace(users.parts[0], cells=users.parts[0].cells[:-1])
    mapping = dataclasses.replace(
        world.plan, targets=tuple(dataclasses.replace(users, parts=(part,)) if target is users else target for target in world.plan.targets)
    )
    contract = {**world.plan.contracts[1][1], "tables": world.plan.contracts[1][1]["tables"][:-1]}
    schema = dataclasses.replace(world.plan, contracts=(world.plan.contracts[0], (world.plan.contracts[1][0], contract)))
    namespace = dataclasses.replace(world.plan, fingerprint="0" * 16)
    for plan, named in ((mapping, "mappings/auth_service/users.yml"), (schema, "the schema SQL of user_service"), (namespace, "migration_namespace")):
        with pytest.raises(MigrationError, match=rf"changed: {named}\. .*playbooks/rollback\.yml"):
            transfer.prepare(dataclasses.replace(world, plan=plan), PLAN_TIME, RUN_ID, options())


def test_before_the_tables_are_there_it_names_the_playbook_that_makes_them_and_leaves_nothing(world: Context, tmp_path: Path) -> None:
    on(world.targets["auth_service"], "DROP TABLE auth_service.permissions CASCADE")
    folder = tmp_path / "files"
    file_transfer.export_files(world, PLAN_TIME, folder, options(), Progress(None))
    for begin in (
        lambda: transfer.prepare(world, PLAN_TIME, RUN_ID, options()),
        lambda: file_transfer.import_files(world, PLAN_TIME, RUN_ID, folder, options(), Progress(None)),
    ):
        with pytest.raises(MigrationError, match=r"^auth_service\.permissions: the table .* does not exist yet; run playbooks/schema\.yml first$"):
            begin()
    connection = connect(world.targets["auth_service"], application_name="tests", autocommit=True)
    assert not ledger.exists(connection)
    connection.close()


def test_rows_of_the_service_stay_and_indexes_end_the_same(world: Context) -> None:
    connection = connect(world.targets["auth_service"], application_name="tests", autocommit=True)
    driver.rows(connection, "ALTER TABLE auth_service.users ADD PRIMARY KEY (id)")
    native = "'00000000-0000-4000-8000-000000000001', 'native', 'native@x.invalid', '!'"
    driver.rows(connection, f"INSERT INTO auth_service.users (id, username, email, password_hash) VALUES ({native})")
    connection.close()
    run(world)
    connection = connect(world.targets["auth_service"], application_name="tests", autocommit=True)
    assert driver.scalar(connection, "SELECT username FROM auth_service.users WHERE id = '00000000-0000-4000-8000-000000000001'") == "native"
    assert driver.scalar(connection, "SELECT count(*) FROM auth_service.users") == expected(world)["auth_service.users"] + 1
    assert driver.scalar(connection, "SELECT count(*) FROM pg_index WHERE indrelid = 'auth_service.users'::regclass AND indisprimary") == 1
    connection.close()


def test_a_table_whose_ids_jump_far_costs_no_empty_chunks(world: Context) -> None:
    source = connect(world.source, application_name="tests", autocommit=True)
    driver.rows(source, "UPDATE students SET id = id + 2000000000 WHERE id > 500")
    source.close()
    run(world)
    connection = connect(world.targets["user_service"], application_name="tests", autocommit=True)
    assert driver.scalar(connection, "SELECT min(rows) FROM migration.chunks WHERE target = 'user_service.student_profiles'") > 0
    connection.close()


def test_a_row_that_does_not_fit_is_named_by_chunk_and_column_and_not_by_value(world: Context) -> None:
    source = connect(world.source, application_name="tests", autocommit=True)
    driver.rows(source, "ALTER TABLE students ALTER COLUMN gpa TYPE numeric(6, 2)")
    driver.rows(source, "UPDATE students SET gpa = 1234.56 WHERE id = (SELECT max(id) FROM students)")
    source.close()
    with pytest.raises(MigrationError, match=r"user_service\.student_profiles \(chunk \d+, id from .*22003") as failure:
        run(world)
    assert "1234" not in str(failure.value)


def test_no_worker_outlives_its_killed_parent(world: Context) -> None:
    process = multiprocessing.get_context("fork").Process(target=_run_and_die, args=(world, 0.0))
    process.start()
    _wait_for_chunks(world, 1)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    connection = connect(world.source, application_name="tests", autocommit=True)
    for _ in range(100):
        left = driver.scalar(
            connection, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'edulink-migration worker'"
        )
        if left == 0:
            break
        time.sleep(0.1)
    connection.close()
    assert left == 0


def test_the_namespace_is_in_no_statement_that_a_server_shows(world: Context, tmp_path: Path) -> None:
    select = " ".join(part.select("public") for target in world.plan.targets for part in target.parts)
    assert NAMESPACE not in select
    for entity in world.plan.entity_names:
        assert ids.prefix(NAMESPACE, entity).hex() not in select


def start_over(context: Context) -> None:
    """Empty the targets and drop their ledgers."""
    for service in SERVICES:
        connection = connect(context.targets[service], application_name="tests", autocommit=True)
        for target in context.plan.of(service):
            driver.rows(connection, f"TRUNCATE {target.qualified} CASCADE")
        driver.rows(connection, "DROP SCHEMA migration CASCADE")
        connection.close()


def test_the_way_by_files_gives_the_same_and_refuses_a_damaged_missing_or_foreign_file(world: Context, tmp_path: Path) -> None:
    run(world)
    wanted = content(world)
    start_over(world)
    folder = tmp_path / "files"
    before = os.umask(0)
    manifest, written = file_transfer.export_files(world, PLAN_TIME, folder, options(), Progress(None))
    os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}, "rows hold personal values"
    assert written
    assert not file_transfer.export_files(world, PLAN_TIME, folder, options(), Progress(None))[1]
    assert folder.stat().st_mode & 0o777 == 0o700

    victim = folder / manifest.entries[3].rows.name
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(MigrationError, match=f"{victim.name}: is damaged"):
        file_transfer.import_files(world, PLAN_TIME, RUN_ID, folder, options(), Progress(None))
    victim.unlink()
    with pytest.raises(MigrationError, match=f"{victim.name}: is missing"):
        file_transfer.import_files(world, PLAN_TIME, RUN_ID, folder, options(), Progress(None))
    victim.write_bytes(good)
    (folder / "999999.rows.gz").write_bytes(good)
    with pytest.raises(MigrationError, match=r"999999\.rows\.gz: is not in the manifest"):
        file_transfer.import_files(world, PLAN_TIME, RUN_ID, folder, options(), Progress(None))
    (folder / "999999.rows.gz").unlink()
    with pytest.raises(MigrationError, match="timestamp"):
        file_transfer.import_files(world, "2001-01-01 00:00:00", RUN_ID, folder, options(), Progress(None))

    offline = Context(
        plan=world.plan, source=nowhere(world.source), targets=world.targets, control=world.control, namespace=NAMESPACE
    )
    assert file_transfer.import_files(offline, PLAN_TIME, RUN_ID, folder, options(), Progress(None)).changed
    assert content(world) == wanted
    assert not file_transfer.import_files(offline, PLAN_TIME, RUN_ID, folder, options(), Progress(None)).changed


def nowhere(endpoint: Endpoint) -> Endpoint:
    return dataclasses.replace(endpoint, host="/nowhere")


def on_record(context: Context) -> list[object]:
    """Return what both ledgers say of rows that were kept out."""
    found: list[object] = []
    for service in SERVICES:
        connection = connect(context.targets[service], application_name="tests", autocommit=True)
        found += driver.rows(connection, "SELECT target, part, source_key, id, rule, column_name, reason, caused_by FROM migration.rejects ORDER BY 1, 2, 3")
        connection.close()
    return found


def test_quarantined_rows_and_their_dependants_stay_behind_and_are_on_record(world: Context, tmp_path: Path) -> None:
    source = connect(world.source, application_name="tests", autocommit=True)
    driver.rows(source, "ALTER TABLE auth_user ALTER COLUMN email DROP NOT NULL")
    keys = [str(row[0]) for row in driver.rows(source, "UPDATE auth_user SET email = NULL WHERE id % 50 = 0 RETURNING id")]
    dependants = driver.scalar(source, "SELECT count(*) FROM users_profile WHERE user_id = ANY (%s::int[])", (keys,))
    source.close()
    policy = Policy("email", "not_null", "quarantine", None, "test")
    targets = tuple(dataclasses.replace(t, policies=(policy,)) if t.name == "auth_service.users" else t for t in world.plan.targets)
    quarantining = dataclasses.replace(world, plan=dataclasses.replace(world.plan, targets=targets))
    before = expected(world)
    run(quarantining)
    counts = {name: int(text.split()[0]) for name, text in content(world).items()}
    assert counts["auth_service.users"] == before["auth_service.users"] - len(keys)
    assert counts["auth_service.migration.id_map"] == before["auth_service.migration.id_map"] - len(keys)
    connection = connect(world.targets["user_service"], application_name="tests", autocommit=True)
    assert driver.scalar(connection, "SELECT count(*) FROM migration.rejects WHERE target = 'user_service.profiles' AND part = 'profile'") == dependants
    connection.close()
    assert validate.compare(quarantining, PLAN_TIME).differences == 0

    wanted = (content(world), on_record(world))
    start_over(world)
    here = dataclasses.replace(quarantining, targets={name: nowhere(endpoint) for name, endpoint in world.targets.items()})
    there = dataclasses.replace(quarantining, source=nowhere(world.source))
    file_transfer.export_files(here, PLAN_TIME, tmp_path / "files", options(), Progress(None))
    file_transfer.import_files(there, PLAN_TIME, RUN_ID, tmp_path / "files", options(), Progress(None))
    assert (content(world), on_record(world)) == wanted
    assert validate.compare(quarantining, PLAN_TIME).differences == 0


def killed_on_the_way(context: Context) -> None:
    """Leave a transfer that was killed after some chunks."""
    process = multiprocessing.get_context("fork").Process(target=_run_and_die, args=(context, 0.0))
    process.start()
    _wait_for_chunks(context, 3)
    os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()


def on(endpoint: Endpoint, *statements: str) -> None:
    connection = connect(endpoint, application_name="tests", autocommit=True)
    for statement in statements:
        driver.rows(connection, statement)
    connection.close()


NATIVE = "INSERT INTO auth_service.users (id, username, email, password_hash) VALUES ('00000000-0000-4000-8000-000000000001', 'native', 'n@x.invalid', '!')"


def test_a_services_own_rows_survive_a_resume(world: Context) -> None:
    on(world.targets["auth_service"], "ALTER TABLE auth_service.users ADD PRIMARY KEY (id)", NATIVE)
    killed_on_the_way(world)
    run(world)
    assert int(content(world)["auth_service.users"].split()[0]) == expected(world)["auth_service.users"] + 1


def test_a_source_without_an_index_on_its_key_is_cut_in_the_order_of_values(world: Context) -> None:
    on(world.source, "ALTER TABLE students DROP CONSTRAINT students_pkey", "UPDATE students SET id = -id WHERE id % 3 = 0")
    run(world)
    assert {name: int(text.split()[0]) for name, text in content(world).items()} == expected(world)


def test_where_foreign_keys_stand_already_parents_go_first(world: Context) -> None:
    for name, contract in world.plan.contracts:
        build.build(world.targets[name], Contract.from_dict(contract))
    run(world)
    assert {name: int(text.split()[0]) for name, text in content(world).items()} == expected(world)
    assert validate.compare(world, PLAN_TIME).differences == 0


def test_a_service_that_was_rolled_back_alone_is_brought_to_the_other_ones_state(world: Context) -> None:
    run(world)
    on(world.targets["user_service"], "DROP SCHEMA migration CASCADE", *(f"TRUNCATE {t.qualified}" for t in world.plan.of("user_service") if not t.bookkeeping))
    on(
        world.source,
        "INSERT INTO auth_user (id, password, is_superuser, username, first_name, last_name, email, is_staff, is_active, date_joined)"
        " VALUES (2000000000, '!', false, 'late', 'Late', '', 'late@x.invalid', true, true, now())",
    )
    run(world)
    assert validate.compare(world, PLAN_TIME).differences == 0


def test_an_export_deletes_nothing_that_is_not_its_own(world: Context, tmp_path: Path) -> None:
    theirs = tmp_path / "prod-2026.sql.gz"
    theirs.write_bytes(b"theirs")
    tmp_path.chmod(0o755)
    with pytest.raises(MigrationError, match="must be empty"):
        file_transfer.export_files(world, PLAN_TIME, tmp_path, options(), Progress(None))
    assert theirs.read_bytes() == b"theirs"
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("times", [3, 1000])
def test_a_chunk_that_loses_a_deadlock_is_carried_again_but_not_for_ever(world: Context, times: int) -> None:
    on(
        world.targets["auth_service"],
        "CREATE SEQUENCE public.clashes",
        "CREATE FUNCTION public.clash() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF nextval('public.clashes') <= "
        f"{times} THEN RAISE EXCEPTION 'clash' USING ERRCODE = '40P01'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER clash BEFORE INSERT ON auth_service.users FOR EACH ROW EXECUTE FUNCTION public.clash()",
    )
    if times > 3:
        with pytest.raises(MigrationError, match=r"auth_service\.users \(chunk .*a function raised.*SQLSTATE 40P01.*this chunk was rolled back"):
            run(world)
        return
    run(world)
    assert {name: int(text.split()[0]) for name, text in content(world).items()} == expected(world)
    assert validate.compare(world, PLAN_TIME).passed
