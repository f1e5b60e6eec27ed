# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Phases over a world of files: monolith.sql, services/<service>/010-tables.sql, mappings/<service>/*.yml."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.contract.parse import parse_texts
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan.compiler import compile_plan
from ansible.module_utils.migration.plan.mapping_files import read_mappings
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.preflight.run import Options, Report
from ansible.module_utils.migration.preflight.run import run as run_preflight
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair import reconcile
from ansible.module_utils.migration.schema import build, ddl
from ansible.module_utils.migration.schema.epilogue import plan_epilogue
from ansible.module_utils.migration.schema.tables import plan_schema
from ansible.module_utils.migration.state.limits import Limits
from ansible.module_utils.migration.transfer import run as transfer

NAMESPACE = "another namespace altogether, long enough"
PLAN_TIME = "2026-01-02 03:04:05.678"
FREE = Limits(cpu_percent=0, memory_percent=0, disk_percent=0)
Change = Callable[[str], str]


def compiled(world: Path, services: tuple[str, ...], change: dict[str, Change] | None = None, mappings: Path | None = None) -> Plan:
    """Return a world's plan; `change` rewrites a service's schema SQL."""
    contracts = {}
    for service in services:
        text = (world / "services" / service / "010-tables.sql").read_text()
        contracts[service] = parse_texts(service, [(f"{service}/010-tables.sql", (change or {}).get(service, str)(text))])
    return compile_plan(read_mappings(mappings or world / "mappings", services), contracts, ids.fingerprint(NAMESPACE))


def ask(endpoint: Endpoint, statement: str) -> list[tuple[object, ...]]:
    with closing(connect(endpoint, application_name="tests", readonly=True)) as connection:
        return driver.rows(connection, statement)


def look(context: Context) -> Report:
    return run_preflight(context, Options(space_folder=None, limits=FREE), None)


def stops(context: Context) -> list[str]:
    return [f"{item.place} {item.message}" for item in look(context).findings if item.level == "stop" and not item.place.startswith("runner ")]


def make_tables(context: Context) -> int:
    made = 0
    for name, data in context.plan.contracts:
        contract = Contract.from_dict(data)
        with closing(ddl.connect(context.targets[name], contract)) as connection:
            actions = plan_schema(connection, contract)
            ddl.apply(connection, actions)
        made += len(actions)
    return made


def carry(context: Context) -> transfer.Outcome:
    options = transfer.Options(runner="runner1", workers=2, chunk_rows=400, limits=FREE)
    return transfer.run(context, PLAN_TIME, "shop", options, Progress(None), reconcile.reconcile)


def index(context: Context) -> int:
    made = 0
    for name, data in context.plan.contracts:
        contract = Contract.from_dict(data)
        made += len(build.build(context.targets[name], contract).made)
        with closing(ddl.connect(context.targets[name], contract)) as connection:
            actions = plan_epilogue(connection, contract)
            ddl.apply(connection, actions)
        made += len(actions)
    return made


def uuid_of(entity: str, *key: int | str) -> str:
    """Return an id as docs/ids.md describes it, with nothing of the project's code."""
    secret = hashlib.sha256(NAMESPACE.encode()).digest()
    fields = b"".join(
        value.to_bytes(8, "big", signed=True) if isinstance(value, int) else len(value.encode()).to_bytes(4, "big") + value.encode() for value in key
    )
    digest = bytearray(hashlib.sha256(hashlib.sha256(secret + entity.encode()).digest() + fields).digest()[:16])
    digest[6] = digest[8] = 0x80
    return str(uuid.UUID(bytes=bytes(digest)))


def rows(endpoint: Endpoint, statement: str) -> set[tuple[object, ...]]:
    found = ask(endpoint, statement)
    assert len(set(found)) == len(found)
    return set(found)
