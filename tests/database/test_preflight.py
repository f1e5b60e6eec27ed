# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight on real databases: nothing is found in a clean monolith, everything in a dirty one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from ansible.module_utils.migration.checks import quarantine, source_catalog
from ansible.module_utils.migration.checks.findings import Finding
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan import mapping as m
from ansible.module_utils.migration.plan.compiler import compile_plan
from ansible.module_utils.migration.plan.mapping_files import read_mappings
from ansible.module_utils.migration.plan.model import Policy
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.preflight import run as preflight
from ansible.module_utils.migration.preflight import scan
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair import release
from ansible.module_utils.migration.schema import build, ddl
from ansible.module_utils.migration.schema.tables import SHOWN, plan_schema
from ansible.module_utils.migration.state.limits import Limits
from ansible.module_utils.migration.throttle.pacer import unhurried
from ansible.module_utils.migration.transfer import run as transfer
from ansible.module_utils.migration.validate import run as validate

from tests.conftest import execute
from tests.mutation.world import NAMESPACE, PLAN_TIME, PROJECT, SERVICES, fill, make_world, read_plan
from tests.one_table import one_table


@pytest.fixture
def context(databases: Callable[..., Endpoint]) -> Context:
    """A filled monolith, two empty services and an empty control database."""
    source = databases("monolith")
    targets = {service: databases(service) for service in SERVICES}
    fill(source, 300, seed=3)
    execute(source, "UPDATE users_role AS r SET granted_by = NULL WHERE NOT EXISTS (SELECT FROM auth_user AS u WHERE u.id = r.granted_by)")
    return Context(plan=read_plan(), source=source, targets=targets, control=databases("control"), namespace=NAMESPACE)


@pytest.fixture
def options(postgres: PostgresServer) -> preflight.Options:
    return preflight.Options(bin_dir=str(postgres.bin_dir), limits=unhurried().limits)


def found(report: preflight.Report, rule: str, column: str) -> Finding:
    """Return the one finding of a rule and a column."""
    matching = [item for item in report.findings if item.rule == rule and item.column == column]
    assert len(matching) == 1, [item for item in report.findings if item.level == "stop"]
    return matching[0]


def test_a_clean_monolith_passes(context: Context, options: preflight.Options) -> None:
    report = preflight.run(context, options, None)
    print("\n".join(str(i) for i in report.findings), report.seconds)
    assert [item for item in report.findings if item.level == "stop"] == []
    assert report.rows["auth_service.users", ""] > 300


DIRTY = {
    "users": """
        INSERT INTO auth_user (password, is_superuser, first_name, last_name, is_staff, is_active, date_joined, id, last_login, username, email)
        SELECT 'x', false, '', '', false, true, now(), * FROM (VALUES
          (9001, NULL::timestamptz, 'blank1', ''), (9002, NULL, 'blank2', '  '),
          (9003, NULL, 'twin1', 'twin@example.org'), (9004, NULL, 'twin2', 'twin@example.org'),
          (9005, 'infinity', 'CASED', 'Cased@example.org'), (9006, NULL, 'cased', 'cased@example.org')) AS v""",
    "permissions": """
        INSERT INTO auth_permission (content_type_id, id, name, codename)
        SELECT t.id, v.* FROM (SELECT min(id) AS id FROM django_content_type) AS t,
          (VALUES (9001, repeat('n', 101), 'long_name'), (9002, 'n', 'twice'), (9003, 'n', 'twice')) AS v;
        INSERT INTO auth_permission (id, name, content_type_id, codename) VALUES (9004, 'n', 999999, 'no_content_type')""",
    "groups": """
        INSERT INTO auth_group (id, name) VALUES (9001, repeat('g', 51));
        INSERT INTO auth_user_groups (user_id, group_id) VALUES (9003, 9001), (9003, 999999)""",
    "orphans": """
        INSERT INTO users_role (id, user_id, role_type, company_id, institution_id, is_active, granted_by, granted_at, created_at, updated_at)
        VALUES (900001, 999999, 'student', 888888, 777777, true, 666666, now(), now(), now());
        INSERT INTO auth_user_user_permissions (user_id, permission_id) VALUES (9003, 999999), (999999, 1)""",
    "dependants": """
        INSERT INTO users_profile (id, user_id, profile_type, is_public, created_at, updated_at) VALUES (900001, 9001, 'student', true, now(), now());
        INSERT INTO users_role (id, user_id, role_type, is_active, granted_by, granted_at, created_at, updated_at)
        VALUES (900002, 9003, 'student', true, 9004, now(), now(), now());
        INSERT INTO companies (id, user_id, company_name, is_verified, created_at, updated_at) VALUES (800001, 9004, 'c', true, now(), now());
        INSERT INTO users_role (id, user_id, role_type, is_active, company_id, granted_at, created_at, updated_at)
        VALUES (900003, 9003, 'student', true, 800001, now(), now(), now())""",
}


