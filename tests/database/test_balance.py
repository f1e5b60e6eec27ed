# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The transfer and the validation account for every source row, or fail."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from ansible.module_utils.migration.checks import reconciliation as balance_module
from ansible.module_utils.migration.checks import source_catalog
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan.model import Touch
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair import reconcile
from ansible.module_utils.migration.schema import ddl
from ansible.module_utils.migration.schema.tables import plan_schema
from ansible.module_utils.migration.state.limits import Limits
from ansible.module_utils.migration.transfer import chunks
from ansible.module_utils.migration.transfer import run as transfer
from ansible.module_utils.migration.validate import run as validate

from tests.conftest import execute
from tests.mutation.world import NAMESPACE, PLAN_TIME, SERVICES, fill, read_plan

FREE = Limits(cpu_percent=0, memory_percent=0, disk_percent=0)
OPTIONS = transfer.Options("runner1", chunk_rows=40, limits=FREE)
ACCOUNTED = validate.Options(accounts=True)


@pytest.fixture
def world(databases: Callable[..., Endpoint]) -> Context:
    source = databases("monolith")
    targets = {service: databases(service) for service in SERVICES}
    plan = read_plan()
    fill(source, 150, seed=7)
    for name, contract in plan.contracts:
        connection = ddl.connect(targets[name], Contract.from_dict(contract))
        ddl.apply(connection, plan_schema(connection, Contract.from_dict(contract)))
        connection.close()
    return Context(plan=plan, source=source, targets=targets, control=source, namespace=NAMESPACE)


def run(context: Context) -> transfer.Outcome:
    return transfer.run(context, PLAN_TIME, "run", OPTIONS, Progress(None), reconcile.reconcile)


def test_the_ledgers_and_the_validation_have_what_the_source_has(world: Context) -> None:
    done = run(world).balance
    assert done is not None
    assert done.passed
    users = next(item for item in done.accounts if item.table == "auth_user")
    assert (users.rows, users.carried, users.balanced) == (151, 151, True)
    assert done.verdict.startswith(f"every source row is accounted for: {sum(item.rows for item in done.accounts)} = ")
    found = validate.compare(world, PLAN_TIME, options=ACCOUNTED)
    assert found.passed
    assert found.balance == done
    assert run(world).balance is None  # nothing was carried


def test_a_chunk_that_was_never_cut_fails_the_transfer_and_the_next_run_carries_its_rows(world: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def gapped(found: list[transfer.ledger.Chunk]) -> list[transfer.ledger.Chunk]:
        ordered = chunks.numbered(found)
        lost = next((item for item in ordered if item.target == "auth_service.users" and item.low and item.high), None)
        return [item for item in ordered if item is not lost]

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "numbered", gapped)
        with pytest.raises(MigrationError, match=r"auth_service\.users: the source has 151 rows for it .* 111 were carried.*run it again"):
            run(world)
    again = run(world)
    assert again.reconciled > 0
    assert validate.compare(world, PLAN_TIME, options=ACCOUNTED).passed


def test_a_part_of_the_source_that_a_validation_did_not_read_is_seen(world: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    run(world)
    whole = validate.Scanner.scans
    monkeypatch.setattr(validate.Scanner, "scans", lambda self, told: (replace(scan, source_rows=scan.source_rows - 1) for scan in whole(self, told)))
    balance = validate.compare(world, PLAN_TIME, options=ACCOUNTED).balance
    assert balance is not None
    assert not balance.passed
    assert {gap.target for gap in balance.gaps} == {target.name for target in world.plan.targets}


def test_a_query_whose_refresh_is_wrong_agrees_with_itself_but_not_with_the_account(world: Context) -> None:
    def wrong(touch: Touch) -> Touch:  # profiles are cut by their own ids, so a range of users does not see those of its users
        return Touch("users_profile", "id", "user_id") if touch.table == "users_profile" else touch

    targets = [
        replace(target, parts=tuple(replace(part, touches=tuple(map(wrong, part.touches))) if part.name == "names" else part for part in target.parts))
        for target in world.plan.targets
    ]
    execute(world.source, "UPDATE auth_user SET first_name = 'x', last_name = 'y'; UPDATE users_profile SET id = id + 1000; ANALYZE")
    broken = replace(world, plan=replace(world.plan, targets=tuple(targets)))
    with pytest.raises(MigrationError, match=r"user_service\.profiles: the source has \d+ rows for it .* were carried"):
        transfer.run(broken, PLAN_TIME, "run", replace(OPTIONS, chunk_rows=5), Progress(None), reconcile.reconcile)
    balance = validate.compare(broken, PLAN_TIME, options=replace(ACCOUNTED, piece_rows=40)).balance
    assert balance is not None
    assert [gap.target for gap in balance.gaps] == ["user_service.profiles"]


def test_a_table_that_one_query_covers_is_not_joined_with_the_others(world: Context) -> None:
    execute(world.source, "ANALYZE")
    asked: list[str] = []
    connection = world.connect_source("tests", plan_time=PLAN_TIME)

    def ask(statement: str) -> list[tuple[object, ...]]:
        asked.append(statement)
        return driver.rows(connection, statement)

    counts = balance_module.count(ask, world.plan, source_catalog.read(connection, world.source.schema), {})
    connection.close()
    profiles = next(item for item in counts.accounts if item.table == "users_profile")
    assert (profiles.rows, profiles.balanced) == (profiles.carried, True)
    assert [statement for statement in asked if "LEFT JOIN (SELECT DISTINCT true AS hit" in statement] == []


def test_a_source_that_changes_while_it_is_carried_is_held_against_the_snapshot(world: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = transfer._Crew._listen

    def changing(self: transfer._Crew, *args: object) -> None:
        execute(world.source, "DELETE FROM auth_user_groups; DELETE FROM users_role WHERE id % 3 = 0")
        listen(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer._Crew, "_listen", changing)
    done = run(world).balance
    assert done is not None
    assert done.passed


def test_counts_that_were_cut_off_are_taken_again(world: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = transfer._Crew._listen
    cut: list[int] = []

    def cutting(self: transfer._Crew, *args: object) -> None:
        listen(self, *args)  # type: ignore[arg-type]
        execute(world.source, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'edulink-migration accounting'")

    def slow(ask: Callable[[str], object], *args: object) -> object:
        cut.append(1)
        if len(cut) == 1:
            ask("SELECT pg_sleep(30)")
        return counted(ask, *args)  # type: ignore[arg-type]

    counted = balance_module.count
    monkeypatch.setattr(balance_module, "count", slow)
    monkeypatch.setattr(transfer._Crew, "_listen", cutting)
    done = run(world).balance
    assert done is not None
    assert done.passed
    assert len(cut) == 2


def test_a_second_runner_waits_for_the_one_that_counts_and_finds_all_closed(world: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = balance_module.count
    calls: list[int] = []

    def counting(*args: object) -> object:
        calls.append(1)
        return counted(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(balance_module, "count", counting)
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: run(world), range(2)))
    assert len(calls) == 1
    assert [bool(item.balance) for item in done].count(True) == 1
    assert sum(item.reconciled for item in done) == 0
    assert validate.compare(world, PLAN_TIME, options=ACCOUNTED).passed


def test_a_runner_that_looked_just_before_all_was_closed_counts_nothing(world: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    run(world)
    monkeypatch.setattr(transfer, "finished", lambda _context: False)
    calls: list[int] = []
    monkeypatch.setattr(balance_module, "count", lambda *_arguments: calls.append(1))
    late = run(world)
    assert (late.balance, late.changed, calls) == (None, False, [])
