# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No text of an error is repeated: functions raise what they like, and PostgreSQL quotes what functions made of values."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from types import SimpleNamespace

import pytest
from ansible.module_utils.migration import module
from ansible.module_utils.migration.errors import DatabaseError, MigrationError
from ansible.module_utils.migration.postgres import driver, faults
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.postgres.quote import literal

from tests.conftest import execute

EMAIL, PASSWORD = "annabel@private.example", "pbkdf2_sha256$600000$salt$hash"
SECRETS = (EMAIL, PASSWORD, "annabel", "private", "pbkdf2")
RAISE = f"RAISE EXCEPTION USING MESSAGE = '{EMAIL} ' || '{PASSWORD}', DETAIL = '{EMAIL}', HINT = '{EMAIL}'"
CLAIMS = f", COLUMN = '{EMAIL}', CONSTRAINT = '{EMAIL}', TABLE = '{PASSWORD}', SCHEMA = '{EMAIL}', DATATYPE = '{EMAIL}'"
STATES = ("P0001", "22P02", "23505", "23503", "42501", "42P01", "40001", "55P03", "57014", "XX001", "ZZ999", "08006", "53100", "0A000")


def trigger(endpoint: Endpoint, body: str) -> None:
    """Give the table a trigger whose body this is."""
    execute(endpoint, f"CREATE OR REPLACE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN {body}; RETURN NEW; END $body$")


@pytest.fixture
def users(database: Endpoint) -> Endpoint:
    """Return a database with a table that has a trigger."""
    faults.know(("users", "email", "age", "users_email_key"))
    execute(
        database,
        "CREATE TABLE users (id integer, email text CONSTRAINT users_email_key UNIQUE, age smallint NOT NULL DEFAULT 1)",
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER audit BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION audit()",
    )
    return database


def fault_of(endpoint: Endpoint, statement: str = f"INSERT INTO users VALUES (1, {literal(EMAIL)})") -> DatabaseError:
    """Return what the statement's error becomes."""
    connecting = contextlib.closing(driver.connect(endpoint, application_name="tests", autocommit=True))
    with connecting as connection, pytest.raises(DatabaseError) as caught, driver.database_errors("here", "writing"):
        driver.rows(connection, statement)
    assert not [secret for secret in SECRETS if secret in str(caught.value)], str(caught.value)
    assert caught.value.step
    return caught.value


@pytest.mark.parametrize("state", STATES)
def test_a_raised_text_is_not_shown_under_whatever_state_and_names(users: Endpoint, state: str) -> None:
    trigger(users, f"{RAISE}{CLAIMS}, ERRCODE = '{state}'")
    said = str(fault_of(users))
    assert said.startswith(f"here: writing: an error that a function raised during INSERT INTO users [SQLSTATE {state}]; ")
    assert said.endswith(faults.RAISED_STEP)


@pytest.mark.parametrize(
    "body",
    [
        f"EXECUTE format('SELECT * FROM %I', '{EMAIL}')",
        f"EXECUTE 'SELECT ' || '{PASSWORD}'",
        f"PERFORM '{EMAIL}'::integer",
        f"PERFORM set_config('{EMAIL}', 'x', false)",
        f"EXECUTE format('CREATE TEMP TABLE made (n integer CONSTRAINT %I CHECK (n > 0))', '{EMAIL}'); INSERT INTO made VALUES (0)",
        f"EXECUTE format('CREATE TEMP TABLE %I (%I integer NOT NULL)', '{PASSWORD}', '{EMAIL}'); EXECUTE format('INSERT INTO %I VALUES (NULL)', '{PASSWORD}')",
        f"PERFORM json_in('{{\"{EMAIL}'::cstring)",
        f"ASSERT false, '{EMAIL}'",
        f"PERFORM to_date('{EMAIL}', 'YYYY-MM-DD')",
    ],
)
def test_neither_is_what_postgresql_quotes_of_values_that_a_function_made_names_of(users: Endpoint, body: str) -> None:
    trigger(users, body)
    assert "SQLSTATE" in str(fault_of(users))


