# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A monolith with every violation: each is named, and each policy is carried to a validated end."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from ansible.module_utils.migration.checks import quarantine, row_accounting, source_catalog
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.contract.parse import parse_contract
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan.compiler import compile_plan
from ansible.module_utils.migration.plan.mapping_files import read_mappings
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.preflight import run as preflight
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.schema import build, ddl
from ansible.module_utils.migration.schema.tables import plan_schema
from ansible.module_utils.migration.throttle.pacer import unhurried
from ansible.module_utils.migration.transfer import run as transfer
from ansible.module_utils.migration.validate import run as validate

from tests.conftest import execute
from tests.mutation.world import MONOLITH, NAMESPACE, PLAN_TIME, PROJECT, SERVICES

# The services' own SQL, with an enum, a domain and a CHECK more.
STRICTER = (
    ("CREATE TABLE user_service.profiles", "CREATE TYPE user_service.kind AS ENUM ('student', 'company', 'institution', 'individual');\n"
     "CREATE DOMAIN user_service.grade AS numeric(3,2) CHECK (VALUE <= 5);\nCREATE TABLE user_service.profiles"),
    ("profile_type VARCHAR(20) NOT NULL", "profile_type user_service.kind NOT NULL"),
    ("gpa DECIMAL(3,2)", "gpa user_service.grade"),
    ("founded_year INTEGER", "founded_year INTEGER CHECK (founded_year > 1500)"),
)  # fmt: skip

