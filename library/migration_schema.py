#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create a service's tables as its own SQL says."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_schema
short_description: Create a service's tables as its own SQL says
description:
  - Creates the schemas, types, functions and tables (columns, defaults, NOT NULL, CHECK) of one service's contract in one
    transaction, and sets the database's C(search_path) so that bare table names work, where the role owns the database.
  - What exists and is equal is left; what exists and differs stops the module before anything is changed.
  - Keys and indexes are made after the load by C(migration_index).
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
options:
  service:
    description: The service whose database is meant, the name of its inventory host.
    type: str
    required: true
  lock_timeout:
    description: How long to wait for a lock, as PostgreSQL writes it.
    type: str
    default: 5s
requirements:
  - psycopg2
attributes:
  check_mode:
    support: full
    description: Reads in read-only sessions and writes nothing, in no database.
  diff_mode:
    support: full
    description: Shows the DDL.
  idempotent:
    support: full
    description: A second run changes nothing.
"""

EXAMPLES = r"""
- name: Create the tables of the authentication service
  migration_schema:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    service: auth_service
"""

RETURN = r"""
actions:
  description: What was (in check mode, would be) created.
  type: list
  elements: dict
  returned: success
  sample: [{kind: table, object: auth_service.users, sql: "CREATE TABLE ...;", note: ""}]
msg:
  description: The same in a line.
  type: str
  returned: success
"""

import contextlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.schema import ddl
from ..module_utils.migration.schema.tables import plan_schema
from ..module_utils.migration.state import phase_gate
from ..module_utils.migration.text import counted


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError when the database is not as the contract allows."""
    context = Context.from_params(module.params, module.check_mode)
    service = module.params["service"]
    endpoint, contract = ddl.target(context.plan, context.targets, service)
    migration, required = phase_gate.pass_gate(context)
    with contextlib.closing(ddl.connect(endpoint, contract, readonly=True)) as connection:
        actions = plan_schema(connection, contract)
    doable = [action for action in actions if action.steps]
    if doable and not context.check:
        with contextlib.closing(ddl.connect(endpoint, contract)) as connection:
            ddl.apply(connection, doable, lock_timeout=module.params["lock_timeout"])
    phase_gate.record(context, "schema", "passed", {"service": service, "made": [action.object for action in doable]}, migration)
    tables = sum(action.kind == "table" for action in doable)
    others = len(doable) - tables
    what = f"nothing, all {len(contract.tables)} tables are as the contract says"
    if doable:
        what = f"{counted(tables, 'table')}, {counted(others, 'other object')}"
    notes = [f"{action.object}: {action.note}" for action in actions if action.note and not action.steps]
    line = "; ".join([f"{service}: {'would create' if context.check else 'created'} {what}", *notes, *([required] if required else [])])
    return {
        "changed": bool(doable),
        "actions": [ddl.described(action) for action in actions],
        "msg": line,
        "diff": ddl.diff(endpoint.place, actions),
    }


def main() -> None:
    """Read the options, create, report."""
    module = MigrationModule(
        argument_spec={
            **CONTEXT_SPEC,
            "service": {"type": "str", "required": True},
            "lock_timeout": {"type": "str", "default": "5s"},
        },
        supports_check_mode=True,
    )
    finish(module, run)


if __name__ == "__main__":
    main()
