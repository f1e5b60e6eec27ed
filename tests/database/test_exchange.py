# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exchanging a service that is in use by others, with the rights that the role needs and no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import databases, driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.rollback import preview, rename
from ansible.module_utils.migration.rollback import run as rollback
from ansible.module_utils.migration.rollback.run import AS_SNAPSHOT, KIND
from ansible.module_utils.migration.snapshot import take

from tests.walk.environment import SERVICES, Walk, ask
from tests.walk.fixtures import project_plan, services_server, walk  # noqa: F401


@pytest.fixture
def migrated(walk: Walk) -> Walk:  # noqa: F811
    """An environment with a snapshot and everything carried; the login role has what the README says and no more."""
    ask(walk.superuser, f"REVOKE pg_monitor FROM {walk.context.targets['auth_service'].user}")
    take.take(walk.context, walk.taking())
    walk.carry()
    return walk


@pytest.fixture
def client(migrated: Walk) -> Iterator[Endpoint]:
    """The service's own way into auth_service: a role that the migration's role is no member of."""
    endpoint = migrated.context.targets["auth_service"]
    role = f"app_{endpoint.dbname}"
    ask(migrated.superuser, f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'app'; GRANT CONNECT ON DATABASE {endpoint.dbname} TO {role}")
    inside = migrated.service("auth_service")
    ask(inside, f"GRANT USAGE ON SCHEMA auth_service TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA auth_service TO {role}")
    yield replace(endpoint, user=role, password="app", session_role=None)
    for name in migrated.databases():
        ask(replace(migrated.superuser, dbname=name), f"DROP OWNED BY {role}")
    ask(migrated.superuser, f"DROP ROLE {role}")


def test_sessions_of_roles_that_the_migration_is_no_member_of_are_ended(migrated: Walk, client: Endpoint) -> None:
    inside = driver.connect(client, application_name="the service", autocommit=True)
    done = rollback.roll_back(migrated.context, migrated.rolling())
    assert dict(done.states) == dict.fromkeys(SERVICES, AS_SNAPSHOT)
    exchanged = next(item.detail for item in migrated.history(KIND) if item.outcome == "exchanged" and item.detail["service"] == "auth_service")
    assert exchanged["ended"] == [{"user": client.user, "application": "the service", "sessions": 1}]
    with pytest.raises(Exception, match=r"terminat|closed"):
        driver.rows(inside, "SELECT 1")


def test_sessions_that_the_role_may_not_end_are_named_before_anything_is_restored(migrated: Walk, client: Endpoint) -> None:
    user = migrated.context.targets["auth_service"].user
    ask(migrated.superuser, f"REVOKE pg_signal_backend FROM {user}")
    inside = driver.connect(client, application_name="the service", autocommit=True)
    said = r"1 sessions of other roles are in .*, which the role may not end; GRANT pg_signal_backend"
    assert said.split(".*")[0] in "\n".join(preview.preview(migrated.context, migrated.rolling()).lines)
    with pytest.raises(MigrationError, match=rf"auth_service cannot be rolled back: {said}"):
        rollback.roll_back(migrated.context, migrated.rolling())
    assert not any("restored" in name for name in migrated.databases())
    inside.close()


def test_a_logical_slot_goes_with_the_migrated_state_and_is_named(migrated: Walk, client: Endpoint) -> None:
    own = migrated.service("auth_service")
    slot = f"reader_{own.dbname}"
    ask(own, f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    ask(own, "CREATE PUBLICATION everything FOR TABLE auth_service.users")
    reading = _stream(client, slot, "everything")
    try:
        assert f"would leave the logical slots {slot}" in "\n".join(preview.preview(migrated.context, migrated.rolling()).lines)
        done = rollback.roll_back(migrated.context, migrated.rolling())
        assert f"with its logical slots {slot}: drop them there, their readers begin anew" in "\n".join(done.lines)
        kept = databases.derived(own.dbname, "migrated", done.run_id or "")
        assert ask(migrated.superuser, f"SELECT database FROM pg_replication_slots WHERE slot_name = '{slot}'") == kept
    finally:
        reading.close()
        ask(migrated.superuser, f"SELECT pg_drop_replication_slot('{slot}')")


def _stream(endpoint: Endpoint, slot: str, publication: str) -> Any:
    """Read a logical slot as a change feed does: by a walsender, which is no client backend."""
    from psycopg2 import connect, extras

    connection = connect(
        host=endpoint.host, port=endpoint.port, dbname=endpoint.dbname, user=endpoint.user, password=endpoint.password,
        connection_factory=extras.LogicalReplicationConnection,
    )  # fmt: skip
    cursor = connection.cursor()
    cursor.start_replication(slot_name=slot, decode=False, options={"proto_version": "1", "publication_names": publication})
    return connection


def test_rows_that_came_while_names_were_exchanged_are_told_and_kept(migrated: Walk, client: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rename.exchange

    def busy(endpoint: Endpoint, *args: Any, **kwargs: Any) -> Any:
        if endpoint.name == "auth_service":
            inside = driver.connect(client, application_name="the service", autocommit=True)
            driver.rows(inside, "INSERT INTO auth_service.users (username, email, password_hash) VALUES ('late', 'late@x.org', '')")
        return real(endpoint, *args, **kwargs)

    monkeypatch.setattr(rename, "exchange", busy)
    done = rollback.roll_back(migrated.context, migrated.rolling())
    kept = databases.derived(migrated.service("auth_service").dbname, "migrated", done.run_id or "")
    assert f"rows were written while it was exchanged and are in {kept} only: 1 in auth_service.users" in "\n".join(done.lines)
    assert next(item.detail["rows"] for item in migrated.history(KIND) if item.outcome == "late") == {"auth_service.users": 1}
    assert ask(replace(migrated.superuser, dbname=kept), "SELECT count(*) FROM auth_service.users WHERE username = 'late'") == 1


def test_a_service_that_is_never_left_alone_stays_as_it_was_with_the_reason(migrated: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rename, "TRIES", 1)
    monkeypatch.setattr(rename, "_end_sessions", lambda *args: None)  # a superuser comes in after everything was looked at
    real, inside = rename._rename, []

    def late(*args: Any) -> bool:
        inside.append(driver.connect(migrated.service("auth_service"), application_name="a superuser", autocommit=True))
        return real(*args)

    monkeypatch.setattr(rename, "_rename", late)
    before = {service: migrated.content(service) for service in SERVICES}
    with pytest.raises(MigrationError, match=r"could not be exchanged: 1 sessions of a superuser are in .*; the service is as before, then run this again"):
        rollback.roll_back(migrated.context, migrated.rolling())
    for connection in inside:
        connection.close()
    assert {service: migrated.content(service) for service in SERVICES} == before


def test_a_database_that_was_dropped_comes_back(migrated: Walk) -> None:
    own = migrated.service("auth_service")
    ask(migrated.superuser, f"DROP DATABASE {own.dbname} WITH (FORCE)")
    with pytest.raises(MigrationError, match=r"the database is not there any more; make an empty one of that name"):
        rollback.roll_back(migrated.context, migrated.rolling())
    ask(migrated.superuser, f"CREATE DATABASE {own.dbname} OWNER {migrated.context.targets['auth_service'].session_role} TEMPLATE template0")
    done = rollback.roll_back(migrated.context, migrated.rolling())
    assert done.complete
    assert dict(done.states) == dict.fromkeys(SERVICES, AS_SNAPSHOT)
