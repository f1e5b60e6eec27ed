#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Render the migration's report."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_report
short_description: Render the migration's report
description:
  - Reads the migration's records in the control database and, where they exist, the targets' ledgers on the runner, and writes
    C(report.json) and C(report.html) below O(folder) on the controller, in the migration's own folder.
  - The page needs no network and no scripts, and prints well. It holds keys, names of columns and counts, never values of rows.
  - A report tells what is and never counts as a change. Before there is a migration it tells the last preflight; without that nothing is written.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
options:
  folder:
    description: The environment's artifacts folder on the controller; the action plugin takes it.
    type: path
requirements:
  - psycopg2
attributes:
  check_mode:
    support: full
    description: Reads, and writes no file.
  diff_mode:
    support: none
    description: Changes nothing.
  idempotent:
    support: full
    description: Never changed.
"""

EXAMPLES = r"""
- name: Write the report
  migration_report:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    folder: "{{ migration_artifacts_dir }}"
"""

RETURN = r"""
run_id:
  description: The migration; C(preflight) before there is one, empty before the first preflight.
  type: str
  returned: success
path:
  description: Where the page lies on the controller; empty when it was not written.
  type: str
  returned: success
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.report.collect import collect
from ..module_utils.migration.report.page import page
from ..module_utils.migration.state.gates import PREFLIGHT


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result."""
    report = collect(Context.from_params(module.params, module.check_mode, distinct=False))
    run_id = report["migration"]["run_id"] if report["migration"] else PREFLIGHT if report["phases"] else ""
    return {"changed": False, "run_id": run_id, "report": report, "html": page(report)}


def main() -> None:
    """Read the options, collect, render."""
    module = MigrationModule(argument_spec={**CONTEXT_SPEC, "folder": {"type": "path"}}, supports_check_mode=True)
    finish(module, run)


if __name__ == "__main__":
    main()