# A monolith whose database never looked at encodings, and whose tables lost what Django once declared.
LOOSER = """
ALTER TABLE auth_user DROP CONSTRAINT auth_user_username_key;
ALTER TABLE students ALTER gpa TYPE numeric, ALTER year_of_study TYPE bigint, ALTER skills TYPE json, ALTER interests TYPE text;
ALTER TABLE students DROP CONSTRAINT students_student_id_key, DROP CONSTRAINT students_user_id_key, ALTER student_id TYPE varchar(90);
ALTER TABLE companies ALTER company_name DROP NOT NULL, DROP CONSTRAINT companies_user_id_key;
ALTER TABLE users_profile ALTER phone TYPE text, DROP CONSTRAINT users_profile_user_id_key;
ALTER TABLE users_role ALTER expires_at TYPE date
"""
ROWS = """
INSERT INTO django_content_type VALUES (1, 'auth', 'user'), (2, 'auth', 'nobody');
INSERT INTO auth_permission (id, content_type_id, name, codename) VALUES (1, 1, 'Can add', 'add_user'), (9001, 1, repeat('n', 101), 'long_name'),
  (9002, 1, 'n', 'twice'), (9003, 1, 'n', 'twice'), (9004, 999999, 'n', 'no_content_type');
INSERT INTO auth_group VALUES (1, 'staff'), (2, 'idle'), (9001, repeat('g', 51));
INSERT INTO auth_group_permissions (group_id, permission_id) VALUES (1, 1);
INSERT INTO auth_user (password, is_superuser, first_name, last_name, is_staff, is_active, date_joined, id, username, email, last_login)
SELECT 'secretword', id = 1, 'Firstname', '', id < 3, true, '2020-01-01', v.* FROM (VALUES
  (1, 'ada', 'ada@example.org', NULL::timestamptz), (2, 'bob', 'bob@example.org', '2024-01-01'), (3, 'cyd', 'cyd@example.org', NULL),
  (9001, 'blank1', '', NULL), (9002, 'blank2', '  ', NULL), (9003, 'twin1', 'twin@example.org', NULL), (9004, 'twin2', 'twin@example.org', NULL),
  (9005, 'CASED', 'Cased@example.org', 'infinity'), (9006, 'cased', 'cased@example.org', NULL), (9007, '', 'nameless@example.org', NULL),
  (9008, 'same', 's1@example.org', NULL), (9009, 'same', 's2@example.org', NULL), (9010, 'own', 'taken@example.org', NULL)) AS v (id, a, b, c);
INSERT INTO auth_user_groups (user_id, group_id) VALUES (2, 1), (1, 9001), (1, 999999), (999999, 1);
INSERT INTO auth_user_user_permissions (user_id, permission_id) VALUES (1, 1), (2, 1), (1, 999999), (999999, 1);
INSERT INTO institutions VALUES (1, 'Institute', NULL, now());
INSERT INTO users_profile (is_public, created_at, updated_at, id, user_id, profile_type, phone, date_of_birth)
SELECT true, '2021-01-01', '2021-01-01', * FROM (VALUES (1, 1, 'student', '1', '2000-01-01'::date), (9001, 2, 'wizard', '1', NULL),
  (9002, 3, 'student', repeat('7', 25), NULL), (9003, 999999, 'student', '1', NULL), (9004, 9006, 'student', '1', 'infinity'),
  (9005, 9001, 'student', '1', NULL)) AS v;
INSERT INTO students (is_seeking_internship, created_at, updated_at, id, user_id, student_id, institution_id, gpa, year_of_study, skills, interests,
  graduation_date)
SELECT true, '2021-01-01', '2021-01-01', * FROM (VALUES (1, 1, 'S1', 1, 4.5, 1::bigint, '[1]'::json, '["a"]', '2024-01-01'::date),
  (9001, 2, repeat('s', 60), 1, 12.5, 5000000000, '{"a": 1, "a": 2}', '[]', NULL), (9002, 3, 'S2', NULL, 3.999, 1, '["\\u0000"]', 'not json', NULL),
  (9003, 9005, 'S3' || repeat(' ', 60), NULL, 5.5, 1, '1', '[]', NULL), (9004, 9006, 'dup', NULL, NULL, 1, '1', '[]', 'infinity'),
  (9005, 9008, 'dup', NULL, NULL, 1, '1', '[]', NULL), (9006, 999999, 'S6', 777777, 'NaN', 1, '1', '[]', NULL)) AS v;
INSERT INTO companies (is_verified, created_at, updated_at, id, user_id, company_name, founded_year, description)
SELECT true, '2021-01-01', '2021-01-01', * FROM (VALUES (1, 1, 'Company', 1999, 'fine'), (9001, 2, 'c', NULL, convert_from('\\xff', 'SQL_ASCII')),
  (9002, 3, 'c', 1200, NULL), (9003, 999999, 'c', NULL, NULL), (9004, 9004, NULL, NULL, NULL)) AS v;
INSERT INTO users_role (is_active, granted_at, created_at, updated_at, id, user_id, role_type, company_id, institution_id, granted_by, expires_at)
SELECT true, '2021-01-01', '2021-01-01', '2021-01-01', * FROM (VALUES (1, 1, 'student', 1, 1, 2, '2030-01-01'::date),
  (9001, 999999, 'student', 888888, 777777, 666666, NULL), (9002, 2, 'student', NULL, NULL, NULL, '300000-01-01'),
  (9003, 9001, 'student', NULL, NULL, NULL, 'infinity'), (9004, 3, 'company', 9004, NULL, 9001, NULL)) AS v
"""
KEYS = """
ALTER TABLE companies DROP CONSTRAINT companies_pkey;
ALTER TABLE companies ALTER id DROP IDENTITY, ALTER id DROP NOT NULL;
INSERT INTO companies (is_verified, created_at, updated_at, id, user_id, company_name)
SELECT true, now(), now(), * FROM (VALUES (NULL::bigint, 1, 'c'), (9005, 2, 'c'), (9005, 3, 'c')) AS v
"""
OWN = "INSERT INTO auth_service.users (username, email, password_hash) VALUES ('own', 'taken@example.org', 'x')"

