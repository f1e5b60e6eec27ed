# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What could pass for equal and is not: values that PostgreSQL calls equal, tables that changed, parts of a whole, quarantine without a reason."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres.driver import Endpoint, connect, rows
from ansible.module_utils.migration.repair import release
from ansible.module_utils.migration.report import collect, status
from ansible.module_utils.migration.state import control
from ansible.module_utils.migration.validate import authorization, drilldown, readers, test_logins
from ansible.module_utils.migration.validate import run as validate
from ansible.module_utils.migration.validate.result import DIFFERENT, Finding
from ansible.module_utils.migration.validate.slices import Scan

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import one_table
from tests.conftest import execute
from tests.database.test_verify import QUICK, ask, lines, run
from tests.mutation import world as w

# A target column, what the source has, what the target has instead: equal for PostgreSQL, or for a careless eye.
ALIKE = [
    ("float8", "'NaN'", "'Infinity'::float8 - 'Infinity'::float8"),
    ("float8", "'0'", "'-0'"),
    ("real", "'0'", "'-0'"),
    ("numeric", "'4.5'", "'4.50'"),
    ("numeric", "'Infinity'", "'NaN'"),
    ("json", """'{"a":1,"b":2}'""", """'{"b":2,"a":1}'"""),
    ("json", """'{"a":1}'""", """'{"a":1,"a":1}'"""),
    ("jsonb", """'{"a":1.0}'""", """'{"a":1.00}'"""),
    ("text", "'\u00e9'", "'e\u0301'"),
    ("varchar(9)", "'a'", "'a '"),
    ("interval", "'1 mon'", "'30 days'"),
    ("interval", "'1 day'", "'24:00'"),
    ("time", "'00:00'", "'24:00'"),
    ("timetz", "'12:00+00'", "'13:00+01'"),
    ("timestamp", "'infinity'", "'-infinity'"),
    ("date", "'0044-03-15'", "'0044-03-15 BC'"),
    ("timestamptz", "'2024-01-01 00:00+00'", "'2024-01-01 00:00+01'"),
    ("inet", "'10.0.0.1/32'", "'10.0.0.1/24'"),
    ("cidr", "'10.0.0.0/8'", "'10.0.0.0/9'"),
    ("integer[]", "'{1,2}'", "'[0:1]={1,2}'"),
    ("text[]", "'{NULL}'", "'{\"NULL\"}'"),
    ("float8[]", "'{0}'", "'{-0}'"),
    ("bytea", "'\\x00'", "'\\x0000'"),
    ("bit varying", "'0'", "'00'"),
    ("int4range", "'[1,2)'", "'[1,3)'"),
    ("money", "'0.01'", "'0.02'"),
]


@pytest.mark.parametrize("method", ["record", "sha256"])
def test_values_that_are_equal_and_not_the_same_are_named_by_column(databases: Callable[[str], Endpoint], method: str) -> None:
    source, target = databases("source"), databases("svc")
    given = ", ".join(f"{value}::{kind}" for kind, value, _ in ALIKE)
    run(source, f"CREATE TABLE rows (id integer PRIMARY KEY, {', '.join(f'v{number} {kind}' for number, (kind, _, _) in enumerate(ALIKE))})")
    run(source, f"INSERT INTO rows SELECT n, {given} FROM generate_series(1, {len(ALIKE)}) AS n")
    columns = ", ".join(f"c{number} {kind}" for number, (kind, _, _) in enumerate(ALIKE))
    contract = f"CREATE SCHEMA svc; CREATE TABLE svc.things (id uuid PRIMARY KEY, {columns})"
    run(target, *contract.split("; "))
    context = one_table.one_table(source, target, contract, len(ALIKE))
    reader = context.connect_source("tests", plan_time=one_table.PLAN_TIME, autocommit=True)
    writer = connect(target, application_name="tests", autocommit=True)
    assert one_table.load(context, reader, writer, [str(number + 1) for number in range(len(ALIKE))]) == ""
    assert validate.compare(context, one_table.PLAN_TIME, options=dataclasses.replace(QUICK, digest=method)).passed
    with writer.cursor() as cursor:
        for number, (_, _, value) in enumerate(ALIKE):
            cursor.execute(f"UPDATE svc.things SET c{number} = {value} WHERE id = (SELECT id FROM svc.things ORDER BY id OFFSET {number} LIMIT 1)")
    found = validate.compare(context, one_table.PLAN_TIME, options=dataclasses.replace(QUICK, digest=method))
    assert sorted(finding.columns for finding in found.findings) == sorted((f"c{number}",) for number in range(len(ALIKE)))
    reader.close()
    writer.close()


