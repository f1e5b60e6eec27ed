# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A physical standby of the monolith is source enough: preflight, transfer and validation only read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded import server as lab_postgres
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import identity
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.preflight import run as preflight
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.schema import build, ddl
from ansible.module_utils.migration.schema.tables import plan_schema
from ansible.module_utils.migration.throttle.pacer import unhurried
from ansible.module_utils.migration.transfer import run as transfer
from ansible.module_utils.migration.validate import run as validate

from tests.conftest import execute
from tests.mutation.world import NAMESPACE, PLAN_TIME, SERVICES, fill, read_plan


@pytest.fixture
def standby(postgres: PostgresServer, databases: Callable[..., Endpoint], server_root: Path) -> Iterator[Endpoint]:
    """A filled monolith on the test server, reached through a physical standby of it."""
    source = databases("monolith")
    fill(source, 120, seed=3)
    execute(source, "UPDATE users_role AS r SET granted_by = NULL WHERE NOT EXISTS (SELECT FROM auth_user AS u WHERE u.id = r.granted_by)")
    copy = replace(postgres, name="standby", home=server_root / "standby")
    process.folder(copy.home, copy.account, 0o755)
    primary = f"host={postgres.home} port={lab_postgres.PORT} user={lab_postgres.SUPERUSER} password={postgres.password}"
    argv = [str(copy.bin_dir / "pg_basebackup"), f"--pgdata={copy.data}", f"--dbname={primary}", "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
    process.run(argv, copy.home, copy.account)
    lab_postgres.start(copy)
    yield copy.endpoint(source.dbname)
    lab_postgres.stop(copy)


def test_a_standby_is_judged_carried_from_and_proven(standby: Endpoint, databases: Callable[..., Endpoint], postgres: PostgresServer) -> None:
    targets = {service: databases(service) for service in SERVICES}
    control = databases("control")
    identity.require_distinct(standby, list(targets.values()), control)  # other databases of its primary
    with pytest.raises(MigrationError, match="are the same database"):
        identity.require_distinct(standby, [postgres.endpoint(standby.dbname)], control)
    context = Context(plan=read_plan(), source=standby, targets=targets, control=control, namespace=NAMESPACE)
    report = preflight.run(context, preflight.Options(bin_dir=str(postgres.bin_dir), limits=unhurried().limits), None)
    assert [item for item in report.findings if item.level == "stop"] == []
    about = {item.message for item in report.findings if item.place == standby.name and item.rule in ("version", "standby")}
    assert any(message.endswith("a standby") for message in about)
    assert any("cancels reads" in message for message in about)
    for name, data in context.plan.contracts:
        contract = Contract.from_dict(data)
        with closing(ddl.connect(targets[name], contract)) as connection:
            ddl.apply(connection, plan_schema(connection, contract))
    free = transfer.Options(runner="runner1", limits=unhurried().limits)
    transfer.run(context, PLAN_TIME, "run", free, Progress(None), lambda _context, _time: 0)
    for name, data in context.plan.contracts:
        build.build(targets[name], Contract.from_dict(data))
    assert validate.compare(context, PLAN_TIME).passed
    execute(standby, "SELECT pg_promote()")  # from now on it is a server of its own
    identity.require_distinct(standby, [postgres.endpoint(standby.dbname)], control)
