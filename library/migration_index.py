#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the keys, indexes and constraints that a service's own SQL says."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_index
short_description: Make the keys, indexes and constraints that a service's own SQL says
description:
  - Makes primary keys, UNIQUE, foreign keys, CHECK and indexes of one service's contract after the load, several at a time, then
    triggers, views, comments and grants, then runs ANALYZE on tables that need it.
  - What exists and is equal, under whatever name, is left. An invalid index that a killed run left is dropped and built again.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
options:
  service:
    description: The service whose database is meant, the name of its inventory host.
    type: str
    required: true
  state:
    description:
      - With V(present) what is missing is made.
      - With V(absent) what this module made in the open migration is dropped; keys that were there before stay.
    type: str
    choices: [present, absent]
    default: present
  mode:
    description:
      - V(plain) builds fast and blocks writers of the table meanwhile; V(concurrent) builds with CONCURRENTLY and NOT VALID, blocks nobody
        and takes about 1.5 times as long.
      - V(auto) takes V(concurrent) for a table that somebody else uses. That is a session which does not belong to this migration and
        either holds a lock on the table, or belongs to a role without superuser rights that holds a privilege on the table.
    type: str
    choices: [auto, plain, concurrent]
    default: auto
  jobs:
    description: How many objects of this database are built at a time.
    type: int
    default: 2
  maintenance_work_mem:
    description: Memory of each build, as PostgreSQL writes it.
    type: str
    default: 256MB
  parallel_workers:
    description: PostgreSQL's C(max_parallel_maintenance_workers); the server's own setting where it is not given.
    type: int
  lock_timeout:
    description: How long a statement outside CONCURRENTLY waits for a lock before it steps back and tries again.
    type: str
    default: 5s
  lock_tries:
    description: How many times it tries.
    type: int
    default: 60
  progress_file:
    description: Where to write how far the work is; set by the action plugin.
    type: path
requirements:
  - psycopg2
attributes:
  check_mode:
    support: full
    description: Reads in read-only sessions and writes nothing, in no database. Tables that do not exist yet are taken for created.
  diff_mode:
    support: full
    description: Shows the DDL.
  idempotent:
    support: full
    description: A second run changes nothing.
"""

EXAMPLES = r"""
- name: Make the keys and indexes of the user service
  migration_index:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    service: user_service

- name: Drop them again
  migration_index:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    service: user_service
    state: absent
"""

RETURN = r"""
actions:
  description: What was (in check mode, would be) made or dropped.
  type: list
  elements: dict
  returned: success
  sample: [{kind: index, object: idx_roles_user_id on user_service.roles, seconds: 1.2, sql: "CREATE INDEX ...;", note: ""}]
seconds:
  description: The wall seconds of building and ANALYZE.
  type: float
  returned: success
msg:
  description: The same in a line.
  type: str
  returned: success
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.contract.model import Contract
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.postgres import driver
from ..module_utils.migration.progress import Progress
from ..module_utils.migration.schema import build, ddl
from ..module_utils.migration.schema.build import Built
from ..module_utils.migration.schema.ddl import Action
from ..module_utils.migration.schema.epilogue import plan_epilogue
from ..module_utils.migration.schema.indexes import plan_index
from ..module_utils.migration.state import control, phase_gate
from ..module_utils.migration.state.control import Migration
from ..module_utils.migration.stopping import stop_with_ansible
from ..module_utils.migration.text import counted