@pytest.fixture
def world(postgres: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    return w.cloned_world(postgres, databases)


@pytest.fixture
def compare(world: w.World) -> Callable[..., validate.Verification]:
    return lambda tables=None, **options: validate.compare(world.context, w.PLAN_TIME, tables=tables, options=dataclasses.replace(QUICK, **options))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("ALTER TABLE user_service.student_profiles ALTER year_of_study TYPE numeric", "student_profiles.year_of_study has type numeric, the plan has integer"),
        ("ALTER TABLE user_service.student_profiles ALTER gpa TYPE numeric", r"student_profiles.gpa has type numeric, the plan has numeric\(3,2\)"),
        ("ALTER TABLE user_service.student_profiles ALTER skills TYPE json", "student_profiles.skills has type json, the plan has jsonb"),
        ("ALTER TABLE user_service.profiles ALTER created_at TYPE timestamptz", "profiles.created_at has type timestamp with time zone, the plan has"),
        ("ALTER TABLE user_service.profiles DROP bio", "profiles.bio is missing"),
        (
            "ALTER TABLE user_service.roles RENAME TO kept; CREATE VIEW user_service.roles AS SELECT * FROM user_service.kept",
            "roles is no table",
        ),
    ],
)
def test_a_table_that_is_not_what_the_plan_knows_is_not_called_equal(
    world: w.World, compare: Callable[..., validate.Verification], change: str, fault: str
) -> None:
    run(world.targets["user_service"], change)
    with pytest.raises(MigrationError, match=rf"user_service\.{fault}.*nothing was compared; playbooks/schema\.yml"):
        compare()