# (mapping, target column, rule): keys. What stops; nothing else does.
STOPS = {
    ("auth_service/users", "email", "blank"): "9001 9002",
    ("auth_service/users", "email", "unique"): "9003 9004",
    ("auth_service/users", "username", "blank"): "9007",
    ("auth_service/users", "username", "unique"): "9008 9009",
    ("auth_service/users", "email", "collision"): "9010",
    ("auth_service/users", "username", "collision"): "9010",
    ("auth_service/permissions", "name", "length"): "9001",
    ("auth_service/permissions", "codename, content_type", "unique"): "9002 9003",
    ("auth_service/permissions", "content_type_id", "foreign_key"): "9004",
    ("auth_service/user_permissions", "user_id", "foreign_key"): "[999999, 1]",
    ("auth_service/user_permissions", "permission_id", "foreign_key"): "[1, 999999]",
    ("user_service/profiles", "profile_type", "type"): "9001",
    ("user_service/profiles", "phone", "length"): "9002",
    ("user_service/profiles", "user_id", "foreign_key"): "9003",
    ("user_service/roles", "user_id", "foreign_key"): "9001 [999999, 1]",
    ("user_service/roles", "company_id", "foreign_key"): "9001",
    ("user_service/roles", "institution_id", "foreign_key"): "9001",
    ("user_service/roles", "granted_by", "foreign_key"): "9001",
    ("user_service/roles", "expires_at", "range"): "9002",
    ("user_service/roles", "role_type", "length"): "[1, 9001]",
    ("user_service/roles", "role_type", "not_null"): "[1, 999999]",
    ("user_service/roles", "group_id", "foreign_key"): "[1, 999999]",
    ("user_service/student_profiles", "student_id", "length"): "9001",
    ("user_service/student_profiles", "student_id", "changed"): "9003",
    ("user_service/student_profiles", "student_id", "unique"): "9004 9005",
    ("user_service/student_profiles", "gpa", "range"): "9001",
    ("user_service/student_profiles", "gpa", "changed"): "9002",
    ("user_service/student_profiles", "gpa", "check"): "9001 9003 9006",
    ("user_service/student_profiles", "year_of_study", "range"): "9001",
    ("user_service/student_profiles", "skills", "changed"): "9001",
    ("user_service/student_profiles", "skills", "encoding"): "9002",
    ("user_service/student_profiles", "interests", "type"): "9002",
    ("user_service/student_profiles", "user_id", "foreign_key"): "9006",
    ("user_service/student_profiles", "institution_id", "foreign_key"): "9006",
    ("user_service/company_profiles", "description", "encoding"): "9001",
    ("user_service/company_profiles", "founded_year", "check"): "9002",
    ("user_service/company_profiles", "user_id", "foreign_key"): "9003",
    ("user_service/company_profiles", "company_name", "not_null"): "9004",
    ("user_service/company_profiles", "id", "not_null"): "NULL",
    ("user_service/company_profiles", "id", "unique"): "9005 9005",
}
WARNS = {
    ("auth_service/users", "email", "case"): "9005 9006",
    ("auth_service/users", "username", "case"): "9005 9006",
    ("auth_service/users", "last_login", "infinity"): "9005",
    ("user_service/profiles", "date_of_birth", "infinity"): "9004",
    ("user_service/roles", "expires_at", "infinity"): "9003",
    ("user_service/student_profiles", "graduation_date", "infinity"): "9004",
    ("user_service/student_profiles", "gpa", "infinity"): "9006",
}
VALUES = ("example.org", "secretword", "Firstname", "nnnn", "gggg", "ssss", "7777777", "wizard", "not json", "12.5", "3.999")
PLACEHOLDERS = {
    ("auth_service/users", "email", "blank"): "'user-' || id || '@invalid'",
    ("auth_service/users", "username", "blank"): "'user-' || id",
    ("auth_service/users", "last_login", "infinity"): "NULL",
    ("user_service/profiles", "date_of_birth", "infinity"): "NULL",
    ("user_service/company_profiles", "company_name", "not_null"): "'company ' || id",
}
# rows, carried, merged, quarantined, dropped
ACCOUNTS = {
    "auth_user": (13, 7, 0, 6, 0),
    "auth_permission": (5, 2, 0, 3, 0),
    "auth_group": (3, 3, 0, 0, 0),
    "auth_user_groups": (4, 1, 0, 3, 0),
    "auth_user_user_permissions": (4, 2, 0, 2, 0),
    "auth_group_permissions": (1, 0, 1, 0, 0),
    "django_content_type": (2, 0, 2, 0, 0),
    "users_profile": (6, 1, 0, 5, 0),
    "students": (7, 2, 0, 5, 0),
    "companies": (5, 1, 0, 4, 0),
    "users_role": (5, 1, 0, 4, 0),
    "institutions": (1, 1, 0, 0, 0),
}
ACCOUNTS_WITH_PLACEHOLDERS = {"auth_user": (13, 11, 0, 2, 0), "users_profile": (6, 3, 0, 3, 0)}


