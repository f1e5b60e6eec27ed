# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuse a run that leaves out tasks: it would end as a success where nothing was done.

Stands in `hosts` of every playbook's first play, which Ansible templates whatever the tags are and wherever it starts.
"""

from __future__ import annotations

from typing import Any

from ansible import context
from ansible.errors import AnsibleFilterError

MOLECULES = {"molecule-notest", "notest", "molecule-idempotence-notest"}  # Molecule always gives these; no task here has them


def whole_run(hosts: str) -> str:
    """Return the hosts' pattern; an error when --tags, --skip-tags or --start-at-task choose among the tasks."""
    given = context.CLIARGS
    chosen = {
        "--tags": ",".join(sorted(set(given.get("tags") or ()) - {"all"})),
        "--skip-tags": ",".join(sorted(set(given.get("skip_tags") or ()) - MOLECULES)),
        "--start-at-task": given.get("start_at_task") or "",
    }
    for option, value in chosen.items():
        if value:
            raise AnsibleFilterError(
                f"{option} {value} leaves out tasks, and a phase is done as a whole or not at all; nothing was begun. Run the playbook of the phase"
                f" without {option}: what is done already is not done again"
            )
    return hosts


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"whole_run": whole_run}
