#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove, by reading only, that every row will fit and nothing is in the way."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_preflight
short_description: Prove that a migration can run before a byte moves
description:
  - Checks every row of every mapping's projection against the services' schema SQL, with set-based queries on the source.
  - Checks that the mappings cover every source column, and that servers, privileges and this runner are ready.
  - Reads the source and the targets; writes the outcome, and the planned migration, into the control database only.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
  - connections.verify_server
  - session_store
options:
  store:
    description: The session store; left out, it is not looked at.
    required: false
  bin_dir:
    description: The folder with pg_dump and pg_restore; the PATH when it is not set.
    type: path
  quarantine_cap:
    description: Above this many quarantined rows, dependants included, preflight stops.
    type: int
    default: 100000
  limits:
    description: As migration_copy's; between two statements preflight waits while one is exceeded.
    type: dict
    default: {}
  patience:
    description: Seconds that such a pause may last.
    type: int
    default: 900
  progress_file:
    description: A file that tells, in one line of JSON, how far preflight is.
    type: path
  reset_timeout:
    description: Django's PASSWORD_RESET_TIMEOUT in seconds, to say how long outstanding links live.
    type: int
    default: 259200
requirements:
  - psycopg2 (on the runner)
attributes:
  check_mode:
    support: full
    description: Reads and judges all the same; records nothing.
  diff_mode:
    support: none
    description: Changes no data.
  idempotent:
    support: full
    description: A further run with the same plan adds a record and changes nothing.
"""

EXAMPLES = r"""
- name: Prove that every row will fit
  migration_preflight:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
  register: __preflight_result
"""

RETURN = r"""
passed:
  description: Whether no finding has the level stop.
  type: bool
  returned: success
run_id:
  description: The planned or open migration, or C(preflight) in check mode before there is one.
  type: str
  returned: success
report:
  description: The findings (stop first), rows of each part, seconds, estimates and dependencies. Keys of rows, never values.
  type: dict
  returned: success
"""

from contextlib import closing

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.postgres.driver import ENDPOINT_SPEC, Endpoint, database_errors
from ..module_utils.migration.preflight import run as preflight
from ..module_utils.migration.progress import Progress
from ..module_utils.migration.sessions.store import STORE_SPEC, StoreOptions
from ..module_utils.migration.state import control
from ..module_utils.migration.state.gates import PREFLIGHT
from ..module_utils.migration.state.limits import Limits


def run(module: AnsibleModule) -> dict[str, object]:
    """Return the module's result; MigrationError when a database cannot be reached or another plan is open."""
    params = module.params
    store = StoreOptions.from_params(params["store"]) if params["store"] else None  # before the first connection: it may be refused
    verify_server = Endpoint.from_params(params["verify_server"]) if params["verify_server"] else None
    context = Context.from_params(params, module.check_mode)
    digest = context.plan.digest
    options = preflight.Options(
        params["bin_dir"],
        params["quarantine_cap"],
        store=store,
        reset_timeout=params["reset_timeout"],
        verify_server=verify_server,
        limits=Limits.from_params(params["limits"]),
        patience=params["patience"],
    )
    preflight.require_reachable(context)
    reading = database_errors(context.control.place, "reading the migration's records")
    with closing(control.connect(context.control, readonly=True)) as connection, reading:
        live = control.current(connection)
        if live is not None and live.state == "open":
            control.require_open(connection, digest)
    progress = Progress(params["progress_file"])
    try:
        report = preflight.run(context, options, live, progress)
    finally:
        progress.close()
    changed = report.passed and (live is None or live.plan_digest != digest)
    detail = report.detail()
    if context.check:
        return {"changed": changed, "passed": report.passed, "run_id": live.run_id if live else PREFLIGHT, "report": detail}
    with closing(control.connect(context.control)) as connection:
        migration = control.plan(connection, digest, context.plan.fingerprint) if report.passed else live
        outcome = "passed" if report.passed else "failed"
        control.record(connection, PREFLIGHT, outcome, detail, migration=migration, plan_digest=digest)
    return {"changed": changed, "passed": report.passed, "run_id": migration.run_id if migration else PREFLIGHT, "report": detail}


def main() -> None:
    """Read the options, look at everything, report."""
    module = MigrationModule(
        argument_spec={
            **CONTEXT_SPEC,
            "bin_dir": {"type": "path"},
            "verify_server": {"type": "dict", "options": ENDPOINT_SPEC},
            "quarantine_cap": {"type": "int", "default": 100000},
            "store": {"type": "dict", "options": STORE_SPEC},
            "limits": {"type": "dict", "default": {}},
            "patience": {"type": "int", "default": 900},
            "progress_file": {"type": "path"},
            "reset_timeout": {"type": "int", "default": 259200},
        },
        supports_check_mode=True,
    )
    finish(module, run)


if __name__ == "__main__":
    main()
