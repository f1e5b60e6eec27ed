#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry every mapped table to its new home."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_copy
short_description: Carry every mapped table to its new home, in chunks, exactly once
description:
  - Copies the projection of each mapping from the source into the target databases, by binary COPY through a pipe, with worker
    processes that claim chunks in the target's ledger. Killed at any instant it goes on where it was when it runs again.
  - Several runners may run it at the same time; they share the chunks.
  - Adds each primary key when its table's last chunk is in, and settles what changed in the source between two snapshots.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
options:
  runner:
    description: The name of this runner in the ledger.
    type: str
    required: true
  workers:
    description: Worker processes on this runner, each with one connection to the source and one to each target.
    type: int
    default: 2
  chunk_rows:
    description: About how many rows a chunk has.
    type: int
    default: 50000
  maintenance_work_mem:
    description: Memory for building a primary key, for each worker, as PostgreSQL writes it.
    type: str
    default: 256MB
  statement_timeout:
    description: Seconds after which a statement is cancelled; 0 for never.
    type: float
    default: 0
  lock_timeout:
    description: Seconds to wait for a lock on a target; 0 for ever.
    type: float
    default: 10
  snapshot_max_age:
    description: Seconds after which the shared snapshot is renewed, so that vacuum on the source can go on.
    type: float
    default: 14400
  limits:
    description:
      - Limits by name, 0 switches one off. A running transfer follows the same names in the table migration.controls.
      - C(rows_per_second) and C(bytes_per_second) for this runner; C(cpu_percent), C(memory_percent) and C(disk_percent) of this
        runner; C(replication_lag_seconds) and C(transaction_seconds) of the databases.
    type: dict
    default: {}
  quarantine_cap:
    description: Above this many quarantined rows, dependants included, nothing is carried.
    type: int
    default: 100000
  via:
    description: C(direct), or by way of C(files) in a folder where no machine reaches both sides.
    type: str
    choices: [direct, files]
    default: direct
  files_step:
    description:
      - With O(via=files), C(export) reads the source and writes the folder, C(import) goes on from it and writes the targets;
        C(both) does one after the other on a machine that reaches both sides.
    type: str
    choices: [both, export, import]
    default: both
  files_dir:
    description: The folder of O(via=files) on this runner. It holds personal data.
    type: path
  plan_time:
    description:
      - With O(files_step=export), the timestamp that the migration is pinned to (playbooks/status.yml shows it), where the
        control database cannot be reached.
    type: str
  id_map_dir:
    description: Where the id map is exported as CSV on this runner; nothing is exported when it is not given.
    type: path
  override_gates:
    description: Go on without a passed preflight of this plan. Say why in the change ticket.
    type: bool
    default: false
  progress_file:
    description: A file that tells, in one line of JSON, how far the transfer is.
    type: path
requirements:
  - psycopg2
attributes:
  check_mode:
    support: full
    description: Counts the rows and cuts the chunks that would be carried; writes nothing anywhere.
  diff_mode:
    support: full
    description: Shows each table's rows before and after.
  idempotent:
    support: full
    description: A finished transfer is recognised by its ledger.
"""

EXAMPLES = r"""
- name: Carry every mapped table to its new home
  migration_copy:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    runner: "{{ inventory_hostname }}"
    workers: 4
"""

RETURN = r"""
run_id:
  description: The migration's name.
  type: str
  returned: success
tables:
  description: For each target its name, rows, chunks and chunks done.
  type: list
  elements: dict
  returned: success
complete:
  description: Whether the ledger has no chunk left; true in a dry run and after an export.
  type: bool
  returned: success
verdict:
  description: The same in words.
  type: str
  returned: success
carried:
  description: Chunks that this runner carried.
  type: int
  returned: success
accounting:
  description:
    - The account of every mapped table of the source, held against the ledgers' figures in the snapshot that was carried. Not there after
      a run that read several snapshots; their rows are compared instead, and the sums held against the last of them.
  type: dict
  returned: when chunks were carried
seconds:
  description: Seconds spent preparing, copying and completing.
  type: dict
  returned: success
