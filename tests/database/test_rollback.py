# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back on real databases: proven, at once, from any interruption, without losing what is not the migration's."""

from __future__ import annotations

import csv
import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded import server as lab_postgres
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import databases, driver
from ansible.module_utils.migration.rollback import delete_rows, preview, rename
from ansible.module_utils.migration.rollback import run as rollback
from ansible.module_utils.migration.rollback.run import AS_BEFORE, AS_SNAPSHOT, KIND
from ansible.module_utils.migration.snapshot import restore, restore_blockers, take
from ansible.module_utils.migration.state import control, phase_gate
from ansible.modules import migration_copy, migration_release, migration_repair, migration_sessions

from tests.walk.environment import SERVICES, Walk, ask, die_in, dying
from tests.walk.fixtures import project_plan, services_server, walk  # noqa: F401


@pytest.fixture
def migrated(walk: Walk) -> Walk:  # noqa: F811
    """An environment with a snapshot and everything carried; the auth service had a table of its own before."""
    ask(walk.service("auth_service"), _own_table("auth_service", walk))
    take.take(walk.context, walk.taking())
    walk.carry()
    return walk


def _own_table(service: str, place: Walk) -> str:
    owner = place.context.targets[service].session_role
    return (
        f"CREATE SCHEMA own; CREATE TABLE own.audit (id int PRIMARY KEY, said text); INSERT INTO own.audit VALUES (1, 'before'), (2, NULL);"
        f" ALTER SCHEMA own OWNER TO {owner}; ALTER TABLE own.audit OWNER TO {owner}"
    )


def state(place: Walk) -> dict[str, str]:
    """Return for each service whether it is as in the snapshot, as migrated, or something between."""
    found = {}
    for service in SERVICES:
        content = place.content(service)
        content.pop("own.audit", None)
        migrated_tables = {target.qualified.replace('"', "") for target in place.context.plan.of(service)}
        found[service] = "snapshot" if not content else "migrated" if migrated_tables <= set(content) else "between"
    return found


def id_map(place: Walk) -> set[tuple[str, ...]]:
    rows = set()
    for service in SERVICES:
        connection = place.context.connect_target(service, "tests", readonly=True)
        rows |= {tuple(row) for row in driver.rows(connection, "SELECT entity, source_key, id::text FROM migration.id_map")}
        connection.close()
    return rows


def roll_back(place: Walk, **changes: Any) -> rollback.RolledBack:
    done = rollback.roll_back(place.context, place.rolling(**changes))
    if done.complete:
        rollback.close(place.context, place.rolling(**changes))
    return done


def test_services_are_as_in_the_snapshot_and_the_next_migration_gives_the_same_ids(migrated: Walk) -> None:
    before, monolith = id_map(migrated), ask(migrated.monolith, "SELECT md5(string_agg(u::text, '' ORDER BY id)) FROM auth_user u")
    carried = {service: migrated.content(service) for service in SERVICES}
    first = migrated.migration()
    assert first is not None
    done = roll_back(migrated)
    assert done.changed
    assert dict(done.states) == dict.fromkeys(SERVICES, AS_SNAPSHOT)
    assert set(migrated.content("auth_service")) == {"own.audit"}
    assert migrated.content("user_service") == {}
    for service in SERVICES:
        kept = databases.derived(migrated.context.targets[service].dbname, "migrated", first.run_id)
        assert migrated.content(service, kept) == carried[service]
    with (Path(done.evidence) / "auth_service.id_map.csv").open() as file:
        assert {tuple(row) for row in list(csv.reader(file))[1:]} <= before
    assert migrated.migration() is None
    assert not roll_back(migrated).changed
    migrated.pass_preflight()
    take.take(migrated.context, migrated.taking())
    migrated.carry()
    assert id_map(migrated) == before
    assert ask(migrated.monolith, "SELECT md5(string_agg(u::text, '' ORDER BY id)) FROM auth_user u") == monolith


def test_a_preview_tells_rows_and_names_and_writes_nothing(migrated: Walk) -> None:
    carried, names = {service: migrated.content(service) for service in SERVICES}, migrated.databases()
    seen = preview.preview(migrated.context, migrated.rolling())
    said = "\n".join(seen.lines)
    assert "would restore auth_service (2 rows in 1 tables)" in said
    assert "would close migration" in said
    assert {service: migrated.content(service) for service in SERVICES} == carried
    assert migrated.databases() == names
    assert migrated.history(KIND) == []