QUARANTINE = {
    "email": ("blank", "unique"),
    "name": ("length",),
    "codename": ("unique",),
    "role_type": ("length", "not_null"),
    **dict.fromkeys(("user_id", "permission_id", "group_id", "content_type_id", "company_id", "institution_id", "granted_by"), ("foreign_key",)),
}


def quarantining(context: Context) -> Context:
    """Return the context with every rule above quarantined."""
    targets = tuple(
        replace(target, policies=tuple(Policy(column, rule, "quarantine", None, "here") for column, rules in QUARANTINE.items() for rule in rules))
        if not target.bookkeeping
        else target
        for target in context.plan.targets
    )
    return replace(context, plan=replace(context.plan, targets=targets))


def test_quarantine_takes_the_row_and_all_that_depends_on_it(context: Context, options: preflight.Options) -> None:
    execute(context.source, *DIRTY.values())
    context = quarantining(context)
    report = preflight.run(context, options, None)
    assert [item for item in report.findings if item.level == "stop"] == []
    kept = quarantine.compute(context, plan_time=PLAN_TIME)
    by_target: dict[str, dict[str, str]] = {}
    for item in kept:
        by_target.setdefault(item.target, {})[item.source_key] = item.rule
    assert by_target["auth_service.users"] == {"9001": "blank", "9002": "blank", "9004": "unique"}
    assert by_target["auth_service.permissions"] == {"9001": "length", "9003": "unique", "9004": "foreign_key"}
    assert by_target["auth_service.user_permissions"] == {"[9003, 999999]": "foreign_key", "[999999, 1]": "foreign_key"}
    assert by_target["user_service.roles"] == {
        "[9003, 9001]": "length",
        "[9003, 999999]": "not_null",
        "900001": "foreign_key",
        **dict.fromkeys(("900002", "900003"), "dependant"),
    }
    assert by_target["user_service.profiles"] == {"900001": "dependant"}
    assert by_target["user_service.company_profiles"] == {"800001": "dependant"}
    assert {key for key, rule in by_target["auth_service.migration.id_map"].items()} == {"9001", "9002", "9003", "9004"}


def test_above_the_cap_nothing_is_quarantined(context: Context, options: preflight.Options) -> None:
    execute(context.source, DIRTY["users"])
    report = preflight.run(quarantining(context), replace(options, quarantine_cap=2), None)
    assert found(report, "quarantine", "").level == "stop"


def test_rows_of_the_migration_in_a_target_are_ours_and_others_may_collide(databases: Callable[..., Endpoint], options: preflight.Options) -> None:
    world = make_world(databases, users=200)
    execute(world.source, "UPDATE users_role AS r SET granted_by = NULL WHERE NOT EXISTS (SELECT FROM auth_user AS u WHERE u.id = r.granted_by)")
    report = preflight.run(world.context, options, None)
    assert [item for item in report.findings if item.level == "stop" or item.rule == "present"] == []
    execute(
        world.targets["auth_service"],
        "INSERT INTO auth_service.users (username, email, password_hash) VALUES ('somebody new', 'new@example.org', 'x')",
    )
    execute(world.source, "UPDATE auth_user SET email = 'new@example.org' WHERE id = (SELECT max(id) FROM auth_user)")
    report = preflight.run(world.context, options, None)
    assert found(report, "present", "").count == 1
    assert found(report, "collision", "email").count == 1


