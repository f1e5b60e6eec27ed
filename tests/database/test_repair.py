# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Repair mends what a validation found, and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.repair import release, repair
from ansible.module_utils.migration.state import control
from ansible.module_utils.migration.validate import run as validate
from ansible.modules import migration_repair

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.mutation import world as w

QUICK = validate.Options(settle_attempts=0)
DAMAGE = {
    "auth_service": (
        "UPDATE auth_service.users SET email = email || 'x' WHERE username = 'ada'",
        "DELETE FROM auth_service.user_permissions WHERE id = (SELECT min(id::text)::uuid FROM auth_service.user_permissions)",
        "UPDATE migration.id_map SET id = gen_random_uuid() WHERE entity = 'users' AND source_key = '1'",
        "UPDATE migration.groups SET permissions = '[]' WHERE name = 'teachers'",
    ),
    "user_service": (
        "UPDATE user_service.roles SET id = gen_random_uuid() WHERE id = (SELECT min(id::text)::uuid FROM user_service.roles)",
        "INSERT INTO user_service.profiles (user_id, profile_type) SELECT user_id, 'x' FROM user_service.profiles LIMIT 1",
        "UPDATE user_service.student_profiles SET student_id = student_id || '-old' WHERE student_id LIKE '%9'",
    ),
}


def run(endpoint: Endpoint, *statements: str) -> None:
    connection = connect(endpoint, application_name="tests", autocommit=True)
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