"""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.errors import MigrationError
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.postgres.driver import Connection, database_errors
from ..module_utils.migration.preflight import drift
from ..module_utils.migration.progress import Progress
from ..module_utils.migration.repair.reconcile import reconcile
from ..module_utils.migration.schema import sequences
from ..module_utils.migration.state import control, phase_gate
from ..module_utils.migration.state.gates import require_preflight
from ..module_utils.migration.state.limits import Limits
from ..module_utils.migration.state.rolled_back import require_not_rolled_back
from ..module_utils.migration.stopping import stop_with_ansible
from ..module_utils.migration.text import counted
from ..module_utils.migration.transfer import file_transfer, id_map_csv
from ..module_utils.migration.transfer.dry_run import Preview, preview, preview_export, preview_import
from ..module_utils.migration.transfer.run import Options, Outcome, changed_since, run

KIND = "migrate"


def carry(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError when anything stops the transfer."""
    params = module.params
    context = Context.from_params(params, module.check_mode)
    options = _options(params)
    if params["via"] == "files" and params["files_step"] == "export" and params["plan_time"]:
        if module.check_mode:
            return _foreseen(preview_export(context, options, params["plan_time"], Path(params["files_dir"])))
        return _export_only(context, params, params["plan_time"], options)
    if module.check_mode:
        return _dry_run(context, params, options)
    with contextlib.closing(control.connect(context.control)) as records:
        migration = _open_migration(records, context)
        require_preflight(records, context.plan.digest, params["override_gates"])
    if migration.snapshot is None:
        raise MigrationError("the open migration has no snapshot yet; run playbooks/snapshot.yml first")
    require_not_rolled_back(context, migration)
    progress = Progress(params["progress_file"])
    try:
        if params["via"] == "files" and params["files_step"] == "export":
            return _export_only(context, params, migration.plan_time, options)
        outcome = _transfer(context, params, migration, options, progress)
        exported = _export(context, params["id_map_dir"], migration.run_id, outcome)
    except MigrationError as exc:
        with contextlib.suppress(Exception):  # the control database may be what is out of reach; the fault is told all the same
            phase_gate.record(context, KIND, "failed", {"error": str(exc), "runner": options.runner}, migration)
        raise
    finally:
        progress.close()
    result = _carried(outcome, migration.run_id, exported)
    if outcome.changed:
        phase_gate.record(context, KIND, "passed", {**result, "runner": options.runner, "rates": progress.rates()}, migration)
    return result


