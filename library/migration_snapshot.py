#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take, prove and keep the one snapshot of a migration."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_snapshot
short_description: Take, prove and keep the one snapshot of a migration
description:
  - Opens the planned migration and dumps the source and the targets with C(pg_dump) in directory format, several tables at a time,
    each in an exported snapshot in which every table's rows are counted and digested meanwhile. Writes a manifest with all that and
    a checksum of each file. The folder gets its name only when everything is in it.
  - An open migration has one snapshot. Running this again compares its files with the manifest and changes nothing.
  - With O(verify_restore) every dump is restored into a scratch database, compared with the manifest in rows, content and definitions, and dropped.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
  - connections.verify_server
options:
  snapshot_dir:
    description: The folder of all snapshots, on the runner. A snapshot holds personal data; its folders have mode 0700.
    type: path
    required: true
  runner:
    description: The inventory name of the runner, for the record.
    type: str
    default: ""
  compression:
    description: How pg_dump compresses, V(none), V(gzip), V(lz4) or V(zstd), with a level if you like.
    type: str
    default: gzip:1
  encryption:
    description: The tool that encrypts the dumps, after they are written.
    type: str
    choices: [none, age, gpg]
    default: none
  recipients:
    description: The public keys to encrypt to.
    type: list
    elements: str
    default: []
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
  keep_count:
    description: How many of the environment's newest snapshots are kept.
    type: int
    default: 0
  keep_days:
    description: For how many days snapshots are kept. Without this and O(keep_count) all are; the newest and that of an open migration always are.
    type: int
    default: 0
  space_factor:
    description: What a dump takes of its database's size, for the check of free space.
    type: float
    default: 1.0
  verify_restore:
    description: Restore every dump into a scratch database and compare it with the manifest.
    type: bool
    default: false
  throwaway_dir:
    description: The folder in which a server is made for the source's proof and thrown away.
    type: path
    default: /var/tmp
  override_gates:
    description: Go on without a passed preflight of this plan.
    type: bool
    default: false
requirements:
  - psycopg2
  - pg_dump, pg_restore and pg_dumpall, not older than the servers
attributes:
  check_mode:
    support: full
    description: Says what would be dumped, with which client and how much it is; writes nothing.
  diff_mode:
    support: full
    description: Shows a line for each database.
  idempotent:
    support: full
    description: A second run verifies the snapshot and changes nothing.
"""

EXAMPLES = r"""
- name: Take the snapshot and prove it
  migration_snapshot:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    snapshot_dir: /var/backups/edulink-migration
    verify_restore: true
"""

RETURN = r"""
run_id:
  description: The migration's name.
  type: str
  returned: success
folder:
  description: The snapshot's folder on the runner.
  type: str
  returned: success
manifest:
  description: The manifest's text; empty in check mode before there is one.
  type: str
  returned: success
lines:
  description: What was dumped or verified, or would be, a line for each database.
  type: list
  elements: str
  returned: success
removed:
  description: Folders of older snapshots that retention removed.
  type: list
  elements: str
  returned: success
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.errors import MigrationError
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.postgres.driver import ENDPOINT_SPEC, Endpoint
from ..module_utils.migration.progress import Progress
from ..module_utils.migration.snapshot.dump import DumpOptions
from ..module_utils.migration.snapshot.encryption import Sealing
from ..module_utils.migration.snapshot.restore import RestoreOptions
from ..module_utils.migration.snapshot.retention import Keeping
from ..module_utils.migration.snapshot.take import TakeOptions, preview, take


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError when there is no good snapshot at the end."""
    params = module.params
    proof_server = Endpoint.from_params(params["verify_server"]) if params["verify_server"] else None  # before the first connection: it may be refused
    context = Context.from_params(params, module.check_mode)
    if params["jobs"] < 1:
        raise MigrationError("snapshot_jobs must be 1 or more; set it so")
    os.umask(0o077)
    options = TakeOptions(
        root=Path(params["snapshot_dir"]).resolve(),
        runner=params["runner"],
        dump=DumpOptions(params["jobs"], params["compression"], params["bin_dir"]),
        restore=RestoreOptions(params["jobs"], params["bin_dir"], params["maintenance_db"]),
        sealing=Sealing(params["encryption"], tuple(params["recipients"]), params["identity"]),
        keeping=Keeping(params["keep_count"], params["keep_days"]),
        space_factor=params["space_factor"],
        proof=params["verify_restore"],
        proof_server=proof_server,
        throwaway_dir=Path(params["throwaway_dir"]),
        override_gates=params["override_gates"],
    )
    progress = Progress(params["progress_file"])
    try:
        taken = preview(context, options) if module.check_mode else take(context, options, _ticking(progress))
    finally:
        progress.close()
    text = "".join(f"{line}\n" for line in taken.lines)
    return {
        "changed": taken.changed,
        "run_id": taken.run_id,
        "folder": taken.folder,
        "manifest": taken.manifest,
        "lines": list(taken.lines),
        "removed": list(taken.removed),
        "diff": {"before": "" if taken.changed else text, "after": text, "after_header": f"snapshot {taken.folder}"},
    }


def _ticking(progress: Progress) -> Any:
    def tick(table: str, done: int, total: int) -> None:
        progress.update("snapshot", table.split(":")[0], done, total, unit="tables")

    return tick


def main() -> None:
    """Read the options, take or verify the snapshot, report."""
    module = MigrationModule(
        argument_spec={
            **CONTEXT_SPEC,
            "snapshot_dir": {"type": "path", "required": True},
            "runner": {"type": "str", "default": ""},
            "compression": {"type": "str", "default": "gzip:1"},
            "encryption": {"type": "str", "choices": ["none", "age", "gpg"], "default": "none"},
            "recipients": {"type": "list", "elements": "str", "default": []},
            "identity": {"type": "path"},
            "jobs": {"type": "int", "default": 2},
            "bin_dir": {"type": "path"},
            "maintenance_db": {"type": "str", "default": "postgres"},
            "keep_count": {"type": "int", "default": 0},
            "keep_days": {"type": "int", "default": 0},
            "space_factor": {"type": "float", "default": 1.0},
            "verify_restore": {"type": "bool", "default": False},
            "throwaway_dir": {"type": "path", "default": "/var/tmp"},
            "verify_server": {"type": "dict", "options": ENDPOINT_SPEC},
            "override_gates": {"type": "bool", "default": False},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    finish(module, run)


if __name__ == "__main__":
    main()
