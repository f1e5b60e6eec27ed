#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring in quarantined rows that have been corrected."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_release
short_description: Bring in quarantined rows that fit now
description:
  - Computes again which rows the policies keep out. Rows of C(migration.rejects) that fit now are written as repair writes them,
    with what depends on them, and leave C(migration.rejects).
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
options:
  quarantine_cap:
    description: Above this many quarantined rows the release stops.
    type: int
    default: 100000
requirements:
  - psycopg2 (on the runner)
attributes:
  check_mode:
    support: full
    description: Says how many rows would come in; writes nothing.
  diff_mode:
    support: none
    description: The numbers are in the result.
  idempotent:
    support: full
    description: A second run finds nothing that fits and changes nothing.
"""

EXAMPLES = r"""
- name: Bring in what has been corrected
  migration_release:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
"""

RETURN = r"""
tables:
  description: Rows that came in (or would), by target.
  type: dict
  returned: success
staying:
  description: Rows that stay in quarantine.
  type: int
  returned: success
msg:
  description: One line about it.
  type: str
  returned: success
"""

from contextlib import closing

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.repair.release import apply_release, plan_release
from ..module_utils.migration.state import control
from ..module_utils.migration.state.rolled_back import require_not_rolled_back
from ..module_utils.migration.text import counted

KIND = "release"


def run(module: AnsibleModule) -> dict[str, object]:
    """Return the module's result; MigrationError when no migration of this plan is open."""
    context = Context.from_params(module.params, module.check_mode)
    with closing(control.connect(context.control, readonly=module.check_mode)) as records:
        live = control.require_open(records, context.plan.digest)
        require_not_rolled_back(context, live)
        release = plan_release(context, live.plan_time, module.params["quarantine_cap"])
        rows = len(release.rows)
        if rows and not module.check_mode:
            apply_release(context, live.plan_time, release)
            detail = {"tables": release.by_table, "staying": release.staying}
            control.record(records, KIND, "passed", detail, migration=live, plan_digest=context.plan.digest)
    done = "would bring" if module.check_mode else "brought"
    said = f"{done} in {counted(rows, 'row')}, {counted(release.staying, 'row')} left in quarantine; playbooks/validate.yml proves it"
    return {"changed": rows > 0, "tables": release.by_table, "staying": release.staying, "msg": said}


def main() -> None:
    """Read the options, release, report."""
    module = MigrationModule(argument_spec={**CONTEXT_SPEC, "quarantine_cap": {"type": "int", "default": 100000}}, supports_check_mode=True)
    finish(module, run)


if __name__ == "__main__":
    main()
