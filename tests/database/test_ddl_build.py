# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys and indexes are built through locks, kills and leftovers, and dropped again."""

from __future__ import annotations

import contextlib
import multiprocessing
import time

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.schema import build, ddl

from tests.phases import EXPECTED_INDEXES, parsed, planned, run, schema, service


def test_an_invalid_index_left_by_a_killed_run_is_built_again(database: Endpoint) -> None:
    contract = service("auth_service")
    schema(database, contract)
    rows = "INSERT INTO auth_service.users (username, email, password_hash) VALUES ('a', 'same', ''), ('b', 'same', '')"
    run(database, rows)
    with pytest.raises(MigrationError, match=r"idx_users_email.*SQLSTATE 23505.*preflight") as caught:
        build.build(database, contract, mode="concurrent")
    assert "same" not in str(caught.value).replace("the same key", "")
    run(database, "DELETE FROM auth_service.users WHERE username = 'b'")
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        assert any(not index.valid for index in ddl.read(connection, contract)["auth_service", "users"].indexes)
    build.build(database, contract, mode="plain")
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        assert all(index.valid for table in ddl.read(connection, contract).values() for index in table.indexes)
    assert planned(database, contract) == ()


def test_an_unvalidated_foreign_key_is_validated(database: Endpoint) -> None:
    contract = parsed("CREATE TABLE t (a integer PRIMARY KEY, b integer REFERENCES t)")
    schema(database, contract)
    build.build(database, contract, kinds=("primary_key",))
    run(database, "ALTER TABLE svc.t ADD CONSTRAINT t_b_fkey FOREIGN KEY (b) REFERENCES svc.t NOT VALID")
    assert [action.sql for action in planned(database, contract)] == ['ALTER TABLE "svc"."t" VALIDATE CONSTRAINT "t_b_fkey";\n']
    build.build(database, contract)
    assert planned(database, contract) == ()


def test_primary_keys_alone_can_be_built_first(database: Endpoint) -> None:
    contract = service("auth_service")
    schema(database, contract)
    made = build.build(database, contract, tables=("auth_service.users",), kinds=("primary_key",)).made
    assert [item.object for item in made] == ["users_pkey on auth_service.users"]


def test_a_locked_table_is_tried_again_and_then_named(database: Endpoint) -> None:
    contract = parsed("CREATE TABLE t (a integer PRIMARY KEY)")
    schema(database, contract)
    quick = build.Options(lock_timeout="50ms", lock_tries=2)
    with contextlib.closing(driver.connect(database, application_name="psql")) as admin:
        driver.rows(admin, "LOCK TABLE svc.t IN ROW EXCLUSIVE MODE")
        with pytest.raises(MigrationError, match=r"still locked after 2 tries of 50ms: .* svc\.t"):
            build.build(database, contract, mode="plain", options=quick)
    assert build.build(database, contract, options=quick).made


def test_what_was_built_can_be_dropped_and_no_more(database: Endpoint) -> None:
    contract = service("auth_service")
    schema(database, contract)
    build.build(database, contract, kinds=("primary_key",))
    made = [{"kind": item.kind, "object": item.object, "undo": item.undo} for item in build.build(database, contract).made]
    for expected in (len(made), 0):
        with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
            actions = build.plan_drop(connection, contract, made)
        assert len(build.drop(database, contract, actions).made) == expected
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        found = ddl.read(connection, contract)
    assert {index.name for table in found.values() for index in table.indexes} == {"users_pkey", "permissions_pkey", "user_permissions_pkey"}


@pytest.mark.parametrize("mode", ["plain", "concurrent"])
def test_a_killed_build_is_finished_by_the_next(database: Endpoint, mode: str) -> None:
    """Kill the building process four times, each a little later; the last run finds whatever that left."""
    contract = service("auth_service")
    schema(database, contract)
    run(
        database,
        "INSERT INTO auth_service.users (id, username, email, password_hash) SELECT gen_random_uuid(), i, md5(i::text), '' FROM generate_series(1, 60000) i",
        "INSERT INTO auth_service.user_permissions (user_id) SELECT id FROM auth_service.users",
    )
    context = multiprocessing.get_context("fork")
    for delay in (0.05, 0.15, 0.3, 0.5):
        process = context.Process(target=build.build, args=(database, contract), kwargs={"mode": mode})
        process.start()
        time.sleep(delay)
        process.kill()
        process.join()
    wait_until_alone(database)
    build.build(database, contract, mode="plain")
    assert planned(database, contract) == ()
    with contextlib.closing(ddl.connect(database, contract, readonly=True)) as connection:
        found = ddl.read(connection, contract)
    assert {table.name: {index.name for index in table.indexes} for table in found.values()} == EXPECTED_INDEXES["auth_service"]
    assert all(index.valid for table in found.values() for index in table.indexes)
    assert sum(constraint.kind == "f" for table in found.values() for constraint in table.constraints) == 3


def wait_until_alone(endpoint: Endpoint) -> None:
    """Wait for the server to end the statements of killed clients; a CONCURRENTLY in flight would be refused by name."""
    with contextlib.closing(driver.connect(endpoint, application_name="psql", autocommit=True)) as connection:
        for _ in range(300):
            others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            if driver.scalar(connection, f"{others} AND backend_type = 'client backend'") == 0:
                return
            time.sleep(0.05)
    raise AssertionError("server processes of killed clients are still there")


def test_a_table_is_analyzed_again_only_after_it_changed(database: Endpoint) -> None:
    contract = parsed("CREATE TABLE t (a integer)")
    schema(database, contract)
    assert [item.object for item in build.analyze(database, contract).made] == ["svc.t"]
    assert build.analyze(database, contract).made == ()
    run(database, "INSERT INTO svc.t SELECT generate_series(1, 10)")
    assert [item.object for item in build.analyze(database, contract).made] == ["svc.t"]
    assert build.analyze(database, contract).made == ()
    run(database, "SELECT pg_stat_reset()")
    assert build.analyze(database, contract).made == ()