def test_owner_tablespace_grants_settings_comment_and_limit_are_those_of_the_original(walk: Walk, services_server: PostgresServer) -> None:  # noqa: F811
    endpoint = walk.context.targets["user_service"]
    name, owner, user = endpoint.dbname, endpoint.session_role, endpoint.user
    process.folder(services_server.home / f"space_{name}", services_server.account, 0o700)
    ask(walk.superuser, f"CREATE TABLESPACE space_{name} LOCATION '{services_server.home}/space_{name}'")
    ask(walk.superuser, f"ALTER DATABASE {name} SET TABLESPACE space_{name}")
    assert f"may not use the tablespace space_{name}; GRANT CREATE ON TABLESPACE" in take.preview(walk.context, walk.taking()).lines[-1]
    for statement in (
        f"GRANT CREATE ON TABLESPACE space_{name} TO {user}",
        f"ALTER DATABASE {name} SET search_path TO \"$user\", \"Odd, one\", public",
        f"ALTER DATABASE {name} SET work_mem TO '7MB'",
        f"ALTER ROLE {user} IN DATABASE {name} SET statement_timeout TO '1min'",
        f"ALTER DATABASE {name} CONNECTION LIMIT 17",
        f"COMMENT ON DATABASE {name} IS 'it''s \\ ours'",
        f"REVOKE ALL ON DATABASE {name} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {name} TO pg_monitor WITH GRANT OPTION",
    ):
        ask(walk.superuser, statement)
    connection = driver.connect(walk.superuser, application_name="tests", autocommit=True)
    before = databases.read(connection, name)
    assert (before.owner, before.tablespace, before.connection_limit, len(before.settings)) == (owner, f"space_{name}", 17, 3)
    take.take(walk.context, walk.taking())
    walk.carry()
    roll_back(walk)
    assert databases.read(connection, name) == before
    connection.close()
    walk.superuser_drops(None, name)
    ask(walk.superuser, f"DROP TABLESPACE space_{name}")


