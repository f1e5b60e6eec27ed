# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench's own lab: three servers with their default durability, a monolith of the wanted size, empty services."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from ansible.module_utils.lab import lab, layout
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.schema import ddl
from ansible.module_utils.migration.schema.tables import plan_schema

from tests.mutation.world import NAMESPACE, PLAN_TIME, SERVICES, read_plan

__all__ = ["NAMESPACE", "PLAN_TIME", "SERVICES", "World", "empty_targets", "statement", "world"]

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class World:
    """The servers of a bench; superuser endpoints, because it creates and drops databases."""

    context: Context
    bin_dir: Path
    folder: Path
    inventory: Path
    servers: Mapping[str, int]  # by name, the postmaster's process id


@contextlib.contextmanager
def world(users: int, group_permissions: int, sessions: int = 400) -> Iterator[World]:
    """Start a lab of its own with a filled monolith; everything is deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="edulink-bench-"))
    inventory = folder / "bench"
    shutil.copytree(PROJECT / "inventories" / "lab", inventory, ignore=shutil.ignore_patterns("lab.yml"))
    options = lab.Options(
        state_dir=folder / "state",
        inventory_dir=inventory,
        monolith_dir=PROJECT / "tests" / "monolith",
        users=users,
        group_permissions=group_permissions,
        sessions=sessions,
    )
    try:
        lab.start(options, check=False)
        state = layout.read_state(options.state_dir)
        assert state is not None
        servers = lab.describe(options, state).servers
        plan = read_plan()
        endpoints = {name: server.endpoint(_variables(inventory, name)["login_db"]) for name, server in servers.items()}
        context = Context(
            plan=plan,
            source=endpoints["monolith"],
            targets={service: endpoints[service] for service in SERVICES},
            control=servers["user_service"].endpoint("migration_control"),
            namespace=NAMESPACE,
        )
        masters = {name: int((server.data / "postmaster.pid").read_text().split()[0]) for name, server in servers.items()}
        yield World(context, servers["monolith"].bin_dir, folder, inventory, masters)
    finally:
        lab.delete(options, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _variables(inventory: Path, host: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted((inventory / "host_vars" / host).glob("*.yml")):
        found |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return found


def statement(endpoint: Endpoint, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    connection = driver.connect(endpoint, application_name="bench", autocommit=True)
    try:
        for text in statements:
            driver.rows(connection, text)
    finally:
        connection.close()


def empty_targets(found: World) -> None:
    """Make both services' databases new, with the tables that the schema phase makes; checkpoint all servers."""
    for service, data in found.context.plan.contracts:
        endpoint = found.context.targets[service]
        maintenance = Endpoint(**{**endpoint.__dict__, "dbname": "postgres"})
        statement(maintenance, f'DROP DATABASE "{endpoint.dbname}" WITH (FORCE)', f'CREATE DATABASE "{endpoint.dbname}"')
        contract = Contract.from_dict(data)
        connection = ddl.connect(endpoint, contract)
        ddl.apply(connection, plan_schema(connection, contract))
        connection.close()
        statement(maintenance, "CHECKPOINT")
    statement(found.context.source, "CHECKPOINT")
