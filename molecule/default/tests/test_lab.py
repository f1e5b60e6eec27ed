# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab that every scenario works on is complete and reachable with what its inventory says."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
import yaml

INVENTORY = Path(__file__).resolve().parents[3] / "inventories" / "molecule"


def variables(host: str) -> dict[str, Any]:
    folders = [INVENTORY / "group_vars" / "all", INVENTORY / "group_vars" / "databases", INVENTORY / "host_vars" / host]
    return {key: value for folder in folders for file in sorted(folder.glob("*.yml")) for key, value in yaml.safe_load(file.read_text()).items()}


def ask(host: str, statement: str) -> Any:
    at = variables(host)
    with (
        psycopg2.connect(
            host=at["login_host"], port=at["login_port"], dbname=at["login_db"], user=at["login_user"], password=at["login_password"]
        ) as connection,
        connection.cursor() as cursor,
    ):
        if "session_role" in at:
            cursor.execute(f"SET ROLE {at['session_role']}")
        cursor.execute(statement)
        found = cursor.fetchone()
    connection.close()
    return found[0] if found else None


def test_the_reader_reads_the_monolith_and_writes_nothing() -> None:
    assert ask("monolith", "SELECT count(*) FROM auth_user") == 500
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        ask("monolith", "DELETE FROM django_session RETURNING 1")


@pytest.mark.parametrize("host", ["auth_service", "user_service"])
def test_a_service_database_belongs_to_a_role_that_the_migrator_acts_as(host: str) -> None:
    assert ask(host, "SELECT current_user") == host
    assert ask(host, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()") == host
    assert ask(host, "SELECT rolcreatedb AND NOT rolsuper FROM pg_roles WHERE rolname = session_user") is True
    assert ask(host, "SELECT rolcanlogin FROM pg_roles WHERE rolname = current_user") is False


def test_the_records_have_a_database_of_their_own() -> None:
    assert ask("migration_control", "SELECT current_database() || ' ' || current_user") == "migration_control migrator"


def test_the_session_store_takes_its_password() -> None:
    at = variables("sessions")
    with redis.Redis(**at["session_store_hosts"][0], db=at["session_store_db"], password=at["session_store_password"]) as store:
        assert store.ping()


def test_only_its_user_reads_what_the_lab_wrote() -> None:
    for file in INVENTORY.glob("*_vars/*/lab.yml"):
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600, file


def test_ansible_sees_literal_values(host: Any) -> None:
    listed = json.loads(host.check_output(f"ansible-inventory -i {INVENTORY} --list"))
    assert "{{" not in listed["_meta"]["hostvars"]["monolith"]["login_host"]
