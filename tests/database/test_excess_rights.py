# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A reader that could do more than read is warned of, each time with the statement that ends it: run as printed, nothing is left to say."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.preflight import excess_rights

from tests.conftest import execute

MARK = secrets.token_hex(3)
READER, GROUP, BOSS = f"Reader {MARK}", f"group_{MARK}", f"boss_{MARK}"


@pytest.fixture(scope="module")
def quoted() -> dict[str, str]:
    return {"reader": f'"{READER}"', "group": GROUP, "boss": BOSS}


@pytest.fixture
def source(databases: Callable[..., Endpoint], quoted: dict[str, str]) -> Iterator[Endpoint]:
    """A monolith with a reader that only reads, reached as superuser."""
    made = databases("monolith")
    for role, more in ((quoted["reader"], "LOGIN PASSWORD 'x'"), (GROUP, ""), (BOSS, "CREATEROLE")):
        execute(made, f"CREATE ROLE {role} {more}")
    execute(
        made,
        'CREATE TABLE users (id int PRIMARY KEY, name text); CREATE TABLE notes (id int); CREATE SCHEMA tenant; CREATE TABLE tenant."Big note" (id int)',
        f"REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public, tenant TO {quoted['reader']}",
        f"GRANT SELECT ON users, notes TO {quoted['reader']}; GRANT pg_read_all_data, pg_monitor TO {quoted['reader']}",
        f"GRANT DELETE ON notes TO {quoted['reader']}",  # is not mapped
    )
    yield made
    for role in (quoted["reader"], GROUP, BOSS):
        execute(made, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def found(source: Endpoint) -> list[tuple[str, str]]:
    asked = replace(source, user=READER, password="x")
    with closing(driver.connect(asked, application_name="tests", autocommit=True)) as connection:
        findings = excess_rights.check(connection, "monolith", "public", ["users", "tenant.Big note"])
    assert all(item.level == "warn" and item.rule == "privilege" and READER in item.message for item in findings)
    return [(item.message, item.next_step) for item in findings]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ALTER ROLE {reader} SUPERUSER", "is a superuser"),
        ("ALTER ROLE {reader} CREATEROLE CREATEDB REPLICATION BYPASSRLS", "has CREATEROLE, CREATEDB, REPLICATION, BYPASSRLS"),
        ('GRANT INSERT, DELETE ON users, tenant."Big note" TO {reader}', 'may DELETE, INSERT on public.users, tenant."Big note"'),
        ("GRANT UPDATE (name) ON users TO {reader}", "may UPDATE on public.users"),
        ("GRANT TRUNCATE ON users TO PUBLIC", "may TRUNCATE on public.users"),
        ("GRANT CREATE ON SCHEMA tenant TO {reader}", "may CREATE on tenant"),
        ("GRANT pg_write_all_data TO {group}; GRANT {group} TO {reader}", "can act as pg_write_all_data"),
        ("GRANT pg_execute_server_program, pg_read_server_files TO {reader}", "can act as pg_execute_server_program"),
        ("GRANT {boss} TO {reader}", "can act as boss_"),
        ("GRANT INSERT ON users TO {group}; GRANT {group} TO {reader}", "may INSERT on public.users"),
        ("ALTER TABLE users OWNER TO {group}; GRANT {group} TO {reader}", "may DELETE, INSERT, TRIGGER, TRUNCATE, UPDATE on public.users"),
    ],
)
def test_what_a_reader_may_do_beyond_reading_ends_with_the_statement_that_is_given(source: Endpoint, quoted: dict[str, str], given: str, said: str) -> None:
    assert found(source) == []
    execute(source, given.format(**quoted))
    warned = found(source)
    assert said in warned[0][0]
    execute(source, *(step for _, step in warned))
    assert found(source) == []


def test_a_reader_that_owns_what_it_reads_is_told_to_be_another_role_and_policies_need_their_attribute(source: Endpoint, quoted: dict[str, str]) -> None:
    execute(source, f"ALTER TABLE users OWNER TO {quoted['reader']}")
    ((message, step),) = found(source)
    assert "owns public.users" in message
    assert "a role that owns nothing" in step
    execute(source, "ALTER TABLE users OWNER TO postgres", "ALTER TABLE users ENABLE ROW LEVEL SECURITY", f"ALTER ROLE {quoted['reader']} BYPASSRLS")
    assert found(source) == []