PHASE = "index"
# What an action makes, one and many; another kind is its own noun (a trigger, two triggers).
NOUNS: Mapping[str, tuple[str, ...]] = {
    "primary_key": ("primary key",),
    "unique": ("unique key",),
    "index": ("index", "indexes"),
    "check": ("CHECK", "CHECK"),
    "foreign_key": ("foreign key",),
    "analyze": ("ANALYZE", "ANALYZE"),
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError when something cannot be made."""
    params = module.params
    context = Context.from_params(params, module.check_mode)
    endpoint, contract = ddl.target(context.plan, context.targets, params["service"])
    options = build.Options(
        jobs=params["jobs"],
        memory=params["maintenance_work_mem"],
        parallel=params["parallel_workers"],
        lock_timeout=params["lock_timeout"],
        lock_tries=params["lock_tries"],
    )
    migration, required = phase_gate.pass_gate(context)
    if params["state"] == "absent":
        result = _absent(context, endpoint, contract, options, migration)
    else:
        result = _present(context, endpoint, contract, options, migration, params)
    if required:
        result["msg"] += f"; {required}"
    return result


def _present(
    context: Context, endpoint: driver.Endpoint, contract: Contract, options: build.Options, migration: Migration | None, params: dict[str, Any]
) -> dict[str, Any]:
    with contextlib.closing(ddl.connect(endpoint, contract, readonly=True)) as connection:
        actions = plan_index(connection, contract, params["mode"], assume_tables=context.check)
        epilogue = plan_epilogue(connection, contract, assume_tables=context.check)
        touched = sorted({action.tables[0] for action in actions if action.tables})
        analyses = build.plan_analyze(connection, contract, touched)
    planned = (*actions, *epilogue, *analyses)
    made: list[Built] = []
    seconds = 0.0
    if planned and not context.check:
        # The list of what will be made is kept first, so that a killed run's work can be undone too.
        phase_gate.record(context, PHASE, "begun", _detail(contract, [Built(item.kind, item.object, 0.0, item.undo) for item in actions]), migration)
        progress = Progress(params["progress_file"])

        def announce(built: Built) -> None:
            made.append(built)
            progress.update(PHASE, f"{contract.service} keys and indexes", len(made), len(actions) + len(analyses), unit="objects")

        progress.update(PHASE, f"{contract.service} keys and indexes", 0, len(actions) + len(analyses), unit="objects")
        seconds = build.build(endpoint, contract, mode=params["mode"], options=options, announce=announce).seconds
        with contextlib.closing(ddl.connect(endpoint, contract)) as connection:
            ddl.apply(connection, epilogue, lock_timeout=options.lock_timeout)
        seconds += build.analyze(endpoint, contract, touched=touched, options=options, announce=announce).seconds
        progress.close()
        phase_gate.record(context, PHASE, "passed", _detail(contract, made), migration)
    elif not context.check:
        phase_gate.record(context, PHASE, "passed", _detail(contract, []), migration)
    return {
        "changed": bool(planned),
        "actions": _described(planned, made),
        "seconds": round(seconds, 3),
        "msg": f"{contract.service}: {'would make' if context.check else 'made'} {_counted(planned)}"
        + ("" if context.check or not planned else f" in {seconds:.1f} s"),
        "diff": ddl.diff(endpoint.place, planned),
    }


def _absent(context: Context, endpoint: driver.Endpoint, contract: Contract, options: build.Options, migration: Migration | None) -> dict[str, Any]:
    made: list[dict[str, str]] = []
    if migration is not None:
        with contextlib.closing(control.connect(context.control, readonly=context.check)) as connection:
            for record in control.history(connection, kind=PHASE, migration=migration, limit=10_000):
                if record.detail["service"] == contract.service and record.outcome in ("begun", "passed"):
                    made += record.detail["made"]
    with contextlib.closing(ddl.connect(endpoint, contract, readonly=True)) as connection:
        actions = build.plan_drop(connection, contract, made)
    seconds = 0.0
    if actions and not context.check:
        seconds = build.drop(endpoint, contract, actions, options).seconds
        phase_gate.record(context, PHASE, "dropped", {"service": contract.service, "dropped": [action.object for action in actions]}, migration)
    words = counted(len(actions), "key or index", "keys and indexes") if actions else "nothing: this migration made none that still exist"
    return {
        "changed": bool(actions),
        "actions": _described(actions, []),
        "seconds": round(seconds, 3),
        "msg": f"{contract.service}: {'would drop' if context.check else 'dropped'} {words}",
        "diff": ddl.diff(endpoint.place, actions),
    }


def _detail(contract: Contract, made: Sequence[Built]) -> dict[str, Any]:
    return {
        "service": contract.service,
        "made": [{"kind": item.kind, "object": item.object, "undo": item.undo, "seconds": item.seconds} for item in made],
    }


def _described(actions: Sequence[Action], made: Sequence[Built]) -> list[dict[str, Any]]:
    seconds = {(item.kind, item.object): item.seconds for item in made}
    return [{**ddl.described(action), "seconds": seconds.get((action.kind, action.object), 0.0)} for action in actions]


def _counted(actions: Sequence[Action]) -> str:
    if not actions:
        return "nothing, every key and index is there"
    counts = Counter(action.kind for action in actions)
    return ", ".join(counted(number, *NOUNS.get(kind, (kind,))) for kind, number in counts.items())


def main() -> None:
    """Read the options, build, report."""
    module = MigrationModule(
        argument_spec={
            **CONTEXT_SPEC,
            "service": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "mode": {"type": "str", "choices": ["auto", "plain", "concurrent"], "default": "auto"},
            "jobs": {"type": "int", "default": 2},
            "maintenance_work_mem": {"type": "str", "default": "256MB"},
            "parallel_workers": {"type": "int"},
            "lock_timeout": {"type": "str", "default": "5s"},
            "lock_tries": {"type": "int", "default": 60},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    stop_with_ansible()
    finish(module, run)


if __name__ == "__main__":
    main()
