# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of tests that take snapshots and roll back; import them by name."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded import server as lab_postgres
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.plan.model import Plan

from tests.mutation.world import read_plan
from tests.walk.environment import Walk, build, remove


@pytest.fixture(scope="module")
def services_server(server_root: Path) -> Iterator[PostgresServer]:
    """A second server: services are never on the monolith's own."""
    account = process.Account.for_servers()
    server = PostgresServer(
        name="services",
        home=server_root / f"sv{secrets.token_hex(2)}",
        bin_dir=lab_postgres.binaries(server_root, account),
        password=secrets.token_urlsafe(18),
        settings={**lab_postgres.THROW_AWAY, "max_prepared_transactions": "5"},
        account=account,
    )
    lab_postgres.create(server)
    lab_postgres.start(server)
    yield server
    lab_postgres.stop(server)


@pytest.fixture(scope="module")
def project_plan() -> Plan:
    """The project's own plan."""
    return read_plan()


@pytest.fixture
def walk(postgres: PostgresServer, services_server: PostgresServer, project_plan: Plan, tmp_path: Path) -> Iterator[Walk]:
    """A fresh environment with a filled monolith, empty services and a passed preflight."""
    environment = build(postgres, services_server, project_plan, tmp_path / "snapshots")
    environment.pass_preflight()
    yield environment
    remove(environment)