def one(endpoint: Endpoint, statement: str) -> str:
    connection = connect(endpoint, application_name="tests", autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute(statement)
        value = str(cursor.fetchone()[0])
    connection.close()
    return value


@pytest.fixture
def world(postgres: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    return w.cloned_world(postgres, databases)


def compare(world: w.World) -> validate.Verification:
    return validate.compare(world.context, w.PLAN_TIME, options=QUICK)


def damaged(world: w.World) -> validate.Verification:
    for service, statements in DAMAGE.items():
        run(world.targets[service], *statements)
    return compare(world)


def test_repair_mends_every_finding_and_the_next_validation_is_clean(world: w.World) -> None:
    found = damaged(world)
    assert found.differences >= 9
    planned = repair.plan_repair(found.to_dict(), after_cutover=False)
    assert len(planned.findings) == found.differences
    done = repair.apply_repair(world.context, w.PLAN_TIME, planned)
    assert done.inserted >= 2
    assert done.updated >= 2
    assert done.deleted >= 2
    after = compare(world)
    assert after.passed, [finding.line for finding in after.findings]
    assert repair.apply_repair(world.context, w.PLAN_TIME, planned).rows == 0


def test_the_plan_shows_keys_and_columns_but_no_values(world: w.World) -> None:
    text = "\n".join(repair.plan_repair(damaged(world).to_dict(), after_cutover=False).lines)
    assert "update auth_service.users key 1 id" in text
    assert "columns email" in text
    assert "delete user_service.profiles id" in text
    assert "example.org" not in text
    assert "-old" not in text


def test_a_cap_stops_a_repair_of_too_many_rows(world: w.World) -> None:
    planned = repair.plan_repair(damaged(world).to_dict(), after_cutover=False)
    repair.require_cap(planned, len(planned.findings))
    many = len(planned.findings)
    told = rf"would change {many} rows \(auth_service\.migration\.groups 1, .*repair_max_rows allows 3.*-e repair_max_rows={many}"
    with pytest.raises(MigrationError, match=told):
        repair.require_cap(planned, 3)


def test_after_the_cutover_only_missing_rows_are_written_and_only_when_asked_for(world: w.World) -> None:
    found = validate.compare(world.context, w.PLAN_TIME, options=validate.Options(settle_attempts=0, after_cutover=True))
    assert found.passed
    damaged(world)
    found = validate.compare(world.context, w.PLAN_TIME, options=validate.Options(settle_attempts=0, after_cutover=True))
    asked_nothing = repair.plan_repair(found.to_dict(), after_cutover=True)
    assert asked_nothing.findings == ()
    assert any("may have deleted it since the cutover; -e repair_insert_missing=true" in why for _, why in asked_nothing.left)
    planned = repair.plan_repair(found.to_dict(), after_cutover=True, insert_missing=True)
    assert {finding.kind for finding in planned.findings} == {"missing"}
    assert {finding.kind for finding, _ in planned.left} == {"different", "service_row"}
    repair.apply_repair(world.context, w.PLAN_TIME, planned)
    left = compare(world)
    assert {finding.kind for finding in left.findings} == {"different", "extra"}, [finding.line for finding in left.findings]


def test_doubled_rows_become_one(world: w.World) -> None:
    run(world.targets["auth_service"], "INSERT INTO migration.groups SELECT * FROM migration.groups WHERE name = 'teachers'")
    found = compare(world)
    assert [finding.kind for finding in found.findings] == ["duplicate"]
    planned = repair.plan_repair(found.to_dict(), after_cutover=False)
    repair.apply_repair(world.context, w.PLAN_TIME, planned)
    assert compare(world).passed
    assert repair.apply_repair(world.context, w.PLAN_TIME, planned).rows == 0


def test_a_row_that_is_set_aside_for_no_reason_is_not_deleted_before_it_is_released(world: w.World) -> None:
    key = one(world.source, "SELECT min(id) FROM students")
    refuse = f"INSERT INTO migration.rejects (target, part, source_key, rule, reason) VALUES ('user_service.student_profiles', '', '{key}', 'blank', 'x')"
    run(world.targets["user_service"], refuse)
    found = compare(world)
    assert [(finding.target, finding.kind) for finding in found.findings] == [("user_service.student_profiles", "extra")]
    checked = {"quarantine": release.plan_release(world.context, w.PLAN_TIME).to_dict()}
    planned = repair.plan_repair(found.to_dict() | checked, after_cutover=False)
    assert planned.findings == ()
    assert ["playbooks/release.yml" in why for _, why in planned.left] == [True]
    release.apply_release(world.context, w.PLAN_TIME, release.plan_release(world.context, w.PLAN_TIME))
    assert compare(world).passed


@pytest.fixture
def last(world: w.World, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Callable[..., dict[str, Any]]]:
    """Record a failed validation and return the module that repairs after it."""
    monkeypatch.setattr(Context, "from_params", lambda params, check: dataclasses.replace(world.context, check=check))

    def record(validation: dict[str, Any]) -> Callable[..., dict[str, Any]]:
        with contextlib.closing(control.connect(world.context.control)) as records:
            control.plan(records, world.plan.digest, world.plan.fingerprint)
            opened = control.begin(records, world.plan.digest)
            driver.rows(records, "UPDATE migration.migrations SET plan_time = %s", (w.PLAN_TIME,))
            control.record(records, "validate", "failed", validation, migration=opened, plan_digest=world.plan.digest)
        return lambda check, most: migration_repair.run(SimpleNamespace(params={"max_rows": most, "insert_missing": False}, check_mode=check))

    return record


def test_a_dry_run_shows_what_the_cap_would_refuse(world: w.World, last: Callable[[dict[str, Any]], Callable[..., dict[str, Any]]]) -> None:
    found = damaged(world)
    mend = last(found.to_dict())
    foreseen = mend(True, 1)
    assert foreseen["changed"]
    assert len(foreseen["diff"]["after"].splitlines()) == found.differences
    assert "; would refuse: repair would change" in foreseen["msg"]
    with pytest.raises(MigrationError, match="repair_max_rows allows 1"):
        mend(False, 1)
    assert not compare(world).passed
    assert "would refuse" not in mend(True, found.differences)["msg"]
    assert mend(False, found.differences)["changed"]
    assert compare(world).passed


def test_where_no_row_differs_it_says_what_helps_instead(world: w.World, last: Callable[[dict[str, Any]], Callable[..., dict[str, Any]]]) -> None:
    mend = last(compare(world).to_dict() | {"quarantine": {"passed": False, "verdict": "2 fit", "fit": 2, "rows": []}})
    for check in (True, False):
        said = mend(check, 1)
        assert not said["changed"]
        assert said["msg"].startswith("nothing to repair: no row differs, but the last validation failed. Next: playbooks/release.yml (")


def test_findings_that_were_cut_off_are_not_worked_from_but_whole_tables_are_settled(
    world: w.World, last: Callable[[dict[str, Any]], Callable[..., dict[str, Any]]]
) -> None:
    """Many users came after the copy, others went and two exchanged a unique value; the few findings that are kept refer to rows beyond them."""
    run(
        world.source,
        "INSERT INTO auth_user (id, password, is_superuser, username, first_name, last_name, email, is_staff, is_active, date_joined)"
        " SELECT 2000000000 + n, 'pbkdf2_sha256$1$a$b', false, 'late' || n, '', '', 'late' || n || '@example.org', false, true, '2025-01-01'"
        " FROM generate_series(1, 300) n",
        "INSERT INTO users_profile (id, user_id, profile_type, is_public, created_at, updated_at)"
        " SELECT 2000000000 + n, 2000000000 + n, 'student', true, '2025-01-01', '2025-01-01' FROM generate_series(1, 300) n",
        "CREATE TEMPORARY TABLE gone AS SELECT id FROM auth_user WHERE id > 1 ORDER BY id LIMIT 2",
        *(f"DELETE FROM {table} WHERE user_id IN (SELECT id FROM gone)" for table in ("users_profile", "students", "companies", "users_role")),
        *(f"DELETE FROM auth_user_{table} WHERE user_id IN (SELECT id FROM gone)" for table in ("groups", "user_permissions")),
        "UPDATE users_role SET granted_by = NULL WHERE granted_by IN (SELECT id FROM gone)",
        "DELETE FROM auth_user WHERE id IN (SELECT id FROM gone)",
        "CREATE TEMPORARY TABLE old AS SELECT id, username FROM auth_user WHERE id > 1 ORDER BY id LIMIT 3",
        "UPDATE auth_user u SET username = '~' || u.id FROM old WHERE old.id = u.id",
        "UPDATE auth_user u SET username = coalesce((SELECT o.username FROM old o WHERE o.id < u.id ORDER BY o.id DESC LIMIT 1),"
        " (SELECT o.username FROM old o ORDER BY o.id DESC LIMIT 1)) FROM old WHERE old.id = u.id",
    )
    run(world.targets["user_service"], *doubled())
    found = validate.compare(world.context, w.PLAN_TIME, options=validate.Options(settle_attempts=0, findings_kept=5))
    planned = repair.plan_repair(found.to_dict(), after_cutover=False)
    assert planned.unnamed == found.differences - 5
    assert planned.rows == found.differences
    assert any("delete" in words for words in planned.by_table.values())
    mend = last(found.to_dict())
    assert "would refuse: repair would change" in mend(True, 5)["msg"]
    with pytest.raises(MigrationError, match=f"-e repair_max_rows={found.differences}"):
        mend(False, 5)
    run(world.source, "UPDATE auth_user SET email = email || '.new'")
    with pytest.raises(MigrationError, match="repair_max_rows allows"):  # what it finds now is what is counted
        mend(False, found.differences)
    assert "whole tables anew, parents first" in mend(False, found.differences + 200)["msg"]
    after = compare(world)
    assert after.passed, [finding.line for finding in after.findings]


def doubled() -> tuple[str, ...]:
    return ("INSERT INTO user_service.profiles (user_id, profile_type) SELECT user_id, 'x' FROM user_service.profiles LIMIT 1",)


def test_the_services_own_rows_outlive_a_settling_of_whole_tables(world: w.World) -> None:
    run(world.targets["user_service"], "UPDATE user_service.profiles SET is_public = NOT is_public", *doubled())
    options = validate.Options(settle_attempts=0, findings_kept=5, after_cutover=True)
    found = validate.compare(world.context, w.PLAN_TIME, options=options)
    planned = repair.plan_repair(found.to_dict() | {"rows_of_services": "apart"}, after_cutover=False)
    assert planned.whole == ("user_service.profiles",)
    assert repair.apply_repair(world.context, w.PLAN_TIME, planned).deleted == 0
    assert validate.compare(world.context, w.PLAN_TIME, options=options).passed
    run(world.targets["user_service"], "UPDATE user_service.profiles SET is_public = NOT is_public")
    owned = validate.compare(world.context, w.PLAN_TIME, options=options).to_dict()
    assert not repair.plan_repair(owned, after_cutover=True, insert_missing=True).rows


def test_an_id_under_a_wrong_key_is_mended_by_one_repair(world: w.World) -> None:
    run(world.targets["auth_service"], "UPDATE migration.id_map SET source_key = source_key || ' ' WHERE entity = 'users' AND source_key = '1'")
    run(world.targets["user_service"], "UPDATE migration.id_map SET entity = '' WHERE source_key = (SELECT min(source_key) FROM migration.id_map)")
    found = compare(world)
    assert {(finding.kind, finding.columns) for finding in found.findings} == {("different", ("source_key",)), ("different", ("entity",))}
    planned = repair.plan_repair(found.to_dict(), after_cutover=False)
    repair.apply_repair(world.context, w.PLAN_TIME, planned)
    after = compare(world)
    assert after.passed, [finding.line for finding in after.findings]


def test_rows_without_an_id_are_left_to_a_person(world: w.World) -> None:
    groups = "INSERT INTO migration.groups SELECT NULL, name, permissions FROM migration.groups LIMIT 2"
    run(world.targets["auth_service"], "ALTER TABLE migration.groups ALTER id DROP NOT NULL", groups)
    planned = repair.plan_repair(compare(world).to_dict(), after_cutover=False)
    assert planned.findings == ()
    assert [why for _, why in planned.left] == ["it has no id to find it by; delete it by hand"] * 2