@pytest.fixture
def context(databases: Callable[..., Endpoint], tmp_path: Path) -> Context:
    """The dirty monolith, services with their tables."""
    source = databases("monolith", encoding="SQL_ASCII")
    execute(source, MONOLITH, LOOSER, ROWS)
    schema = tmp_path / "schema"
    copytree(PROJECT / "roles" / "schema" / "files", schema)
    for path in schema.rglob("*.sql"):
        text = path.read_text(encoding="utf-8")
        for old, new in STRICTER:
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    found = Context(compiled(tmp_path, {}), source, {service: databases(service) for service in SERVICES}, databases("control"), NAMESPACE)
    for name, data in found.plan.contracts:
        with closing(ddl.connect(found.targets[name], Contract.from_dict(data))) as connection:
            ddl.apply(connection, plan_schema(connection, Contract.from_dict(data)))
    return found


def compiled(folder: Path, policies: dict[str, dict[str, dict[str, object]]]) -> transfer.Context:
    """Return the plan of the stricter schema and the project's mappings with policies for some of their columns."""
    mappings = folder / f"mappings{len(list(folder.iterdir()))}" / "mappings"
    copytree(PROJECT / "mappings", mappings)
    for name, chosen in policies.items():
        with open(mappings / f"{name}.yml", "a", encoding="utf-8") as file:
            file.write(f"policies: {json.dumps(chosen)}\n")
    contracts = {service: parse_contract(service, folder / "schema" / service) for service in SERVICES}
    return compile_plan(read_mappings(mappings, SERVICES), contracts, ids.fingerprint(NAMESPACE))


@pytest.fixture
def options(postgres: PostgresServer) -> preflight.Options:
    return preflight.Options(bin_dir=str(postgres.bin_dir), limits=unhurried().limits)


def named(report: preflight.Report, level: str) -> dict[tuple[str, str, str], str]:
    """Return the keys that were named, by mapping, column and rule; the count of each is that of its keys."""
    result: dict[tuple[str, str, str], str] = {}
    for item in report.findings:
        if item.level == level and item.keys:
            assert item.count == len(item.keys), item
            place = (item.place.rpartition("mappings/")[2].partition(".yml")[0], item.column, item.rule)
            result[place] = " ".join(sorted([*([result[place]] if place in result else []), *item.keys]))
    return result


def test_every_violation_is_named_with_its_mapping_column_rule_and_keys(context: Context, options: preflight.Options) -> None:
    execute(context.source, KEYS)
    execute(context.targets["auth_service"], OWN)
    report = preflight.run(context, options, None)
    assert named(report, "stop") == STOPS
    assert named(report, "warn") == WARNS
    (counted,) = [item for item in report.findings if item.rule == "counted"]
    assert (counted.column, counted.count) == ("profile_type", 5)  # users with a name, and neither profile nor student nor company
    written = json.dumps(report.detail())
    assert [value for value in VALUES if value in written] == []
    assert not report.passed


