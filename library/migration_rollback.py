#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give the services their state before the migration."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_rollback
short_description: Give the services their state before the migration
description:
  - With O(scope=databases) every service's dump is restored into a new database and proven against the manifest; then names are
    exchanged in one transaction. The migrated state stays under another name until cleanup.
  - With O(scope=data) exactly the rows that the migration wrote are deleted, by the ids it computes and its id map.
  - Ledger and id map are written as CSV beside the snapshot before. The monolith is only read.
  - Can be interrupted anywhere and run again. O(stage=close) ends the migration when every service is back.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
options:
  stage:
    description: V(services) rolls the services back, V(close) ends the migration afterwards.
    type: str
    choices: [services, close]
    default: services
  scope:
    description: What is rolled back.
    type: str
    choices: [databases, data]
    default: databases
  services:
    description: The services to roll back; all when empty.
    type: list
    elements: str
    default: []
  discard_rows:
    description: How many rows that are neither in the snapshot nor migrated may be left behind. With more of them nothing is done.
    type: int
    default: 0
  identity:
    description: The file with the private key (age) or the key ring's folder (gpg) that opens encrypted dumps.
    type: path
  jobs:
    description: Worker processes of pg_dump and pg_restore.
    type: int
    default: 2
  bin_dir:
    description:
      - The folder of pg_dump, pg_restore and pg_dumpall. Without it the oldest clients on the runner that are not older than the server are taken.
    type: path
  maintenance_db:
    description: A database on the targets' servers to connect to while others are made and renamed.
    type: str
    default: postgres
  progress_file:
    description: Where to write how far the work is; set by the action plugin.
    type: path
requirements:
  - psycopg2
  - pg_dump and pg_restore, not older than the servers
attributes:
  check_mode:
    support: full
    description: Says what would be restored, renamed and deleted, with row counts; writes nothing.
  diff_mode:
    support: full
    description: Shows the same lines.
  idempotent:
    support: full
    description: A second run changes nothing.
"""

EXAMPLES = r"""
- name: Bring both services back
  migration_rollback:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"

- name: End the migration
  migration_rollback:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    stage: close
"""

RETURN = r"""
run_id:
  description: The migration's name; empty when none was open.
  type: str
  returned: success
lines:
  description: What was done, or would be.
  type: list
  elements: str
  returned: success
notes:
  description: What a rollback of some services only means for the others.
  type: list
  elements: str
  returned: success
states:
  description: How each service stands now.
  type: dict
  returned: success
sessions:
  description: Whether the migration wrote sessions that are still in the session store.
  type: bool
  returned: success
complete:
  description: Whether every service is rolled back.
  type: bool
  returned: success
evidence:
  description: The folder on the runner with ledger and id map as CSV.
  type: str
  returned: success
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.errors import MigrationError
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.progress import Progress
from ..module_utils.migration.rollback.preview import preview
from ..module_utils.migration.rollback.run import RollbackOptions, close, roll_back
from ..module_utils.migration.snapshot.encryption import Sealing
from ..module_utils.migration.snapshot.restore import RestoreOptions


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError says how the services stand."""
    params = module.params
    context = Context.from_params(params, module.check_mode)
    if params["jobs"] < 1:
        raise MigrationError("rollback_jobs must be 1 or more; set it so")
    os.umask(0o077)
    options = RollbackOptions(
        scope=params["scope"],
        services=tuple(params["services"]),
        discard_rows=params["discard_rows"],
        restore=RestoreOptions(params["jobs"], params["bin_dir"], params["maintenance_db"]),
        sealing=Sealing(identity=params["identity"]),
    )
    progress = Progress(params["progress_file"])
    try:
        if module.check_mode:
            done = preview(context, options)
        elif params["stage"] == "close":
            done = close(context, options)
        else:
            done = roll_back(context, options, lambda text: progress.note("rollback", text))
    finally:
        progress.close()
    text = "".join(f"{line}\n" for line in done.lines)
    return {
        "changed": done.changed,
        "run_id": done.run_id or "",
        "lines": list(done.lines),
        "notes": list(done.warnings),
        "states": dict(done.states),
        "sessions": done.sessions,
        "complete": done.complete,
        "evidence": done.evidence,
        "diff": {"before": "" if done.changed else text, "after": text, "after_header": "rollback"},
    }


def main() -> None:
    """Read the options, roll back, report."""
    module = MigrationModule(
        argument_spec={
            **CONTEXT_SPEC,
            "stage": {"type": "str", "choices": ["services", "close"], "default": "services"},
            "scope": {"type": "str", "choices": ["databases", "data"], "default": "databases"},
            "services": {"type": "list", "elements": "str", "default": []},
            "discard_rows": {"type": "int", "default": 0},
            "identity": {"type": "path"},
            "jobs": {"type": "int", "default": 2},
            "bin_dir": {"type": "path"},
            "maintenance_db": {"type": "str", "default": "postgres"},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    finish(module, run)


if __name__ == "__main__":
    main()
