# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows are made equal whatever they exchange, however far apart, and no other row is touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.repair import reconcile
from ansible.module_utils.migration.schema import build
from ansible.module_utils.migration.upsert import upsert
from ansible.module_utils.migration.validate import run as validate

from tests.database.test_transfer import PLAN_TIME, killed_on_the_way, on, run, world
from tests.mutation.world import cloned_world

__all__ = ["world"]  # the fixture

FEW = 20  # keys in a batch, so that what is exchanged lies in different ones
# Everything unique goes to the user at the other end: no two of an exchange are in one batch, and one chain runs through all.
EXCHANGE = (
    "UPDATE auth_user AS u SET email = o.email FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM auth_user) AS a,"
    " (SELECT email, row_number() OVER (ORDER BY id DESC) AS n FROM auth_user) AS o WHERE a.id = u.id AND o.n = a.n",
    "ALTER TABLE students DROP CONSTRAINT students_student_id_key",
    "UPDATE students AS u SET student_id = o.student_id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM students) AS a,"
    " (SELECT student_id, row_number() OVER (ORDER BY id) - 1 AS n FROM students) AS o WHERE a.id = u.id AND (o.n = a.n OR (o.n = 0 AND a.n ="
    " (SELECT count(*) FROM students)))",
)
CHILDREN = "auth_service.user_permissions"


@pytest.fixture
def carried(postgres: PostgresServer, databases: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch) -> Context:
    """Both services with all their keys and rows; keys are read again in several batches."""
    monkeypatch.setattr(upsert, "BATCH", FEW)
    return cloned_world(postgres, databases).context


def ask(endpoint: Endpoint, statement: str) -> object:
    connection = connect(endpoint, application_name="tests", autocommit=True)
    try:
        return driver.scalar(connection, statement)
    finally:
        connection.close()


SPREADING = (
    f"ALTER TABLE {CHILDREN} DROP CONSTRAINT user_permissions_user_id_fkey",
    f"ALTER TABLE {CHILDREN} ADD CONSTRAINT user_permissions_user_id_fkey FOREIGN KEY (user_id) REFERENCES auth_service.users ON DELETE CASCADE",
)


@pytest.mark.parametrize("before", [(), SPREADING], ids=["children that only refer", "children that a delete takes along"])
def test_unique_values_that_are_exchanged_between_batches_are_settled(carried: Context, before: tuple[str, ...]) -> None:
    on(carried.targets["auth_service"], *before)
    children = ask(carried.targets["auth_service"], f"SELECT count(*) FROM {CHILDREN}")
    on(carried.source, *EXCHANGE)
    assert reconcile.reconcile(carried, PLAN_TIME) > 2 * FEW
    assert validate.compare(carried, PLAN_TIME).differences == 0
    assert ask(carried.targets["auth_service"], f"SELECT count(*) FROM {CHILDREN}") == children
    assert reconcile.reconcile(carried, PLAN_TIME) == 0


def test_a_new_row_takes_the_value_of_one_that_goes_while_its_children_move(carried: Context) -> None:
    first = "(SELECT min(user_id) FROM auth_user_user_permissions)"
    on(
        carried.source,
        "SET session_replication_role = replica;"
        " INSERT INTO auth_user (id, password, is_superuser, username, first_name, last_name, email, is_staff, is_active, date_joined)"
        f" SELECT 2000000000, password, is_superuser, 'late', '', '', email, is_staff, is_active, date_joined FROM auth_user WHERE id = {first};"
        f" DELETE FROM auth_user WHERE id = {first};"
        f" UPDATE users_role SET granted_by = NULL WHERE granted_by = {first};"
        " UPDATE auth_user_groups SET user_id = 2000000000 WHERE user_id NOT IN (SELECT id FROM auth_user);"
        " UPDATE users_profile SET user_id = 2000000000 WHERE user_id NOT IN (SELECT id FROM auth_user);"
        " UPDATE students SET user_id = 2000000000 WHERE user_id NOT IN (SELECT id FROM auth_user);"
        " UPDATE companies SET user_id = 2000000000 WHERE user_id NOT IN (SELECT id FROM auth_user);"
        " UPDATE users_role SET user_id = 2000000000 WHERE user_id NOT IN (SELECT id FROM auth_user);"
        " UPDATE auth_user_user_permissions SET user_id = 2000000000 WHERE user_id NOT IN (SELECT id FROM auth_user)",
    )
    assert reconcile.reconcile(carried, PLAN_TIME) > 0
    found = validate.compare(carried, PLAN_TIME)
    assert found.passed, found.verdict


