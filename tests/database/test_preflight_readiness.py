# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight among others: locks, throttles, privileges and settings of real servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from ansible.module_utils.migration.checks import source_catalog
from ansible.module_utils.migration.checks.findings import Finding
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.postgres.quote import ident
from ansible.module_utils.migration.preflight import dependencies, privileges, readiness, scan, servers
from ansible.module_utils.migration.preflight import run as preflight
from ansible.module_utils.migration.sessions.store import Address, Room, StoreOptions
from ansible.module_utils.migration.state import control, gates, ledger
from ansible.module_utils.migration.state.limits import Limits
from ansible.module_utils.migration.throttle import pacer
from ansible.module_utils.migration.throttle.pacer import unhurried

from tests.conftest import execute
from tests.mutation.world import NAMESPACE, PLAN_TIME, SERVICES, fill, read_plan


@pytest.fixture
def context(databases: Callable[..., Endpoint]) -> Context:
    """A small clean monolith, two empty services and an empty control database."""
    source = databases("monolith")
    fill(source, 60, seed=3)
    execute(source, "UPDATE users_role SET granted_by = NULL")
    targets = {service: databases(service) for service in SERVICES}
    return Context(plan=read_plan(), source=source, targets=targets, control=databases("control"), namespace=NAMESPACE)


@pytest.fixture
def options(postgres: PostgresServer) -> preflight.Options:
    return preflight.Options(bin_dir=str(postgres.bin_dir), limits=unhurried().limits)


def of(findings: list[Finding] | tuple[Finding, ...], rule: str, level: str = "stop") -> list[Finding]:
    return [item for item in findings if (item.rule, item.level) == (rule, level)]


def test_later_phases_refuse_a_preflight_that_is_missing_failed_or_of_another_plan(context: Context) -> None:
    digest = context.plan.digest
    with closing(control.connect(context.control)) as connection:
        for record, fault in ((None, "no preflight has been recorded"), (("failed", digest), "failed"), (("passed", "another"), "saw plan another")):
            if record:
                control.record(connection, gates.PREFLIGHT, record[0], {}, plan_digest=record[1])
            with pytest.raises(driver.MigrationError, match=fault):
                gates.require_preflight(connection, digest)
            assert "the gate is overridden" in gates.require_preflight(connection, digest, True)
            assert gates.require_preflight(connection, digest, check=True).startswith("would require")
        control.record(connection, gates.PREFLIGHT, "passed", {}, plan_digest=digest)
        assert gates.require_preflight(connection, digest) == ""


@pytest.fixture
def holder(context: Context) -> Iterator[driver.Connection]:
    """Somebody else's session on the monolith."""
    with closing(driver.connect(context.source, application_name="a schema change")) as connection:
        yield connection


def test_a_table_that_another_session_has_locked_is_named_and_not_waited_for(
    context: Context, options: preflight.Options, holder: driver.Connection
) -> None:
    driver.rows(holder, "LOCK TABLE users_profile IN ACCESS EXCLUSIVE MODE")
    started = time.monotonic()
    report = preflight.run(context, options, None)
    assert time.monotonic() - started < 30
    stopped = of(report.findings, "locks")
    assert stopped
    assert all(item.message.startswith("public.users_profile is locked by another session") for item in stopped)
    assert {item.target for item in stopped} == {"user_service.profiles"}
    assert any("users_profile" in item.message for item in of(report.findings, "locks", "warn"))
    assert report.rows["auth_service.users", ""] > 60  # the others were read all the same