def test_an_error_of_postgresql_itself_names_what_is_known_and_nothing_else(users: Endpoint) -> None:
    execute(users, f"INSERT INTO users VALUES (1, {literal(EMAIL)})", "CREATE TABLE stranger (n integer CONSTRAINT a_rule_of_theirs CHECK (n > 0))")
    said = fault_of(users).fault
    assert said == "two rows have the same key (constraint users_email_key, table public.users) [SQLSTATE 23505]"
    assert fault_of(users, "INSERT INTO users VALUES (2, 'x', NULL)").fault == (
        "a row has no value where one is needed (table public.users, column age) [SQLSTATE 23502]"
    )
    assert fault_of(users, "SELECT nothing FROM users").fault == "it does not exist (column nothing) [SQLSTATE 42703]"
    said = fault_of(users, "DO 'BEGIN INSERT INTO stranger VALUES (0); END'").fault
    assert said == "a row breaks a CHECK [SQLSTATE 23514]"
    assert fault_of(users, f"SELECT {literal(EMAIL)}::integer").fault == "a value cannot be read as its type (type integer) [SQLSTATE 22P02]"


def test_an_event_trigger_that_raises_leaves_place_fault_and_step(database: Endpoint) -> None:
    execute(
        database,
        f"CREATE FUNCTION no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN {RAISE}; END $$",
        "CREATE EVENT TRIGGER no_ddl ON ddl_command_start EXECUTE FUNCTION no_ddl()",
    )
    said = str(fault_of(database, "CREATE TABLE IF NOT EXISTS things (n integer)"))
    assert said.startswith("here: writing: an error that a function raised during CREATE TABLE things [SQLSTATE P0001]; a function there raised it (a trigger")


def test_a_login_that_fails_says_why_without_the_servers_words(database: Endpoint) -> None:
    if driver.scalar(connection := driver.connect(database, application_name="tests"), "SHOW server_version_num") >= "170000":
        execute(
            database,
            f"CREATE FUNCTION no_login() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN {RAISE}; END $$",
            "CREATE EVENT TRIGGER no_login ON login EXECUTE FUNCTION no_login()",
        )
        with pytest.raises(MigrationError, match=r"cannot connect to test .*; check login_\* and ssl_\* in host_vars/test") as caught:
            driver.connect(database, application_name="tests")
        assert not [secret for secret in SECRETS if secret in str(caught.value)]
        driver.rows(connection, "DROP EVENT TRIGGER no_login")
        connection.commit()
    connection.close()


class Ended(Exception):
    """What a module told Ansible."""


@pytest.mark.parametrize("kind", ["raised", "bug", "lost"])
def test_a_module_ends_with_one_line_and_no_error_behind_it(
    users: Endpoint, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored afterwards
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    trigger(users, f"{RAISE}, ERRCODE = '23505'")

    def work(_module: object) -> dict[str, object]:
        if kind == "bug":
            raise KeyError(EMAIL)
        with contextlib.closing(driver.connect(users, application_name="tests", autocommit=True)) as connection:
            if kind == "lost":
                driver.rows(connection, "SELECT pg_terminate_backend(pg_backend_pid())")
            driver.rows(connection, f"INSERT INTO users VALUES (1, {literal(EMAIL)})")
        return {}

    def fail_json(**result: object) -> None:
        assert sys.exc_info() == (None, None, None)  # a traceback would show it
        raise Ended(json.dumps(result))

    with pytest.raises(Ended) as caught:
        module.finish(SimpleNamespace(fail_json=fail_json, exit_json=None), work)
    said = str(caught.value)
    assert caught.value.__context__ is None
    assert not [secret for secret in SECRETS if secret in said]
    assert {"raised": "SQLSTATE 23505", "bug": "this is a bug; please report it: KeyError in test_raised_errors.py", "lost": "run this again"}[kind] in said
    assert capsys.readouterr().err == ""