def test_quarantine_is_carried_to_a_validated_end_and_a_corrected_row_comes_in_later(context: Context) -> None:
    execute(context.source, *DIRTY.values())
    context = quarantining(context)
    for name, data in context.plan.contracts:
        with closing(ddl.connect(context.targets[name], Contract.from_dict(data))) as connection:
            ddl.apply(connection, plan_schema(connection, Contract.from_dict(data)))
    free = Limits(cpu_percent=0, memory_percent=0, disk_percent=0)
    transfer.run(context, PLAN_TIME, "run", transfer.Options(runner="runner1", limits=free), Progress(None), lambda _context, _time: 0)
    for name, data in context.plan.contracts:
        build.build(context.targets[name], Contract.from_dict(data))
    outcome = validate.compare(context, PLAN_TIME)
    assert outcome.differences == 0
    assert sum(table.rejected for table in outcome.tables.values()) == len(quarantine.compute(context, plan_time=PLAN_TIME))
    before = len(quarantine.compute(context, plan_time=PLAN_TIME))

    assert release.plan_release(context, PLAN_TIME).rows == ()
    execute(context.source, "UPDATE auth_user SET email = 'no longer blank' WHERE id = 9001", "UPDATE auth_permission SET name = 'short' WHERE id = 9001")
    planned = release.plan_release(context, PLAN_TIME)
    assert planned.by_table["auth_service.users"] == planned.by_table["auth_service.permissions"] == 1
    assert validate.compare(context, PLAN_TIME).differences == 0  # planning wrote nothing
    release.apply_release(context, PLAN_TIME, planned)
    outcome = validate.compare(context, PLAN_TIME)
    assert outcome.differences == 0
    assert sum(table.rejected for table in outcome.tables.values()) == before - len(planned.rows)
    assert release.plan_release(context, PLAN_TIME).rows == ()


def stopping(report: preflight.Report) -> list[tuple[str, str, str]]:
    """Return rule, column and message of what stops, the server's own readiness aside."""
    return [(item.rule, item.column, item.message) for item in report.findings if item.level == "stop" and "pg_dump" not in item.message]


def remapped(context: Context, folder: Path, path: str, old: str, new: str) -> Context:
    """Return the context with one text of one mapping changed."""
    file = Path(copytree(PROJECT / "mappings", folder / "mappings")) / path
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    contracts = {name: Contract.from_dict(data) for name, data in context.plan.contracts}
    plan = compile_plan(read_mappings(folder / "mappings", SERVICES), contracts, ids.fingerprint(NAMESPACE))
    return replace(context, plan=plan)


def line_of(path: str, text: str) -> int:
    """Return the number of the first line of a mapping that holds a text."""
    lines = (PROJECT / "mappings" / path).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_a_table_that_may_not_be_read_is_said_once_with_its_grant(
    context: Context, options: preflight.Options, databases: Callable[..., Endpoint]
) -> None:
    source = databases("monolith", role=True)
    fill(source, 50, seed=3)
    execute(source, "UPDATE users_role SET granted_by = NULL", "REVOKE SELECT ON users_profile FROM CURRENT_USER")
    report = preflight.run(replace(context, source=source), options, None)
    ((rule, _, message),) = stopping(report)
    assert (rule, message.partition(" cannot be read")[0]) == ("privilege", "public.users_profile")
    assert any(item.next_step == f'GRANT SELECT ON "public"."users_profile" TO "{source.user}"' for item in report.findings)


def test_a_table_of_which_some_columns_may_be_read_asks_for_the_grant_once(
    context: Context, options: preflight.Options, databases: Callable[..., Endpoint]
) -> None:
    source = databases("monolith", role=True)
    fill(source, 50, seed=3)
    execute(source, "UPDATE users_role SET granted_by = NULL", "REVOKE SELECT ON companies FROM CURRENT_USER", "GRANT SELECT (id) ON companies TO CURRENT_USER")
    report = preflight.run(replace(context, source=source), options, None)
    found = [item for item in report.findings if item.level == "stop" and item.target == "user_service.company_profiles"]
    assert [(item.rule, item.next_step) for item in found] == [("privilege", f'GRANT SELECT ON "public"."companies" TO "{source.user}"')]
    assert all(item.rule == "privilege" for item in report.findings if item.level == "stop")


