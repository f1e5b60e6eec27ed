# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repair that is killed, that comes late or that meets odd rows loses nothing and writes nothing that is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.repair import reconcile, repair
from ansible.module_utils.migration.upsert import upsert
from ansible.module_utils.migration.validate import run as validate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.database.test_repair import compare, damaged
from tests.database.test_verify import ask, lines, run
from tests.mutation import world as w

ROLES = "user_service.roles"


class Killed(Exception):
    """Stands for a kill: the connections die with their transactions."""


@pytest.fixture
def world(postgres: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    return w.cloned_world(postgres, databases)


def planned(world: w.World) -> repair.Repair:
    return repair.plan_repair(compare(world).to_dict(), after_cutover=False)


def mend(world: w.World, plan: repair.Repair) -> upsert.Equalized:
    return repair.apply_repair(world.context, w.PLAN_TIME, plan)


def test_doubled_rows_outlive_a_kill_and_become_one(world: w.World, monkeypatch: pytest.MonkeyPatch) -> None:
    service = world.targets["user_service"]
    run(service, f"ALTER TABLE {ROLES} DROP CONSTRAINT roles_pkey")
    run(service, f"INSERT INTO {ROLES} SELECT * FROM {ROLES} ORDER BY id LIMIT 3", f"INSERT INTO {ROLES} SELECT * FROM {ROLES} ORDER BY id LIMIT 1")
    run(service, f"UPDATE {ROLES} SET role_type = 'other' WHERE ctid = (SELECT max(ctid) FROM {ROLES})")
    rows = ask(service, f"SELECT count(*) FROM {ROLES}")
    plan = planned(world)
    assert {finding.kind for finding in plan.findings} == {"duplicate"}

    def dies(*_: Any) -> upsert.Equalized:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(reconcile, "equalize", dies)
        with pytest.raises(Killed):
            mend(world, plan)
    assert ask(service, f"SELECT count(*) FROM {ROLES}") == rows
    mend(world, plan)
    assert compare(world).passed
    assert mend(world, plan).rows == 0


def test_a_repair_that_was_killed_between_two_databases_is_run_again(world: w.World, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = repair.plan_repair(damaged(world).to_dict(), after_cutover=False)
    real, services = reconcile.equalize, []

    def dies_in_the_second(source: Any, connection: Any, schema: str, work: Any) -> upsert.Equalized:
        services.append(work[0].target.service)
        if len(services) > 1:
            real(source, connection, schema, work)
            raise Killed
        return real(source, connection, schema, work)

    with monkeypatch.context() as patch:
        patch.setattr(reconcile, "equalize", dies_in_the_second)
        with pytest.raises(Killed):
            mend(world, plan)
    left = {finding.target.split(".")[0] for finding in compare(world).findings}
    assert left == {services[1]}
    mend(world, plan)
    assert compare(world).passed


def test_values_that_two_users_have_exchanged_are_given_back(world: w.World) -> None:
    service = world.targets["auth_service"]
    two = [ask(service, f"SELECT id FROM auth_service.users ORDER BY id OFFSET {n} LIMIT 1") for n in (5, 6)]
    for column in ("username", "email"):
        one, other = (ask(service, f"SELECT {column} FROM auth_service.users WHERE id = '{id_}'").replace("'", "''") for id_ in two)
        run(
            service,
            f"UPDATE auth_service.users SET {column} = 'spare' WHERE id = '{two[0]}'",
            f"UPDATE auth_service.users SET {column} = '{one}' WHERE id = '{two[1]}'",
            f"UPDATE auth_service.users SET {column} = '{other}' WHERE id = '{two[0]}'",
        )
    plan = planned(world)
    assert {(finding.id, finding.columns) for finding in plan.findings} == {(id_, ("username", "email")) for id_ in two}
    mend(world, plan)
    assert compare(world).passed


def test_old_findings_bring_what_the_monolith_has_now(world: w.World) -> None:
    staff = ask(world.source, "SELECT min(id) FROM auth_user WHERE is_staff")
    run(
        world.source,
        f"UPDATE auth_user SET is_staff = false WHERE id = {staff}",
        "UPDATE users_profile SET city = 'then' WHERE id IN (SELECT id FROM users_profile ORDER BY id LIMIT 2)",
    )
    gone = ask(world.targets["user_service"], "SELECT min(id::text) FROM user_service.student_profiles")
    run(world.targets["user_service"], f"DELETE FROM user_service.student_profiles WHERE id = '{gone}'")
    plan = planned(world)
    assert sorted(finding.kind for finding in plan.findings) == ["different", "different", "extra", "missing"]
    key = next(finding.source_key for finding in plan.findings if finding.kind == "missing")
    run(
        world.source,
        f"UPDATE auth_user SET is_staff = true WHERE id = {staff}",
        "UPDATE users_profile SET city = 'now' WHERE id = (SELECT min(id) FROM users_profile)",
        "DELETE FROM users_profile WHERE id = (SELECT max(id) FROM users_profile WHERE city = 'then')",
        f"DELETE FROM students WHERE id = {key}",
    )
    mend(world, plan)
    found = compare(world)
    # A user without a profile of its own has one by its names: that row is new, and no finding named it.
    assert {(finding.part, finding.kind) for finding in found.findings} <= {("names", "missing")}, lines(found)
    assert ask(world.targets["user_service"], "SELECT count(*) FROM user_service.profiles WHERE city = 'now'") == "1"


def test_an_extra_row_whose_source_row_is_quarantined_still_goes(world: w.World) -> None:
    key = ask(world.source, "SELECT min(id) FROM students")
    reject = f"INSERT INTO migration.rejects (target, part, source_key, rule, reason) VALUES ('user_service.student_profiles', '', '{key}', 'blank', 'x')"
    run(world.targets["user_service"], reject)
    plan = planned(world)
    assert [finding.kind for finding in plan.findings] == ["extra"]
    assert mend(world, plan) == upsert.Equalized(deleted=1)
    assert compare(world).passed


def test_after_the_cutover_what_a_service_made_or_deleted_stays_as_it_is(world: w.World) -> None:
    service = world.targets["user_service"]
    run(service, f"INSERT INTO {ROLES} (user_id, role_type) SELECT user_id, 'own' FROM {ROLES} LIMIT 1")
    run(service, f"DELETE FROM {ROLES} WHERE id = (SELECT id FROM {ROLES} WHERE role_type <> 'own' ORDER BY id LIMIT 1)")
    run(service, f"UPDATE {ROLES} SET is_active = NOT is_active WHERE id = (SELECT id FROM {ROLES} WHERE role_type <> 'own' ORDER BY id LIMIT 1)")
    content = f"SELECT md5(string_agg(r::text, ',' ORDER BY r::text)) FROM {ROLES} AS r"
    before = ask(service, content)
    found = validate.compare(world.context, w.PLAN_TIME, options=validate.Options(settle_attempts=0, after_cutover=True)).to_dict()
    plan = repair.plan_repair(found, after_cutover=True)
    assert plan.findings == ()
    assert sorted(finding.kind for finding, _ in plan.left) == ["different", "missing", "service_row"]
    mend(world, plan)
    assert ask(service, content) == before
    assert mend(world, repair.plan_repair(found, after_cutover=True, insert_missing=True)) == upsert.Equalized(inserted=1)
