# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that are one database are told by their server, however they are spelled, and no module writes then."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.migration.contract.parse import parse_texts
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.postgres import driver, identity
from ansible.module_utils.migration.postgres.driver import Endpoint, connect

from tests.conftest import PROJECT

NAMESPACE = "a namespace of the identity tests"
ONLY_TELL = {"migration_report", "migration_status"}
MODULES = sorted(path.stem for path in (PROJECT / "library").glob("*.py") if "Context.from_params(" in path.read_text() and path.stem not in ONLY_TELL)


class Params(dict[str, Any]):
    """A module's options: those that are not given are None."""

    def __missing__(self, name: str) -> None:
        return None


@pytest.fixture
def hosts(databases: Callable[..., Endpoint]) -> dict[str, Endpoint]:
    """Databases of one server, each of its own, each reached by its owner."""
    return {name: replace(databases(name, role=True), name=name) for name in ("monolith", "one", "two", "control")}


def spelled(endpoint: Endpoint, folder: Path) -> Endpoint:
    """Return another way to the same server: its socket's folder by another name."""
    link = folder / "other"
    link.symlink_to(endpoint.host)
    return replace(endpoint, host=str(link), name="spelled")


def require(hosts: dict[str, Endpoint]) -> None:
    identity.require_distinct(hosts["monolith"], [hosts["one"], hosts["two"]], hosts["control"])


def test_databases_of_one_server_are_told_apart(hosts: dict[str, Endpoint]) -> None:
    require(hosts)


@pytest.mark.parametrize(
    ("same", "of", "harm"),
    [
        ("one", "monolith", "would be made in the monolith itself"),
        ("two", "one", "give each service a database of its own"),
        ("control", "two", "would take the migration's records with it"),
        ("control", "monolith", "the monolith is only read"),
    ],
)
def test_one_database_in_two_spellings_is_refused(hosts: dict[str, Endpoint], same: str, of: str, harm: str, tmp_path: Path) -> None:
    hosts[same] = spelled(hosts[of], tmp_path)
    with pytest.raises(MigrationError, match=rf"{of} \(.*spelled \(.* are the same database: .*{harm}.*host_vars/"):
        require(hosts)


def test_a_host_that_cannot_be_reached_keeps_nobody_from_rolling_back(hosts: dict[str, Endpoint]) -> None:
    require({**hosts, "monolith": replace(hosts["monolith"], host="/nowhere")})


def test_a_role_that_may_not_ask_for_the_system_identifier_is_told_too(hosts: dict[str, Endpoint], postgres: Any, tmp_path: Path) -> None:
    superuser = replace(postgres.endpoint(hosts["one"].dbname), name="superuser")
    connection = connect(superuser, application_name="tests", autocommit=True)
    driver.rows(connection, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    connection.close()
    with pytest.raises(MigrationError, match="are the same database"):
        require({**hosts, "two": spelled(hosts["one"], tmp_path)})


@pytest.mark.parametrize("check", [False, True])
def test_no_module_works_where_a_target_is_the_monolith(hosts: dict[str, Endpoint], check: bool) -> None:
    refused = set()
    for name in MODULES:
        module = importlib.import_module(f"ansible.modules.{name}")
        run = module.carry if name == "migration_copy" else module.run
        try:
            run(SimpleNamespace(check_mode=check, params=params({**hosts, "one": replace(hosts["monolith"], name="one")})))
        except MigrationError as exc:
            if "are the same database" in str(exc):
                refused.add(name)
    assert refused == set(MODULES)
    for host in hosts.values():
        with connect(host, application_name="tests", readonly=True) as connection:
            assert driver.scalar(connection, "SELECT to_regnamespace('migration')") is None, f"{host.name} was written to"


def params(hosts: dict[str, Endpoint]) -> Params:
    """Return the options of a module for these databases."""
    contract = parse_texts("one", [("one/1.sql", "CREATE SCHEMA one; CREATE TABLE one.things (id uuid PRIMARY KEY)")])
    plan = Plan(targets=(), entities=(), contracts=(("one", contract.to_dict()),), fingerprint=ids.fingerprint(NAMESPACE))
    given = {name: option(endpoint, name) for name, endpoint in hosts.items()}
    connections = {"source": given["monolith"], "targets": [given["one"], given["two"]], "control": given["control"], "namespace": NAMESPACE}
    return Params(plan=plan.to_dict(), connections=connections, jobs=1, service="one", state="present", store={"hosts": []})


def option(endpoint: Endpoint, name: str) -> dict[str, Any]:
    """Return an endpoint as a module's option."""
    return {
        "name": name,
        "login_host": endpoint.host,
        "login_port": endpoint.port,
        "login_db": endpoint.dbname,
        "login_user": endpoint.user,
        "login_password": endpoint.password,
        "ssl_mode": endpoint.sslmode,
    }
