#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rehearse the migration and its way back in throw-away copies."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_rehearse
short_description: Rehearse the migration and its way back in throw-away copies
description:
  - The steps of C(playbooks/rehearse.yml) that are not phases. Copies of the services and a control database of their own, with
    O(suffix) in their names, are made, broken after the migration, compared after the rollback, judged and dropped.
  - The duration and the result are recorded in the real control database.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
options:
  stage:
    description: V(begin) makes the copies, V(damage) breaks them, V(check) compares them after the rollback, V(finish) judges, records and drops.
    type: str
    choices: [begin, damage, check, finish]
    required: true
  suffix:
    description: What the copies' names end in.
    type: str
    required: true
  snapshot_dir:
    description: The folder of the rehearsal's snapshots, on the runner; they are deleted at the end.
    type: path
    required: true
  jobs:
    description: Worker processes of pg_dump and pg_restore.
    type: int
    default: 2
  bin_dir:
    description: The folder of pg_dump, pg_restore and pg_dumpall.
    type: path
  maintenance_db:
    description: A database on the targets' servers to connect to while others are made and dropped.
    type: str
    default: postgres
requirements:
  - psycopg2
  - pg_dump and pg_restore, not older than the servers
attributes:
  check_mode:
    support: full
    description: Says what would be made; writes nothing.
  diff_mode:
    support: none
    description: The copies are gone at the end.
  idempotent:
    support: none
    description: Every rehearsal is a new one.
"""

EXAMPLES = r"""
- name: Make the copies
  migration_rehearse:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    stage: begin
    suffix: _rehearsal
    snapshot_dir: /var/backups/edulink-rehearsal
"""

RETURN = r"""
lines:
  description: What was done, or would be.
  type: list
  elements: str
  returned: success
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.rollback import rehearsal
from ..module_utils.migration.rollback.rehearsal import RehearseOptions
from ..module_utils.migration.snapshot.dump import DumpOptions
from ..module_utils.migration.snapshot.restore import RestoreOptions

STAGES = {"begin": rehearsal.begin, "damage": rehearsal.damage, "check": rehearsal.check, "finish": rehearsal.finish}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError when the rehearsal failed."""
    params = module.params
    context = Context.from_params(params, module.check_mode)
    os.umask(0o077)
    options = RehearseOptions(
        suffix=params["suffix"],
        root=Path(params["snapshot_dir"]).resolve(),
        dump=DumpOptions(params["jobs"], bin_dir=params["bin_dir"]),
        restore=RestoreOptions(params["jobs"], params["bin_dir"], params["maintenance_db"]),
    )
    if module.check_mode:
        return {"changed": True, "lines": rehearsal.would(context, options) if params["stage"] == "begin" else []}
    return {"changed": params["stage"] != "check", "lines": STAGES[params["stage"]](context, options)}


def main() -> None:
    """Read the options, do the stage, report."""
    module = MigrationModule(
        argument_spec={
            **CONTEXT_SPEC,
            "stage": {"type": "str", "choices": list(STAGES), "required": True},
            "suffix": {"type": "str", "required": True},
            "snapshot_dir": {"type": "path", "required": True},
            "jobs": {"type": "int", "default": 2},
            "bin_dir": {"type": "path"},
            "maintenance_db": {"type": "str", "default": "postgres"},
        },
        supports_check_mode=True,
    )
    finish(module, run)


if __name__ == "__main__":
    main()
