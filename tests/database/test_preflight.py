# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight on real databases: nothing is found in a clean monolith, everything in a dirty one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from ansible.module_utils.lab.postgres import PostgresServer
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.driver import Endpoint
from ansible.module_utils.migration.preflight import run as preflight
from ansible.module_utils.migration.preflight.findings import Finding

from tests.conftest import execute
from tests.mutation.world import NAMESPACE, SERVICES, fill, read_plan


@pytest.fixture
def context(databases: Callable[..., Endpoint]) -> Iterator[Context]:
    """A filled monolith, two empty services and an empty control database."""
    source = databases("monolith")
    targets = {service: databases(service) for service in SERVICES}
    fill(source, 300, seed=3)
    execute(source, "UPDATE users_role AS r SET granted_by = NULL WHERE NOT EXISTS (SELECT FROM auth_user AS u WHERE u.id = r.granted_by)")
    yield Context(plan=read_plan(), source=source, targets=targets, control=databases("control"), namespace=NAMESPACE)


@pytest.fixture
def options(postgres: PostgresServer) -> preflight.Options:
    return preflight.Options(bin_dir=str(postgres.bin_dir))


def found(report: preflight.Report, rule: str, column: str) -> Finding:
    """Return the one finding of a rule and a column."""
    matching = [item for item in report.findings if item.rule == rule and item.column == column]
    assert len(matching) == 1, [item for item in report.findings if item.level == "stop"]
    return matching[0]


def test_a_clean_monolith_passes(context: Context, options: preflight.Options) -> None:
    report = preflight.run(context, options, None)
    print("\n".join(str(i) for i in report.findings), report.seconds)
    assert [item for item in report.findings if item.level == "stop"] == []
    assert report.rows["auth_service.users", ""] > 300
