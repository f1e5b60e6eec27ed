#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archive the monolith's long expired sessions."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_session_archive
short_description: Archive the long expired sessions of a Django monolith
description:
  - Writes the rows of C(django_session) that ended some days ago to a compressed CSV file with a manifest, on the host it runs on.
  - The session key is written as its sha256 only. The rest is personal data, so the file is made for its owner alone.
  - Deletes nothing unless O(delete) is the number of rows that are archived and still there.
author: The Edulink migration project (@edulink)
extends_documentation_fragment: connections
options:
  folder:
    description: Where the files go.
    type: path
    required: true
  days:
    description: How many days before today (UTC) a session must have ended.
    type: int
    default: 30
  delete:
    description: How many rows to delete from the monolith once they are archived; any other number than theirs deletes none.
    type: int
    default: 0
attributes:
  check_mode:
    support: full
    description: Tells how many rows there are and writes nothing.
  diff_mode:
    support: none
    description: There is nothing but a count to show.
  idempotent:
    support: full
    description: An archive that is finished is verified and not written again on the same day.
"""

EXAMPLES = r"""
- name: Archive the sessions that ended a month ago
  migration_session_archive:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    folder: "{{ migration_artifacts_dir }}/sessions"
  register: __sessions_archive
"""

RETURN = r"""
archive:
  description: The file's name, the day before which its sessions ended, rows, their digest and the file's sha256.
  type: dict
  returned: success
deleted:
  description: How many rows were deleted from the monolith.
  type: int
  returned: success
msg:
  description: The same in a line.
  type: str
  returned: success
"""

import contextlib
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.postgres import driver
from ..module_utils.migration.sessions import archive
from ..module_utils.migration.state import control

APPLICATION_NAME = "edulink-migration sessions archive"


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError when the rows cannot be archived."""
    params = module.params
    context = Context.from_params(params, module.check_mode)
    folder, schema, place = Path(params["folder"]), context.source.schema, context.source.place
    with contextlib.closing(driver.connect(context.source, application_name=APPLICATION_NAME, readonly=True)) as source:
        source.set_session(isolation_level="REPEATABLE READ", readonly=True)
        wanted = archive.look(source, schema, params["days"], place)
        done = archive.kept(folder, wanted)
        if done is None and wanted.rows == 0:
            return {"changed": False, "deleted": 0, "archive": {}, "msg": f"no session ended before {wanted.before}; there is nothing to archive"}
        fresh = done is None
        if done is None:
            done = wanted if context.check else archive.write(source, schema, folder, wanted, place)
    deleted = 0
    if params["delete"] and not context.check:
        with contextlib.closing(driver.connect(context.source, application_name=APPLICATION_NAME)) as writing:
            deleted = archive.delete(writing, schema, done, params["delete"], place)
    msg = f"{done.rows} sessions that ended before {done.before} {'would be' if fresh and context.check else 'are'} archived in {done.name}"
    left = wanted.rows - deleted
    if deleted:
        msg += f"; {deleted} deleted from the monolith"
    elif left:
        msg += f"; the monolith still has them: its manage.py clearsessions deletes them, or -e sessions_archive_delete={left}"
    if (fresh or deleted) and not context.check:
        with contextlib.closing(control.connect(context.control)) as records:
            detail = {**archive.to_dict(done), "deleted": deleted, "remark": msg}
            control.record(records, "sessions archived", "passed", detail, migration=control.current(records), plan_digest=context.plan.digest)
    return {"changed": fresh or bool(deleted), "deleted": deleted, "archive": dict(archive.to_dict(done)), "msg": msg}


def main() -> None:
    """Read the options, archive, report."""
    module = MigrationModule(
        argument_spec={
            **CONTEXT_SPEC,
            "folder": {"type": "path", "required": True},
            "days": {"type": "int", "default": 30},
            "delete": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    finish(module, run)


if __name__ == "__main__":
    main()