def test_sessions_in_the_way_are_ended_and_counted(migrated: Walk) -> None:
    endpoint = migrated.context.targets["auth_service"]
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            try:
                connection = driver.connect(endpoint, application_name="the service", autocommit=True)
                while not stop.is_set():
                    driver.rows(connection, "SELECT pg_sleep(0.01)")
            except Exception:
                continue

    users = [threading.Thread(target=use, daemon=True) for _ in range(4)]
    for user in users:
        user.start()
    while ask(migrated.superuser, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the service'") < 4:
        pass
    try:
        roll_back(migrated)
    finally:
        stop.set()
        for user in users:
            user.join()
    assert state(migrated)["auth_service"] == "snapshot"
    ended = next(item.detail["ended"] for item in migrated.history(KIND) if item.outcome == "exchanged" and item.detail["service"] == "auth_service")
    assert {"user": endpoint.user, "application": "the service", "sessions": 4} in ended


@pytest.mark.parametrize("stand", ["superuser", "prepared"])
def test_what_cannot_be_ended_is_named_and_nothing_is_touched(migrated: Walk, stand: str) -> None:
    names = migrated.databases()
    inside = driver.connect(migrated.service("user_service"), application_name="psql")
    if stand == "prepared":
        driver.rows(inside, "SELECT txid_current()")
        driver.rows(inside, "PREPARE TRANSACTION 'tests'")
        inside.close()
    else:
        driver.rows(inside, "SELECT 1")
    said = {"superuser": "1 sessions of a superuser are in", "prepared": "1 prepared transactions are open in"}[stand]
    try:
        with pytest.raises(MigrationError, match=f"user_service cannot be rolled back: {said}.*it is as before"):
            roll_back(migrated)
        assert state(migrated) == dict.fromkeys(SERVICES, "migrated")
        assert migrated.databases() == names
        assert migrated.history(KIND)[0].detail["states"] == dict.fromkeys(SERVICES, AS_BEFORE)
    finally:
        inside.close()
        if stand == "prepared":
            ask(migrated.service("user_service"), "ROLLBACK PREPARED 'tests'")
    roll_back(migrated)
    assert state(migrated) == dict.fromkeys(SERVICES, "snapshot")


def _use_services(place: Walk) -> None:
    ask(place.service("auth_service"), "INSERT INTO auth_service.users (username, email, password_hash) VALUES ('n1', 'n1@x.org', ''), ('n2', 'n2@x.org', '')")
    ask(place.service("auth_service"), "INSERT INTO own.audit VALUES (3, 'after')")
    ask(place.service("user_service"), "INSERT INTO user_service.roles (user_id, role_type) VALUES (gen_random_uuid(), 'student')")


def test_rows_of_others_are_counted_and_only_left_behind_when_agreed_to(migrated: Walk) -> None:
    _use_services(migrated)
    notes: list[str] = []
    with pytest.raises(MigrationError) as raised:
        rollback.roll_back(migrated.context, migrated.rolling(), notes.append)
    assert notes == ["restoring beside auth_service", "restoring beside user_service"], "what the refusal calls 'changed nothing'"
    for part in ("4 rows that are neither", "2 in auth_service.users", "1 in auth_service.own.audit", "1 in user_service.roles", "rollback_discard_rows=4"):
        assert part in str(raised.value)
    assert state(migrated) == dict.fromkeys(SERVICES, "migrated")
    with pytest.raises(MigrationError, match="4 rows"):
        roll_back(migrated, discard_rows=3)
    roll_back(migrated, discard_rows=4)
    assert state(migrated) == dict.fromkeys(SERVICES, "snapshot")


def test_rows_migrated_from_a_source_row_that_is_gone_are_pointed_out(migrated: Walk) -> None:
    ask(migrated.monolith, "DELETE FROM users_role WHERE id IN (SELECT id FROM users_role ORDER BY id LIMIT 2)")
    with pytest.raises(MigrationError, match=r"2 rows that are neither.*2 of them look migrated from source rows that are gone"):
        roll_back(migrated)


def test_the_data_scope_removes_what_was_migrated_and_nothing_else(migrated: Walk) -> None:
    before = id_map(migrated)
    run_id = migrated.migration().run_id  # type: ignore[union-attr]
    _use_services(migrated)
    seen = preview.preview(migrated.context, migrated.rolling(scope="data"))
    done = roll_back(migrated, scope="data")
    assert done.changed
    removed = sum(next(item.detail["rows"] for item in migrated.history(KIND) if item.detail.get("rows") and item.detail["service"] == "auth_service").values())
    assert seen.lines[0] == f"would delete {removed:,} migrated rows from auth_service and leave 2 others in the same tables"
    counts = {service: {name: int(text.split()[0]) for name, text in migrated.content(service).items()} for service in SERVICES}
    assert {name: rows for name, rows in counts["auth_service"].items() if not name.startswith("migration")} == {
        "auth_service.permissions": 0, "auth_service.user_permissions": 0, "auth_service.users": 2, "own.audit": 3,
    }  # fmt: skip
    assert counts["user_service"]["user_service.roles"] == 1
    kept = [rows for name, rows in counts["auth_service"].items() if name.startswith("migration_rolled_back") and name.endswith("id_map")]
    assert kept[0] > 0
    assert run_id.lower().replace("-", "_") in " ".join(counts["auth_service"])
    assert migrated.migration() is None
    migrated.pass_preflight()
    take.take(migrated.context, migrated.taking())
    migrated.carry()
    assert id_map(migrated) == before


def test_a_removal_that_leaves_rows_of_the_migration_is_not_done(migrated: Walk) -> None:
    service = migrated.service("user_service")
    ask(service, "ALTER TABLE user_service.roles RENAME TO moved")
    with pytest.raises(MigrationError, match=r"user_service.roles is not there, and the ledger has [\d,]+ rows in it; nothing was removed"):
        roll_back(migrated, scope="data", services=("user_service",))
    ask(service, "ALTER TABLE user_service.moved RENAME TO roles")
    ask(migrated.monolith, "DELETE FROM users_role WHERE id IN (SELECT id FROM users_role ORDER BY id LIMIT 2)")
    with pytest.raises(MigrationError, match=r"stays open: 2 rows with ids of its form are left \(2 in user_service.roles\).* -e rollback_discard_rows=2;"):
        roll_back(migrated, scope="data")
    assert migrated.migration() is not None
    assert not roll_back(migrated, scope="data", discard_rows=2).changed
    assert migrated.migration() is None


def test_one_service_alone_is_warned_about_and_keeps_the_migration_open(migrated: Walk) -> None:
    done = roll_back(migrated, services=("user_service",))
    assert not done.complete
    assert "auth_service stays migrated" in done.warnings[0]
    assert state(migrated) == {"auth_service": "migrated", "user_service": "snapshot"}
    assert migrated.migration() is not None
    assert roll_back(migrated).complete
    assert state(migrated) == dict.fromkeys(SERVICES, "snapshot")
    assert migrated.migration() is None


@pytest.mark.parametrize("scope", ["databases", "data"])
def test_no_phase_enters_a_service_that_was_rolled_back_until_the_migration_is_closed(migrated: Walk, scope: str) -> None:
    assert phase_gate.pass_gate(migrated.context)[1] == ""
    roll_back(migrated, services=("user_service",), scope=scope)
    with pytest.raises(MigrationError, match=r"user_service was rolled back from migration .*; run playbooks/rollback.yml to its end"):
        phase_gate.pass_gate(migrated.context)
    assert "was rolled back from migration" in phase_gate.pass_gate(replace(migrated.context, check=True))[1]


def test_no_module_enters_a_service_that_was_rolled_back(migrated: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "from_params", lambda params, check: replace(migrated.context, check=check))
    sessions = {"secret_key": "secret", "state": "present"}
    writing: list[Callable[[], Any]] = [
        lambda: migration_repair.run(SimpleNamespace(params={}, check_mode=False)),
        lambda: migration_release.run(SimpleNamespace(params={"quarantine_cap": 10}, check_mode=False)),
        lambda: migration_sessions._present(migrated.context, None, None, sessions),
    ]
    roll_back(migrated, services=("user_service",))
    for work in writing:
        with pytest.raises(MigrationError, match=r"user_service was rolled back from migration .*; run playbooks/rollback.yml to its end"):
            work()
    options = {
        "runner": "runner1", "workers": 1, "chunk_rows": 100_000, "limits": {}, "statement_timeout": 0, "lock_timeout": 5, "snapshot_max_age": 60,
        "maintenance_work_mem": "64MB", "quarantine_cap": 10, "via": "direct",
    }  # fmt: skip
    foreseen = migration_copy.carry(SimpleNamespace(params=options, check_mode=True))
    assert "as things stand it would be refused: " in foreseen["msg"]
    assert "user_service was rolled back from migration" in foreseen["msg"]


@pytest.mark.parametrize(("action", "what"), [("CASCADE", "be deleted with them"), ("SET NULL", "lose the reference"), ("NO ACTION", "refer to nothing")])
def test_the_data_scope_removes_nothing_when_rows_of_others_refer_to_migrated_ones(migrated: Walk, action: str, what: str) -> None:
    database_, owner = migrated.service("auth_service"), migrated.context.targets["auth_service"].session_role
    ask(database_, f"CREATE TABLE own.notes (made_by uuid REFERENCES auth_service.users ON DELETE {action}); ALTER TABLE own.notes OWNER TO {owner}")
    ask(database_, "INSERT INTO own.notes SELECT id FROM auth_service.users ORDER BY id LIMIT 2")
    ask(database_, "ALTER TABLE auth_service.user_permissions ADD FOREIGN KEY (user_id) REFERENCES auth_service.users")  # between migrated rows
    before = migrated.content("auth_service")
    told = f"2 rows of own.notes refer to migrated rows of auth_service.users.*they would {what}; nothing was removed"
    assert re.search(f"would stop: .*{told}", "\n".join(preview.preview(migrated.context, migrated.rolling(scope="data")).lines))
    assert migrated.content("auth_service") == before
    with pytest.raises(MigrationError, match=told):
        roll_back(migrated, scope="data")
    assert migrated.content("auth_service") == before
    ask(database_, "DELETE FROM own.notes")
    assert "would stop" not in "\n".join(preview.preview(migrated.context, migrated.rolling(scope="data")).lines)
    assert roll_back(migrated, scope="data").complete


def test_a_schema_that_is_only_named_like_the_ledger_is_looked_at(migrated: Walk) -> None:
    database_, owner = migrated.service("auth_service"), migrated.context.targets["auth_service"].session_role
    ask(database_, f"CREATE SCHEMA migrations AUTHORIZATION {owner}; CREATE TABLE migrations.done AS SELECT 1 AS id")
    ask(database_, f"ALTER TABLE migrations.done OWNER TO {owner}")
    with pytest.raises(MigrationError, match=r"1 in auth_service\.migrations\.done"):
        roll_back(migrated)


def test_a_damaged_dump_is_refused_before_anything_is_touched(migrated: Walk) -> None:
    folder = Path(migrated.migration().snapshot)  # type: ignore[arg-type, union-attr]
    toc = folder / "auth_service" / "toc.dat"
    whole = toc.read_bytes()
    toc.write_bytes(whole[:-1])
    with pytest.raises(MigrationError, match=r"it was cut or changed.*taken on runner runner1; this run has changed nothing"):
        roll_back(migrated)
    assert state(migrated) == dict.fromkeys(SERVICES, "migrated")
    toc.write_bytes(whole)
    roll_back(migrated, services=("user_service",))
    toc.write_bytes(whole[:-1])
    with pytest.raises(MigrationError, match=r"it was cut or changed.* \(now auth_service is as before the rollback, user_service is as in the snapshot\)"):
        roll_back(migrated)
    assert migrated.history(KIND)[0].detail["states"] == {"auth_service": AS_BEFORE, "user_service": AS_SNAPSHOT}


def test_objects_of_other_owners_keep_them(walk: Walk) -> None:  # noqa: F811
    endpoint = walk.context.targets["user_service"]
    other, service = f"{endpoint.session_role}_other", walk.service("user_service")
    ask(walk.superuser, f"CREATE ROLE {other} NOLOGIN")
    ask(walk.superuser, f"GRANT {other} TO {endpoint.user}")
    ask(service, f"CREATE SCHEMA theirs AUTHORIZATION {other}; CREATE TABLE theirs.things (id serial PRIMARY KEY); ALTER TABLE theirs.things OWNER TO {other}")
    ask(service, f"CREATE EXTENSION citext; GRANT SELECT ON theirs.things TO {endpoint.session_role}; GRANT SELECT ON theirs.things_id_seq TO PUBLIC")
    ask(service, f"GRANT USAGE ON SCHEMA theirs TO {endpoint.session_role}; INSERT INTO theirs.things DEFAULT VALUES")
    take.take(walk.context, walk.taking(proof=True))
    walk.carry()
    roll_back(walk)
    assert set(walk.content("user_service")) == {"theirs.things"}
    assert ask(service, "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'theirs.things'::regclass") == other
    assert ask(service, "SELECT true FROM pg_extension WHERE extname = 'citext'")
    walk.superuser_drops(other, endpoint.dbname)


def test_what_would_make_a_rollback_impossible_is_named_before_it_is_needed(walk: Walk) -> None:  # noqa: F811
    endpoint = walk.context.targets["user_service"]
    ask(walk.service("user_service"), "CREATE EXTENSION pageinspect; CREATE SCHEMA foreign_owner; CREATE PUBLICATION p FOR ALL TABLES")
    ask(walk.superuser, f"ALTER ROLE {endpoint.user} NOCREATEDB")
    ask(walk.superuser, f"ALTER ROLE postgres IN DATABASE {endpoint.dbname} SET work_mem TO '5MB'")
    said = take.preview(walk.context, walk.taking()).lines[-1]
    parts = ("CREATEDB", "settings for postgres", "postgres owns publication p, schema foreign_owner", "extensions pageinspect", "publications of all tables")
    for part in parts:
        assert part in said
    ask(walk.superuser, f"REVOKE pg_signal_backend, {endpoint.session_role} FROM {endpoint.user}")
    ask(walk.superuser, f"GRANT CONNECT ON DATABASE {endpoint.dbname} TO {endpoint.user}")
    alone = replace(endpoint, session_role=None)
    lines = restore_blockers.obstacles(alone, "postgres")
    for right in ("CREATEDB", "not a member", "pg_signal_backend"):
        assert any(right in line for line in lines), right
    assert [line for line in lines if "rollback_scope=data" not in line] == [], "each says which scope works all the same"
    ask(walk.superuser, f"REVOKE CONNECT ON DATABASE {endpoint.dbname} FROM {endpoint.user}")
    ask(walk.superuser, f"GRANT pg_signal_backend, {endpoint.session_role} TO {endpoint.user}")
    with pytest.raises(MigrationError, match=r"the snapshot could not be proven: .*user_service could not be rolled back"):
        take.take(walk.context, walk.taking(proof=True))
    ask(walk.service("user_service"), "DROP PUBLICATION p")


def test_a_copy_that_is_not_the_snapshot_never_takes_the_name(migrated: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    real = restore.restore

    def spoiled(endpoint: Any, dumped: Any, folder: Path, dbname: str, *args: Any, **kwargs: Any) -> None:
        real(endpoint, dumped, folder, dbname, *args, **kwargs)
        if "auth" in dbname:
            ask(replace(migrated.superuser, dbname=dbname), "UPDATE own.audit SET said = 'other' WHERE id = 1")

    monkeypatch.setattr(restore, "restore", spoiled)
    with pytest.raises(MigrationError, match=r"own\.audit has the right number of rows .* but other content; the service is untouched"):
        roll_back(migrated)
    monkeypatch.undo()
    assert state(migrated) == dict.fromkeys(SERVICES, "migrated")
    roll_back(migrated)
    assert state(migrated) == dict.fromkeys(SERVICES, "snapshot")


KILLS = [
    (databases, "create", 1, True, ("migrated", "migrated")),
    (restore.clients, "run", 1, True, ("migrated", "migrated")),
    (restore, "prove", 1, True, ("migrated", "migrated")),
    (databases, "dress", 2, False, ("migrated", "migrated")),
    (rollback, "export_evidence", 1, True, ("migrated", "migrated")),
    (rename, "exchange", 1, False, ("migrated", "migrated")),
    (rename, "exchange", 1, True, ("snapshot", "migrated")),
    (rename, "exchange", 2, True, ("snapshot", "snapshot")),
    (control, "close", 1, False, ("snapshot", "snapshot")),
    (control, "close", 1, True, ("snapshot", "snapshot")),
]


@pytest.mark.parametrize(("module", "function", "call", "after", "states"), KILLS)
def test_a_killed_rollback_leaves_each_service_whole_and_goes_on(
    migrated: Walk, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, call: int, after: bool, states: tuple[str, str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, function, dying(getattr(module, function), call, after=after))
        die_in(lambda: roll_back(migrated))
    assert tuple(state(migrated).values()) == states
    roll_back(migrated)
    assert state(migrated) == dict.fromkeys(SERVICES, "snapshot")
    assert migrated.migration() is None
    assert not any("restored" in name for name in migrated.databases())
    recorded = [(item.outcome, item.detail.get("service"), item.detail.get("state")) for item in migrated.history(KIND)]
    assert [("exchanged", service, AS_SNAPSHOT) for service in reversed(SERVICES)] == [item for item in recorded if item[0] == "exchanged"]
    assert migrated.history(KIND)[0].detail["states"] == dict.fromkeys(SERVICES, AS_SNAPSHOT)


@pytest.mark.parametrize("moment", ["restore", "exchange"])
def test_a_killed_server_leaves_each_service_whole(
    migrated: Walk, services_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, moment: str  # noqa: F811
) -> None:
    def kill(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        number = lab_postgres.pid(services_server)
        assert number is not None
        os.kill(number, signal.SIGKILL)
        while process.alive(number, str(services_server.data)):
            pass
        return real(*args, **kwargs)

    place, name = (restore.clients, "run") if moment == "restore" else (rename, "_rename")
    real = getattr(place, name)
    monkeypatch.setattr(place, name, kill)
    with pytest.raises(MigrationError, match=r"pg_restore|exchanging names|cannot connect|keeping the migration's records"):
        roll_back(migrated)
    lab_postgres.start(services_server)
    assert state(migrated) == dict.fromkeys(SERVICES, "migrated")
    roll_back(migrated)
    assert state(migrated) == dict.fromkeys(SERVICES, "snapshot")


@pytest.mark.parametrize(("function", "call", "after"), [("_load_ids", 2, True), ("remove", 1, True)])
def test_a_killed_removal_leaves_each_service_whole_and_goes_on(
    migrated: Walk, monkeypatch: pytest.MonkeyPatch, function: str, call: int, after: bool
) -> None:
    full = {service: migrated.content(service) for service in SERVICES}
    with monkeypatch.context() as patch:
        patch.setattr(delete_rows, function, dying(getattr(delete_rows, function), call, after=after))
        die_in(lambda: roll_back(migrated, scope="data"))
    if function == "_load_ids":
        assert {service: migrated.content(service) for service in SERVICES} == full
    assert migrated.content("user_service") == full["user_service"]
    roll_back(migrated, scope="data")
    assert migrated.migration() is None
    assert {int(text.split()[0]) for name, text in migrated.content("user_service").items() if name.startswith("user_service")} == {0}


def test_the_data_scope_waits_for_a_chunk_in_flight_and_removes_its_rows_too(migrated: Walk) -> None:
    service = migrated.service("user_service")
    ask(service, "CREATE TABLE public.aside AS SELECT * FROM user_service.roles LIMIT 3")
    ask(service, "DELETE FROM user_service.roles WHERE id IN (SELECT id FROM public.aside)")
    flying = driver.connect(service, application_name="tests")
    driver.rows(flying, "INSERT INTO user_service.roles SELECT * FROM public.aside")
    driver.rows(flying, "UPDATE migration.chunks SET rows = rows WHERE id = (SELECT min(id) FROM migration.chunks)")
    going = threading.Thread(target=lambda: roll_back(migrated, scope="data"))
    going.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE migration.chunks%'"
    while not ask(migrated.superuser, waiting):
        assert going.is_alive()
    flying.commit()
    flying.close()
    going.join()
    assert migrated.migration() is None
    assert ask(service, "SELECT count(*) FROM user_service.roles") == 0
    removed = next(item for item in migrated.history(KIND) if item.outcome == "removed" and item.detail["service"] == "user_service")
    assert removed.detail["left"] == {"user_service.public.aside, which the role cannot read": 1}


def test_the_data_scope_looks_referring_rows_up_instead_of_reading_their_table_for_each_deleted_row(migrated: Walk) -> None:
    service = migrated.service("auth_service")
    ask(service, "ALTER TABLE auth_service.user_permissions ADD FOREIGN KEY (user_id) REFERENCES auth_service.users, ADD FOREIGN KEY (granted_by)"
        " REFERENCES auth_service.users")  # fmt: skip
    # Where there is an index it is used, however small the table; without one every deleted user costs two scans.
    ask(migrated.superuser, f"ALTER DATABASE {migrated.context.targets['auth_service'].dbname} SET enable_seqscan TO off")
    scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relid = 'auth_service.user_permissions'::regclass"
    before = ask(service, scans)
    roll_back(migrated, scope="data")
    assert ask(service, "SELECT count(*) FROM auth_service.users") == 0
    assert ask(service, scans) - before < 20
    assert ask(service, "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'migration_lent%'") == 0


def test_evidence_of_an_attempt_that_was_given_up_is_brought_up_to_date(migrated: Walk) -> None:
    endpoint = migrated.context.targets["auth_service"]
    folder = rollback.evidence_folder(migrated.migration())  # type: ignore[arg-type]
    rollback.export_evidence(endpoint, folder)
    ask(migrated.service("auth_service"), "INSERT INTO migration.id_map SELECT 'users', 'later', gen_random_uuid()")
    rollback.export_evidence(endpoint, folder)
    assert "users,later," in (folder / "auth_service.id_map.csv").read_text()


def test_the_data_scope_refuses_another_plan(migrated: Walk) -> None:
    other = replace(migrated.context, plan=replace(migrated.context.plan, fingerprint="0" * 16))
    with pytest.raises(MigrationError, match="mappings, the schema SQL or the namespace have changed"):
        rollback.roll_back(other, migrated.rolling(scope="data"))