def chosen(placeholders: dict[tuple[str, str, str], str]) -> dict[str, dict[str, dict[str, object]]]:
    """Return a policy for every violation that has one, as a mapping has them."""
    result: dict[str, dict[str, dict[str, object]]] = {}
    for place in [*STOPS, *WARNS]:
        name, columns, rule = place
        if rule in ("collision", "case") or columns == "id":
            continue
        policy = {"placeholder": placeholders[place]} if place in placeholders else "quarantine"
        result.setdefault(name, {}).setdefault(columns.partition(",")[0], {})[rule] = policy
    return result


@pytest.mark.parametrize("placeholders", [{}, PLACEHOLDERS], ids=["quarantine", "placeholder"])
def test_every_policy_is_carried_to_a_validated_end(
    context: Context, options: preflight.Options, tmp_path: Path, placeholders: dict[tuple[str, str, str], str]
) -> None:
    context = replace(context, plan=compiled(tmp_path, chosen(placeholders)))
    report = preflight.run(context, options, None)
    assert [item for item in report.findings if item.level == "stop"] == []
    aside = quarantine.compute(context, plan_time=PLAN_TIME)
    accounts = {item["table"]: tuple(item[name] for name in ("rows", "carried", "merged", "quarantined", "dropped")) for item in report.extra["accounting"]}
    assert accounts == (ACCOUNTS | ACCOUNTS_WITH_PLACEHOLDERS if placeholders else ACCOUNTS)
    limits = unhurried().limits
    with pytest.raises(transfer.MigrationError, match="more than 3 rows would be quarantined"):
        transfer.run(context, PLAN_TIME, "run", transfer.Options("r", limits=limits, quarantine_cap=3), Progress(None), lambda _context, _time: 0)
    carried = transfer.run(context, PLAN_TIME, "run", transfer.Options("r", limits=limits), Progress(None), lambda _context, _time: 0)
    for name, data in context.plan.contracts:
        build.build(context.targets[name], Contract.from_dict(data))
    outcome = validate.compare(context, PLAN_TIME, options=validate.Options(accounts=True))
    assert outcome.passed, outcome.findings
    for found in (carried.balance, outcome.balance):
        assert found is not None
        assert found.passed, found
        assert [item.to_dict() for item in found.accounts] == report.extra["accounting"]
    assert sum(table.rejected for table in outcome.tables.values()) == len(aside)
    for target in context.plan.targets:
        if not target.bookkeeping:
            kept = sum(count for (name, _), count in report.rows.items() if name == target.name)
            assert outcome.tables[target.name].target_rows == kept - sum(item.target == target.name for item in aside), target.name
    with closing(driver.connect(context.targets["auth_service"], application_name="tests")) as connection:
        users = dict(driver.rows(connection, "SELECT username, email FROM auth_service.users"))
    assert len(users) == (13 - 2 if placeholders else 13 - 2 - 2 - 1 - 1)
    if placeholders:
        assert users["blank1"] == "user-9001@invalid"
        assert users["user-9007"] == "nameless@example.org"


def test_what_the_mappings_sql_leaves_out_is_dropped_by_declaration_and_a_sum_that_is_off_stops(context: Context) -> None:
    part = next(part for target in context.plan.targets if target.table == "groups" for part in target.parts)
    narrower = replace(part, query=f"{part.query} WHERE g.name <> 'idle'")
    targets = tuple(replace(item, parts=(narrower,)) if item.table == "groups" else item for item in context.plan.targets)
    with closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as source:
        catalog = source_catalog.read(source, "public")
        found = {item.table: item for item in row_accounting.account(lambda sql: driver.rows(source, sql), replace(context.plan, targets=targets), catalog, {})}
    assert (found["auth_group"].rows, found["auth_group"].carried, found["auth_group"].dropped) == (3, 2, 1)
    assert row_accounting.check(list(found.values())) == []
    (finding,) = row_accounting.check([replace(found["auth_group"], dropped=0)])
    assert (finding.level, finding.place) == ("stop", "auth_group")
