#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell where the migration stands."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_status
short_description: Tell where the migration stands
description:
  - Reads the migration's records in the control database and the ledgers in the target databases, while a transfer runs
    and at any other time, also when nothing exists yet. Writes nothing.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
requirements:
  - psycopg2
attributes:
  check_mode:
    support: full
    description: Reads only.
  diff_mode:
    support: none
    description: Changes nothing.
  idempotent:
    support: full
    description: Changes nothing.
"""

EXAMPLES = r"""
- name: Tell where the migration stands
  migration_status:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
  register: __status_result
"""

RETURN = r"""
status:
  description: The migration, its phases, its tables, what could not be read, what to do next.
  type: dict
  returned: success
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.report import status


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result."""
    return {"changed": False, "status": status.to_dict(status.look(Context.from_params(module.params, module.check_mode, distinct=False)))}


def main() -> None:
    """Read the options, look, report."""
    module = MigrationModule(argument_spec=dict(CONTEXT_SPEC), supports_check_mode=True)
    finish(module, run)


if __name__ == "__main__":
    main()
