#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the mappings and the schema SQL into one plan."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_plan
short_description: Read mappings and schema SQL into one plan
description:
  - Reads C(mappings/<service>/<table>.yml), C(mappings/_ids/<entity>.yml) and the services' schema SQL, checks them against
    each other with PostgreSQL's own parser, and returns the plan that every phase works from.
  - Names every mistake of all files at once, each in a line with its file, its line and what would be right.
  - Runs on the controller, connects to nothing and writes nothing.
author: The Edulink migration project (@edulink)
options:
  mappings_dir:
    description: The folder of the mappings.
    type: path
    required: true
  schema_dir:
    description: The folder with one folder of SQL files for each service.
    type: path
    required: true
  services:
    description: The inventory's target databases.
    type: list
    elements: str
    required: true
  namespace:
    description:
      - The environment's secret namespace of the UUIDs, 16 characters or more.
      - Left out, the files are only checked, and no plan is returned.
    type: str
requirements:
  - pglast (on the controller)
attributes:
  check_mode:
    support: full
    description: Reads only.
  diff_mode:
    support: none
    description: Changes nothing.
  idempotent:
    support: full
    description: The same files give the same plan.
"""

EXAMPLES = r"""
- name: Read the plan
  migration_plan:
    mappings_dir: mappings
    schema_dir: roles/schema/files
    services: [auth_service, user_service]
    namespace: "{{ migration_namespace }}"
  delegate_to: localhost
  register: __migration_plan

- name: Check the files alone
  migration_plan:
    mappings_dir: mappings
    schema_dir: roles/schema/files
    services: [auth_service, user_service]
  delegate_to: localhost
"""

RETURN = r"""
plan:
  description: The plan as data.
  type: dict
  returned: with O(namespace)
digest:
  description: sha256 of what the plan does.
  type: str
  returned: with O(namespace)
fingerprint:
  description: 16 hex digits that tell namespaces apart.
  type: str
  returned: with O(namespace)
lines:
  description: What was read, for an operator.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.contract.model import Contract
from ..module_utils.migration.contract.parse import parse_contract
from ..module_utils.migration.errors import MigrationError
from ..module_utils.migration.mistakes import Mistakes
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.plan import ids
from ..module_utils.migration.plan.compiler import compile_plan, summary
from ..module_utils.migration.plan.mapping import Mappings
from ..module_utils.migration.plan.mapping_files import read_mappings


def run(module: AnsibleModule) -> dict[str, object]:
    """Return the module's result; MigrationError, naming every mistake, when the files are not one plan."""
    mistakes = Mistakes()
    services = tuple(sorted(module.params["services"]))
    namespace = module.params["namespace"]
    with mistakes:
        _require_secret(namespace)
    mappings = Mappings((), ())
    with mistakes:
        mappings = read_mappings(Path(module.params["mappings_dir"]), services, mistakes)
    contracts: dict[str, Contract] = {}
    for service in services:
        contracts[service] = Contract(service, ())
        mistakes.unread.add(service)
        with mistakes:
            contracts[service] = parse_contract(service, Path(module.params["schema_dir"]) / service, mistakes)
    plan = compile_plan(mappings, contracts, ids.fingerprint(namespace) if namespace else "", mistakes)
    lines = summary(plan)
    if not namespace:
        return {"changed": False, "lines": lines}
    return {"changed": False, "plan": plan.to_dict(), "digest": plan.digest, "fingerprint": plan.fingerprint, "lines": lines}


def _require_secret(namespace: str | None) -> None:
    weakness = ids.weakness(namespace) if namespace is not None else None
    if weakness:
        raise MigrationError(f"migration_namespace {weakness}; make one with 'openssl rand -hex 32' and keep it in the vault")


def main() -> None:
    """Read the options, make the plan, report."""
    module = MigrationModule(
        argument_spec={
            "mappings_dir": {"type": "path", "required": True},
            "schema_dir": {"type": "path", "required": True},
            "services": {"type": "list", "elements": "str", "required": True},
            "namespace": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    finish(module, run)


if __name__ == "__main__":
    main()