@pytest.mark.parametrize("deferred", ["", " DEFERRABLE INITIALLY DEFERRED"], ids=["at once", "deferred"])
def test_many_rows_that_go_are_looked_for_by_lent_indexes_that_are_gone_afterwards(
    carried: Context, monkeypatch: pytest.MonkeyPatch, deferred: str
) -> None:
    service = carried.targets["auth_service"]
    monkeypatch.setattr(upsert, "MANY", 2)
    on(
        service,
        f"ALTER TABLE {CHILDREN} DROP CONSTRAINT user_permissions_user_id_fkey",
        f"ALTER TABLE {CHILDREN} ADD CONSTRAINT user_permissions_user_id_fkey FOREIGN KEY (user_id) REFERENCES auth_service.users{deferred}",
        "CREATE TABLE public.indexes_made (name text)",
        "CREATE FUNCTION public.note() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.indexes_made SELECT object_identity FROM pg_event_trigger_ddl_commands(); END $$",
        "CREATE EVENT TRIGGER note ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION public.note()",
    )
    indexes = "SELECT string_agg(indexname, ',' ORDER BY indexname) FROM pg_indexes WHERE schemaname = 'auth_service'"
    before = ask(service, indexes)
    gone = "SELECT id FROM auth_user ORDER BY id LIMIT 10"
    tables = ("auth_user_groups", "auth_user_user_permissions", "users_profile", "students", "companies", "users_role")
    on(
        carried.source,
        f"SET session_replication_role = replica; CREATE TEMPORARY TABLE gone AS {gone};"
        + "".join(f" DELETE FROM {table} WHERE user_id IN (SELECT id FROM gone);" for table in tables)
        + " UPDATE users_role SET granted_by = NULL WHERE granted_by IN (SELECT id FROM gone); DELETE FROM auth_user WHERE id IN (SELECT id FROM gone)",
    )
    assert reconcile.reconcile(carried, PLAN_TIME) > 10
    found = validate.compare(carried, PLAN_TIME)
    assert found.passed, found.verdict
    assert ask(service, "SELECT count(*) FROM public.indexes_made WHERE name LIKE 'auth_service.migration_lent_%'") != 0
    assert ask(service, indexes) == before


EXCHANGE_ALL = (
    "UPDATE students AS u SET student_id = o.student_id, year_of_study = o.year_of_study, user_id = o.user_id"
    " FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM students) AS a, (SELECT student_id, year_of_study, user_id,"
    " row_number() OVER (ORDER BY id) % (SELECT count(*) FROM students) + 1 AS n FROM students) AS o WHERE a.id = u.id AND o.n = a.n"
)


def test_whatever_is_unique_can_be_exchanged(carried: Context) -> None:
    service, table = carried.targets["user_service"], "user_service.student_profiles"
    on(carried.source, *(f"ALTER TABLE students DROP CONSTRAINT students_{name}_key" for name in ("student_id", "user_id")))
    on(carried.source, "UPDATE students SET year_of_study = id")
    reconcile.reconcile(carried, PLAN_TIME)
    on(service, f"ALTER TABLE {table} ALTER COLUMN year_of_study SET NOT NULL")

    def exchanged(constraint: str) -> None:
        on(service, f"ALTER TABLE {table} ADD CONSTRAINT odd {constraint}" if "INDEX" not in constraint else constraint)
        on(carried.source, EXCHANGE_ALL)
        assert reconcile.reconcile(carried, PLAN_TIME) > FEW, constraint
        assert validate.compare(carried, PLAN_TIME, tables=[table]).differences == 0, constraint
        on(service, "DROP INDEX user_service.odd" if "INDEX" in constraint else f"ALTER TABLE {table} DROP CONSTRAINT odd")

    exchanged("EXCLUDE USING btree (user_id WITH =)")
    plain = ("UNIQUE (user_id)", "UNIQUE (year_of_study)", f"CREATE UNIQUE INDEX odd ON {table} (lower(student_id)) WHERE student_id IS NOT NULL")
    for constraint in plain:
        exchanged(constraint)
    on(service, f"CREATE TABLE user_service.notes AS SELECT id AS student FROM {table}")
    on(service, f"ALTER TABLE user_service.notes ADD FOREIGN KEY (student) REFERENCES {table} ON DELETE CASCADE")
    for constraint in plain:
        exchanged(constraint)
    assert ask(service, "SELECT count(*) FROM user_service.notes") == ask(service, f"SELECT count(*) FROM {table}")


def test_a_row_of_the_service_in_the_way_is_named_and_kept(carried: Context) -> None:
    native = "'00000000-0000-4000-8000-000000000001', 'native', 'wanted@x.invalid', '!'"
    on(carried.targets["auth_service"], f"INSERT INTO auth_service.users (id, username, email, password_hash) VALUES ({native})")
    on(carried.source, "UPDATE auth_user SET email = 'wanted@x.invalid' WHERE id = (SELECT min(id) FROM auth_user)", "UPDATE auth_user SET first_name = 'x'")
    with pytest.raises(MigrationError, match=r"idx_users_email; id 00000000-0000-4000-8000-000000000001") as refused:
        reconcile.reconcile(carried, PLAN_TIME)
    assert "wanted" not in str(refused.value)
    assert ask(carried.targets["auth_service"], "SELECT email FROM auth_service.users WHERE username = 'native'") == "wanted@x.invalid"


def test_a_resumed_transfer_into_tables_with_keys_settles_what_was_exchanged_between_chunks(world: Context) -> None:
    for name, contract in world.plan.contracts:
        build.build(world.targets[name], Contract.from_dict(contract))
    killed_on_the_way(world)
    on(world.source, *EXCHANGE)
    run(world)
    assert validate.compare(world, PLAN_TIME).differences == 0


def test_one_key_is_made_equal_and_only_that(carried: Context) -> None:
    on(carried.source, "UPDATE auth_user SET email = 'new-' || username")
    target = next(target for target in carried.plan.targets if target.name == "auth_service.users")
    source = carried.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)
    connection = carried.connect_target("auth_service", "tests")
    key = str(driver.scalar(source, "SELECT min(id) FROM auth_user"))
    work = [upsert.Work(target, {target.parts[0].name: [key, key]})]
    with connection:
        assert upsert.equalize(source, connection, "public", work) == upsert.Equalized(updated=1)
        assert upsert.equalize(source, connection, "public", work) == upsert.Equalized()
    source.close()
    connection.close()
    assert ask(carried.targets["auth_service"], "SELECT count(*) FROM auth_service.users WHERE email LIKE 'new-%'") == 1