def test_a_locked_target_ends_in_a_sentence(context: Context, options: preflight.Options) -> None:
    execute(context.targets["user_service"], "CREATE SCHEMA user_service; CREATE TABLE user_service.roles (id uuid)")
    with closing(driver.connect(context.targets["user_service"], application_name="somebody")) as other:
        driver.rows(other, "LOCK TABLE user_service.roles IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(driver.MigrationError, match="another session holds a lock on it"):
            preflight.run(context, options, None)


def test_preflight_takes_no_lock_but_the_one_of_every_reader(context: Context, options: preflight.Options) -> None:
    seen: set[str] = set()
    over = threading.Event()

    def look(endpoint: Endpoint) -> None:
        with closing(driver.connect(endpoint, application_name="tests", autocommit=True)) as connection:
            while not over.is_set():
                statement = (
                    "SELECT DISTINCT l.mode FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                    " WHERE l.locktype = 'relation' AND a.application_name = %s"
                )
                seen.update(row[0] for row in driver.rows(connection, statement, (preflight.APPLICATION_NAME,)))

    watcher = threading.Thread(target=look, args=(context.source,))
    watcher.start()
    try:
        preflight.run(context, options, None)
    finally:
        over.set()
        watcher.join()
    assert seen == {"AccessShareLock"}


def test_a_pause_that_does_not_end_is_said_and_what_was_found_is_kept(context: Context, options: preflight.Options) -> None:
    notes: list[str] = []
    monitor = type("Notes", (preflight.Progress,), {"note": lambda self, phase, text: notes.append(text)})(None)
    report = preflight.run(context, replace(options, limits=Limits(pause=1), patience=0.2), None, monitor)
    (finding,) = of(report.findings, "pressure")
    assert "the ledger's control row 'pause' is set" in finding.message
    assert any("paused" in note for note in notes)
    assert of(report.findings, "version", "info")


def test_a_pause_ends_when_the_control_row_does(context: Context) -> None:
    target = context.targets["auth_service"]
    with closing(driver.connect(target, application_name="tests")) as connection:
        ledger.create(connection, context.plan, "auth_service", PLAN_TIME, "run")
        driver.rows(connection, "INSERT INTO migration.controls (name, value) VALUES ('pause', 1)")
        connection.commit()
    threading.Timer(0.5, execute, (target, "UPDATE migration.controls SET value = 0")).start()
    with closing(driver.connect(target, application_name="tests", autocommit=True)) as connection:
        gentle = pacer.Pace(replace(unhurried().limits, pause=1), {}, {"auth_service": connection}, 20)
        start = time.monotonic()
        gentle.breathe()
    assert 0.3 < time.monotonic() - start < 10


def test_windows_find_what_one_pass_finds_and_keep_the_rate(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(context.source, "UPDATE auth_user SET email = '' WHERE id % 7 = 0", "UPDATE auth_user SET last_login = 'infinity' WHERE id % 5 = 0", "ANALYZE")
    with closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as connection:
        catalog = source_catalog.read(connection, "public")
        whole = scan.run(connection, context.plan, catalog)
        monkeypatch.setattr(pacer, "SMALLEST_WINDOW", 10)
        start = time.monotonic()
        pieces = scan.run(connection, context.plan, catalog, pace=pacer.Pace(replace(unhurried().limits, rows_per_second=400)))
        took = time.monotonic() - start
    assert pieces.rows == whole.rows
    assert pieces.findings == whole.findings
    assert any(item.rule == "infinity" for item in whole.findings)
    assert took > sum(whole.rows.values()) / 400


def test_every_privilege_that_is_missing_is_named_with_the_grant_that_gives_it(
    postgres: PostgresServer, databases: Callable[..., Endpoint], context: Context
) -> None:
    reader = databases("reader", role=True)
    role = ident(reader.user)
    execute(
        context.source,
        "CREATE SCHEMA billing; CREATE TABLE billing.invoices (id int)",
        "ALTER TABLE students ENABLE ROW LEVEL SECURITY",
        "SELECT lo_create(4711)",
        f"GRANT SELECT ON students TO {role}",
    )
    asked = replace(context.source, user=reader.user, password=reader.password)
    with closing(driver.connect(asked, application_name="tests", autocommit=True)) as connection:
        before = privileges.check_source(connection, "monolith")
        said = " ".join(item.message for item in before)
        assert all(word in said for word in ("cannot read billing.invoices", "hides rows of public.students", "1 large objects", "may not replicate"))
        for step in (item.next_step.partition("; or ")[0] for item in before if item.level == "stop" and "LARGE OBJECT" not in item.next_step):
            execute(context.source, step)
        execute(context.source, f"GRANT SELECT ON LARGE OBJECT 4711 TO {role}")
        assert [item for item in privileges.check_source(connection, "monolith") if item.level == "stop"] == []
    execute(context.source, f"REVOKE pg_read_all_data FROM {role}", f"DROP OWNED BY {role}", f"ALTER ROLE {role} NOBYPASSRLS")

    target = context.targets["auth_service"]
    execute(target, "CREATE SCHEMA auth_service; CREATE TABLE auth_service.users (id uuid); CREATE SCHEMA migration")
    execute(target, f"GRANT USAGE ON SCHEMA auth_service TO {role}", f"REVOKE CREATE ON DATABASE {ident(target.dbname)} FROM public")
    asked = replace(target, user=reader.user, password=reader.password)
    wanted = (("auth_service", "users"),)
    with closing(driver.connect(asked, application_name="tests", autocommit=True)) as connection:
        before = privileges.check_target(connection, "auth_service", ("auth_service", "migration"), wanted)
        missing = "".join(f"{item.level}: {item.message}\n" for item in before)
        for word in ("cannot create schemas", "does not own auth_service_", "may not create databases", "may not end", "does not see", "in schema migration",
                     "in schema auth_service", "does not own auth_service.users"):  # fmt: skip
            assert word in missing, word
        for item in before:
            execute(target, item.next_step.rpartition("; or ")[2])
        assert privileges.check_target(connection, "auth_service", ("auth_service", "migration"), wanted) == []
    execute(target, f"REASSIGN OWNED BY {role} TO postgres", f"DROP OWNED BY {role}")


def test_row_level_security_of_a_mapped_table_stops(context: Context, options: preflight.Options, databases: Callable[..., Endpoint]) -> None:
    source = databases("monolith", role=True)
    fill(source, 20, seed=3)
    execute(source, "UPDATE users_role SET granted_by = NULL", "ALTER TABLE students ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    report = preflight.run(replace(context, source=source), options, None)
    found = of(report.findings, "privilege")
    assert any("hides rows of public.students" in item.message for item in found)
    assert all("BYPASSRLS" in item.next_step for item in found)


def test_a_target_in_another_time_zone_is_warned_of_and_the_next_step_mends_it(context: Context) -> None:
    target = context.targets["user_service"]
    execute(target, f"ALTER DATABASE {ident(target.dbname)} SET timezone = 'America/New_York'")
    assert zones(context) == ["America/New_York"]
    execute(target, found_zones(context)[0].next_step)
    assert zones(context) == []


def found_zones(context: Context) -> list[Finding]:
    with (
        closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as source,
        closing(context.connect_target("user_service", "tests", autocommit=True)) as target,
        closing(driver.connect(context.control, application_name="tests", autocommit=True)) as control,
    ):
        return of(readiness.check(context, source, {"user_service": target}, control, None)[0], "time_zone", "warn")


def zones(context: Context) -> list[str]:
    return [item.message.partition("time zone is ")[2].partition(":")[0] for item in found_zones(context)]


SERVER = servers.Server(
    "monolith", 180003, "18.3", {"max_standby_streaming_delay": "30000"}, "UTF8", ("icu", "en-US", "153.1", "153.1"), "edulink", "reader", False, 0, 0.0, "UTC",
    None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "rule", "level"),
    [
        ({"version": 180001, "version_text": "18.1"}, "version", "warn"),
        ({"version": 170009, "version_text": "17.9"}, "version", "warn"),
        ({"version": 130009, "version_text": "13.9"}, "version", "stop"),
        ({"encoding": "LATIN1"}, "encoding", "warn"),
        ({"encoding": "SQL_ASCII"}, "encoding", "stop"),
        ({"collation": ("libc", "C", None, None)}, "collation", "warn"),
        ({"collation": ("icu", "en-US", "153.1", "154.2")}, "collation", "warn"),
        ({"clock_ahead": 30.0}, "clock", "warn"),
        ({"standby": True}, "standby", "stop"),
        ({"time_zone": "Asia/Tokyo"}, "time_zone", "warn"),
    ],
)
def test_a_target_that_differs_is_judged(change: dict[str, object], rule: str, level: str) -> None:
    target = replace(SERVER, name="auth_service", **change)
    assert of(servers.check_servers(SERVER, {"auth_service": replace(SERVER, name="auth_service")}, SERVER, zoneless=True), rule, level) == []
    assert len(of(servers.check_servers(SERVER, {"auth_service": target}, SERVER, zoneless=True), rule, level)) >= 1


def test_tls_is_judged_by_what_is_really_in_use() -> None:
    far = Endpoint("auth_service", "db.example.org", 5432, "auth", "migrator", sslmode="disable")
    levels = [
        servers.check_tls(replace(far, sslmode=mode), used)[0].level
        for mode, used in (("disable", None), ("require", "TLSv1.3, x"), ("verify-ca", "TLSv1.3, x"), ("verify-full", "TLSv1.3, x"))
    ]
    assert levels == ["warn", "warn", "warn", "info"]
    assert servers.check_tls(replace(far, host="/run/postgresql"), None)[0].level == "info"


def test_a_session_store_in_clear_is_warned_of_where_it_is_not_this_machine() -> None:
    hosts = (("127.0.0.1", None, True), ("0.0.0.0", False, True), ("0.0.0.0", True, False), ("0.0.0.0", True, True))
    found = [readiness.check_store(StoreOptions((Address(host, 1),), tls=said, tls_verify_host=named)) for host, said, named in hosts]
    assert [len(of(findings, "tls", "warn")) for findings in found] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (Room("r", 0, 0, "noeviction", "7.2.4"), ["info"]),
        (Room("r", 0, 1 << 30, "allkeys-lru", "7.2.4"), ["warn", "info"]),
        (Room("r", 1 << 29, 1 << 29, "noeviction", "6.2.0"), ["warn", "info"]),
        (Room("r", 0, 0, "noeviction", "6.0.16"), ["stop", "info"]),
    ],
)
def test_the_session_store_is_judged_by_version_memory_and_eviction(room: Room, expected: list[str]) -> None:
    assert [item.level for item in readiness._room(room, 1 << 20)] == expected


def test_a_table_of_another_schema_that_stays_behind_is_named_with_its_rows(context: Context) -> None:
    execute(
        context.source,
        "CREATE SCHEMA billing; CREATE TABLE billing.invoices (id int, payer int REFERENCES auth_user)",
        "INSERT INTO billing.invoices SELECT n, 1 FROM generate_series(1, 12) n",
        "CREATE TABLE orders (buyer int REFERENCES auth_user)",
        "ANALYZE orders",
    )
    with closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as connection:
        catalog = source_catalog.read(connection, "public")
        counted = dependencies.count_unknown(connection, context.plan, catalog)
        found = {item.place: item for item in dependencies.check(context.plan, catalog, counted)}
    assert found["billing.invoices"].message.endswith(", 12 rows")
    assert found["public.orders"].message.endswith(", about 0 rows")
    assert "'users'" in found["billing.invoices"].next_step
    assert '"billing.invoices"' in dependencies.build(context.plan, catalog).mermaid()