def _dry_run(context: Context, params: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return what a dry run foresees."""
    with contextlib.closing(control.connect(context.control, readonly=True)) as records:
        live = control.current(records)
    plan_time = live.plan_time if live else "now"
    if params["via"] == "files" and params["files_step"] == "export":
        found = preview_export(context, options, plan_time, Path(params["files_dir"]))
    elif params["via"] == "files" and params["files_step"] == "import":
        found = preview_import(context, live.plan_time if live else None, Path(params["files_dir"]))
    else:
        found = preview(context, options, plan_time)
    result = _foreseen(found, live.run_id if live else "")
    required = _required(context, params)
    if required:
        result["msg"] = required
        result["verdict"] += f"; {required}"
    return result


def _required(context: Context, params: dict[str, Any]) -> str:
    """Return what the real run would refuse to begin without, for a dry run; "" for nothing."""
    _, required = phase_gate.pass_gate(context)
    if required or params["override_gates"]:
        return required
    with contextlib.closing(control.connect(context.control, readonly=True)) as records:
        return require_preflight(records, context.plan.digest, check=True)


def _open_migration(records: Connection, context: Context) -> control.Migration:
    """Return the open migration; when it has another plan, the error names what has changed since its ledgers were begun."""
    try:
        return control.require_open(records, context.plan.digest)
    except MigrationError as exc:
        changed = changed_since(context)
        raise MigrationError(f"{exc} (changed: {', '.join(changed)})" if changed else str(exc)) from exc


def _transfer(
    context: Context, params: dict[str, Any], migration: control.Migration, options: Options, progress: Progress
) -> Outcome:
    """Carry everything, directly or by way of files, into targets that are still what preflight saw."""
    if not params["override_gates"]:
        drift.require(context)
    if params["via"] == "direct":
        return run(context, migration.plan_time, migration.run_id, options, progress, reconcile)
    folder = Path(params["files_dir"])
    if params["files_step"] == "both":
        file_transfer.export_files(context, migration.plan_time, folder, options, progress)
    return file_transfer.import_files(context, migration.plan_time, migration.run_id, folder, options, progress)


def _export_only(context: Context, params: dict[str, Any], plan_time: str, options: Options) -> dict[str, Any]:
    """Write the folder and say what is in it; nothing is recorded, for the control database may be out of reach."""
    progress = Progress(params["progress_file"])
    manifest, changed = file_transfer.export_files(context, plan_time, Path(params["files_dir"]), options, progress)
    progress.close()
    rows: dict[str, int] = {}
    for entry in manifest.entries:
        rows[entry.target] = rows.get(entry.target, 0) + entry.rows.rows
    tables = [{"target": target, "rows": count} for target, count in sorted(rows.items())]
    return {
        "changed": changed,
        "run_id": "",
        "complete": True,
        "verdict": "every chunk is in the folder",
        "tables": tables,
        "carried": len(manifest.entries) if changed else 0,
        "seconds": {},
    }


def _options(params: dict[str, Any]) -> Options:
    limits = Limits.from_params(params["limits"])
    if params["workers"] < 1 or params["chunk_rows"] < 1:
        raise MigrationError("migrate_workers and migrate_chunk_rows must be 1 or more; set them so")
    return Options(
        runner=params["runner"],
        workers=params["workers"],
        chunk_rows=params["chunk_rows"],
        limits=limits,
        statement_timeout=params["statement_timeout"],
        lock_timeout=params["lock_timeout"],
        snapshot_max_age=params["snapshot_max_age"],
        maintenance_work_mem=params["maintenance_work_mem"],
        quarantine_cap=params["quarantine_cap"],
    )


def _export(context: Context, folder: str | None, run_id: str, outcome: Outcome) -> dict[str, str]:
    """Export the id map when rows were carried or a file is missing."""
    if folder is None:
        return {}
    place = Path(folder) / run_id
    present = all((place / f"id_map.{service}.csv").exists() for service in context.plan.services)
    return {} if present and not outcome.changed else id_map_csv.export(context, place)


def _carried(outcome: Outcome, run_id: str, exported: dict[str, str]) -> dict[str, Any]:
    balance = outcome.balance
    return {
        "changed": outcome.changed or bool(exported),
        "run_id": run_id,
        "complete": all(table.chunks_done == table.chunks for table in outcome.tables),
        "verdict": outcome.verdict,
        "tables": [asdict(table) for table in outcome.tables],
        "carried": outcome.carried,
        "rows": outcome.rows,
        "keys_added": outcome.keys_added,
        "reconciled": outcome.reconciled,
        "sequences": sequences.in_words(outcome.moved),
        "epochs": list(outcome.epochs),
        "id_map_files": exported,
        **({"accounting": balance.to_dict()} if balance else {}),
        "seconds": dict(outcome.seconds),
    }


def _foreseen(foreseen: Preview, run_id: str = "") -> dict[str, Any]:
    """Return what a dry run says."""
    before = "".join(f"{table.target}: {table.rows_now:,} rows\n" for table in foreseen.tables)
    after = "".join(f"{table.target}: {table.rows_then:,} rows in {counted(table.chunks, 'chunk')}\n" for table in foreseen.tables)
    return {
        "changed": foreseen.changed,
        "run_id": run_id,
        "complete": True,
        "verdict": f"would carry {sum(table.rows_then - table.rows_now for table in foreseen.tables):,} rows in {counted(foreseen.chunks, 'chunk')}",
        "tables": [asdict(table) for table in foreseen.tables],
        "carried": 0,
        "seconds": {},
        "diff": {"before": before, "after": after, "before_header": "targets now", "after_header": "targets after migrate"},
    }


def main() -> None:
    """Read the options, carry, report."""
    module = MigrationModule(
        argument_spec={
            **CONTEXT_SPEC,
            "runner": {"type": "str", "required": True},
            "workers": {"type": "int", "default": 2},
            "chunk_rows": {"type": "int", "default": 50000},
            "maintenance_work_mem": {"type": "str", "default": "256MB"},
            "statement_timeout": {"type": "float", "default": 0},
            "lock_timeout": {"type": "float", "default": 10},
            "snapshot_max_age": {"type": "float", "default": 14400},
            "limits": {"type": "dict", "default": {}},
            "quarantine_cap": {"type": "int", "default": 100000},
            "via": {"type": "str", "choices": ["direct", "files"], "default": "direct"},
            "files_step": {"type": "str", "choices": ["both", "export", "import"], "default": "both"},
            "files_dir": {"type": "path"},
            "plan_time": {"type": "str"},
            "id_map_dir": {"type": "path"},
            "override_gates": {"type": "bool", "default": False},
            "progress_file": {"type": "path"},
        },
        required_if=[("via", "files", ["files_dir"])],
        supports_check_mode=True,
    )
    stop_with_ansible()
    finish(module, migrate)


def migrate(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError when the tables are not carried."""
    with database_errors("the migration's databases", "carrying the tables; finished chunks are kept"):
        return carry(module)


if __name__ == "__main__":
    main()