def test_a_renamed_column_is_said_by_coverage_alone(context: Context, options: preflight.Options) -> None:
    execute(context.source, "ALTER TABLE users_profile RENAME phone TO phone_number")
    found = stopping(preflight.run(context, options, None))
    assert found == [
        ("coverage", "phone", "public.users_profile has no column phone"),
        ("coverage", "phone_number", "public.users_profile.phone_number is read by no mapping and not in 'dropped'"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("source: auth_user", "source: auth_usr", ("coverage", "", "the source has no table public.auth_usr (did you mean auth_user?)")),
        ("email: email", "email: emial", ("coverage", "emial", "public.auth_user has no column emial (did you mean email?)")),
        ("NOT is_superuser", "NOT is_supruser", ("coverage", "is_supruser", "public.auth_user has no column is_supruser (did you mean is_superuser?)")),
        ('{sql: "NOT is_superuser"}', "{value: maybe}", ("type", "is_verified", "'maybe' is no boolean")),
    ],
)
def test_a_slip_in_a_mapping_is_one_finding(
    context: Context, options: preflight.Options, tmp_path: Path, old: str, new: str, expected: tuple[str, str, str]
) -> None:
    path = "auth_service/users.yml"
    report = preflight.run(remapped(context, tmp_path, path, old, new), options, None)
    assert stopping(report) == [expected]
    place = next(item.place for item in report.findings if item.message == expected[2])
    assert place == f"{tmp_path}/mappings/{path}" + (f":{line_of(path, old)}" if expected[1] else "")


def test_a_database_without_any_mapped_table_is_one_finding(context: Context, options: preflight.Options, databases: Callable[..., Endpoint]) -> None:
    source = databases("another")
    report = preflight.run(replace(context, source=source), options, None)
    (finding,) = [item for item in report.findings if item.level == "stop"]
    assert finding.message.startswith(f"database {source.dbname} on {source.name} has none of the ")
    assert finding.next_step == f"check login_db and source_schema in host_vars/{source.name}"


def test_a_table_of_another_make_is_named_by_three_differences_and_their_count(context: Context, options: preflight.Options) -> None:
    execute(context.targets["user_service"], "CREATE SCHEMA user_service", "CREATE TABLE user_service.profiles (id uuid)")
    report = preflight.run(context, options, None)
    (finding,) = [item for item in report.findings if item.level == "stop"]
    assert finding.rule == "drift"
    assert finding.message.count("the contract (roles/schema/files/user_service/") == SHOWN
    assert finding.message.endswith(" differences")
    assert str(PROJECT) not in finding.message


@pytest.mark.parametrize(
    ("policies", "level"),
    [
        ((), "warn"),
        ((m.Policy("c0", "infinity", "block", None, "here"),), "stop"),
        ((m.Policy("c0", "infinity", "quarantine", None, "here"),), "warn"),
        ((m.Policy("c0", "infinity", "placeholder", "NULL", "here"),), "info"),
    ],
    ids=["none", "block", "quarantine", "placeholder"],
)
def test_infinity_is_judged_as_the_policy_says(database: Endpoint, policies: tuple[m.Policy, ...], level: str) -> None:
    made = "CREATE SCHEMA svc; CREATE TYPE svc.mood AS ENUM ('red'); CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 timestamp, c1 svc.mood);"
    given = {1: m.Column("c1", "svc/things.yml:1", value="blue")}
    context = one_table(database, database, made, 2, given=given, policies=policies)
    execute(database, "CREATE TABLE rows (id bigint PRIMARY KEY, v0 timestamptz)", "INSERT INTO rows VALUES (1, now()), (2, '-infinity')")
    with closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as source:
        findings = scan.run(source, context.plan, source_catalog.read(source, "public")).findings
    assert [(item.level, item.keys) for item in findings if item.rule == "infinity"] == [(level, ("2",))]
    assert [(item.level, item.message, item.count) for item in findings if item.column == "c1"] == [("stop", "is no label of svc.mood", 2)]


def test_a_foreign_key_through_another_tables_ids_stops(context: Context, options: preflight.Options, tmp_path: Path) -> None:
    wrong = remapped(context, tmp_path, "auth_service/user_permissions.yml", "{from: permission_id, map: permissions}", "{from: permission_id, map: users}")
    messages = [message for rule, _, message in stopping(preflight.run(wrong, options, None)) if rule == "foreign_key"]
    assert "refers to auth_service.permissions in the schema SQL, but goes through the id map 'users'" in messages