def test_a_column_that_no_mapping_fills_is_told_in_the_verdict(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    run(world.targets["user_service"], "ALTER TABLE user_service.profiles ADD shoe integer DEFAULT 4, ALTER phone TYPE text")
    found = compare()
    assert found.passed
    assert "every mapped column (not user_service.profiles.shoe)" in found.verdict


def test_no_table_is_no_proof(compare: Callable[..., validate.Verification]) -> None:
    with pytest.raises(MigrationError, match="validate_tables names no table"):
        compare(tables=[])


def test_some_equal_tables_prove_nothing_of_the_rest() -> None:
    from ansible.modules import migration_validate

    assert [migration_validate.outcome({"passed": passed, "complete": complete}) for passed in (True, False) for complete in (True, False)] == [
        "passed",
        "partial",
        "failed",
        "failed",
    ]
    now = datetime(2026, 1, 2, tzinfo=UTC)
    migration = control.Migration(1, "run", "open", "a", "f", "2026-01-02", "there", now)
    told = collect.verdict(migration, {"validate": control.Record(1, 1, "validate", "partial", "a", {}, now)})
    assert told["level"] == "open"
    assert "some tables only" in told["text"]
    steps = [status.Step(phase, outcome, now, (), True, {}) for phase, outcome in (("schema", "passed"), ("index", "passed"), ("validate", "partial"))]
    assert status.advise(migration, "a", steps, []).command == "playbooks/validate.yml"


def test_one_table_is_compared_alone_and_its_references_too(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    assert compare(tables=["user_service.profiles"]).verdict.startswith("equal: ")
    assert "rows in 1 of 10 tables" in compare(tables=["user_service.profiles"]).verdict
    nobody = "99999999-9999-8999-8999-999999999999"
    row = ask(world.targets["user_service"], "SELECT id FROM user_service.profiles ORDER BY id LIMIT 1")
    run(world.targets["user_service"], f"UPDATE user_service.profiles SET user_id = '{nobody}' WHERE id = '{row}'")
    found = compare(tables=["user_service.profiles"])
    assert [(finding.kind, finding.columns) for finding in found.findings] == [("different", ("user_id",))]
    assert [reference.keys for reference in found.references if reference.dangling] == [(f"id {row}",)]


def test_after_the_cutover_a_row_that_only_a_migration_makes_is_no_row_of_the_services(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    made = "11111111-2222-8033-8044-555555555555"
    copied = "INSERT INTO user_service.profiles (id, user_id, profile_type) SELECT {}, user_id, 'student' FROM user_service.profiles LIMIT 1"
    run(world.targets["user_service"], copied.format("gen_random_uuid()"))
    found = compare(after_cutover=True)
    assert found.passed
    assert found.verdict.endswith(", 1 row of the services' own")
    run(world.targets["user_service"], copied.format(f"'{made}'"))
    assert [finding.id for finding in compare(after_cutover=True).findings if finding.kind == "extra"] == [made]


def test_each_table_has_its_share_of_the_findings_that_are_kept(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    user = world.targets["user_service"]
    run(user, "UPDATE user_service.profiles SET is_public = NOT is_public", "UPDATE user_service.roles SET is_active = NOT is_active")
    run(user, "DELETE FROM user_service.student_profiles WHERE id = (SELECT min(id::text)::uuid FROM user_service.student_profiles)")
    found = compare(findings_kept=11)
    kept = dict(Counter(finding.target for finding in found.findings))
    assert kept == {"user_service.student_profiles": 1, "user_service.profiles": 5, "user_service.roles": 5}
    assert found.differences == sum(found.tables[name].differences for name in kept) > 200
    assert "differing rows that are counted only were not looked up" in found.consistency


def test_many_differences_are_counted_again_while_somebody_writes(world: w.World) -> None:
    run(world.targets["user_service"], "UPDATE user_service.profiles SET is_public = NOT is_public")

    def write(what: str, done: int, total: int) -> None:
        run(world.source, "UPDATE institutions SET name = name")

    options = validate.Options(settle_attempts=1, settle_seconds=0.01, findings_kept=5)
    found = validate.compare(world.context, w.PLAN_TIME, options=options, progress=write)
    assert found.differences == found.tables["user_service.profiles"].target_rows
    assert "where more differ than are kept, those of the last point are counted" in found.consistency


def test_digests_that_differ_without_a_differing_row_are_not_called_equal(
    world: w.World, compare: Callable[..., validate.Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world.targets["user_service"], "UPDATE user_service.profiles SET is_public = NOT is_public")
    monkeypatch.setattr(drilldown, "open_one", lambda *_: iter(()))
    with pytest.raises(MigrationError, match=r"user_service\.profiles: the digests of both sides differ, but no row was found"):
        compare()


def test_a_hundred_thousand_differences_take_the_memory_of_those_that_are_kept(monkeypatch: pytest.MonkeyPatch, world: w.World) -> None:
    rows = (drilldown.Row(Finding("t", "", DIFFERENT, str(number), str(number))) for number in range(100_000))
    monkeypatch.setattr(drilldown, "open_one", lambda *_: rows)
    target = world.plan.targets[0]
    readers = Scan(target, 0, 0, 0, "", "", {0: 1}, 0.0)
    opener = drilldown.Opener(None, None, {target.name: {}}, 1, 100)  # type: ignore[arg-type]
    tracemalloc.start()
    found = opener.all([readers])[target.name]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.total, found.beyond) == (100_000, 99_900)
    assert peak < 1_000_000  # bytes; all of them would be some tens of millions


def test_everybodys_rights_are_opened_some_users_at_a_time(world: w.World, monkeypatch: pytest.MonkeyPatch) -> None:
    run(world.targets["auth_service"], "UPDATE auth_service.users SET is_active = NOT is_active", "DELETE FROM auth_service.user_permissions")
    whole = authorization.compare(world.context, w.PLAN_TIME)
    assert whole.differing == whole.users == len(whole.findings) > 100
    assert {what for _, what in whole.findings} == {"credentials, permissions", "credentials"}
    monkeypatch.setattr(authorization, "OPENED_ROWS", 10)
    monkeypatch.setattr(authorization.d, "ROWS_A_BUCKET", 16)
    assert authorization.compare(world.context, w.PLAN_TIME) == whole
    monkeypatch.setattr(authorization, "KEPT", 7)
    few = authorization.compare(world.context, w.PLAN_TIME)
    assert (few.differing, len(few.findings)) == (whole.differing, 7)


def test_a_row_that_was_set_aside_without_a_reason_is_named(world: w.World) -> None:
    user = world.targets["user_service"]
    key = ask(world.source, "SELECT min(id) FROM students")
    assert release.plan_release(world.context, w.PLAN_TIME).passed
    run(user, f"INSERT INTO migration.rejects (target, part, source_key, rule, reason) VALUES ('user_service.student_profiles', '', '{key}', 'blank', 'x')")
    found = release.plan_release(world.context, w.PLAN_TIME)
    assert not found.passed
    assert found.lines == (f"user_service.student_profiles: quarantined without a reason key {key}",)
    assert "playbooks/release.yml" in found.verdict


def test_formats_of_hashes_are_reported_without_any_canary(world: w.World) -> None:
    run(world.targets["auth_service"], "UPDATE auth_service.users SET password_hash = 'no dollar at all ' || username WHERE username = 'ada'")
    found = test_logins.check(world.context, [])
    assert found.passed
    assert dict(found.formats)["unknown"] == 2  # and the generator's own
    assert "unknown (2)" in found.unknown
    assert found.verdict.startswith("hash formats that Django does not know: ")
    assert not any("dollar" in name for name, _ in found.formats)
    assert sum(count for _, count in found.formats) == int(ask(world.targets["auth_service"], "SELECT count(*) FROM auth_service.users"))


def test_lines_name_no_value(world: w.World, compare: Callable[..., validate.Verification]) -> None:
    run(world.targets["auth_service"], "UPDATE auth_service.users SET email = 'secret@example.org' WHERE username = 'ada'")
    assert "secret" not in " ".join(lines(compare()))


def test_who_alters_a_table_of_the_source_meanwhile_waits_for_the_validation_and_not_it_for_them(world: w.World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without care both wait for ever: one connection for the ALTER TABLE, and that for another connection, which has read.
    altering: list[threading.Thread] = []
    said: list[str] = []
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%ADD COLUMN late%'"

    def alter() -> None:
        try:
            execute(world.source, "SET lock_timeout = '30s'; ALTER TABLE auth_user ADD COLUMN late int")
        except psycopg2.errors.LockNotAvailable as exc:
            said.append(str(exc))

    look = readers.Sides.source_size

    def size(self: readers.Sides, table: str) -> tuple[int, float]:
        if not altering:
            altering.append(threading.Thread(target=alter))
            altering[0].start()
            with closing(connect(world.source, application_name="tests", autocommit=True)) as watcher:
                while altering[0].is_alive() and not rows(watcher, waiting):
                    time.sleep(0.05)
        return look(self, table)

    execute(world.source, "ANALYZE")
    monkeypatch.setattr(readers.Sides, "source_size", size)
    found = validate.compare(world.context, w.PLAN_TIME, options=dataclasses.replace(QUICK, piece_rows=20))
    altering[0].join()
    assert (found.passed, said) == (True, [])
