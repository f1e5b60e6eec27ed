#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare every column of every row of the source and the targets."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_validate
short_description: Compare every column of every row of the source and the targets
description:
  - Scans both sides once, at one consistent point each, digests every row in buckets of ids, and opens only the buckets that
    differ, to the row and then to the column. Checks references across databases, accounts for every source row (carried, merged,
    quarantined or dropped by declaration), computes again which rows belong into quarantine, and compares what each user may do,
    computed from the tables without the mappings.
  - Changes nothing in the source or the targets; the outcome is kept in the control database. Returns the outcome also when it is bad.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
options:
  tables:
    description: The targets to compare, as C(service.table); all when not given. A part is no proof of the whole and is recorded as V(partial).
    type: list
    elements: str
  digest:
    description:
      - V(record) hashes each row with PostgreSQL's own 64-bit hash, twice; V(sha256) with SHA-256.
      - V(auto) is V(record) when all servers agree on golden vectors of every type in use, else V(sha256).
    type: str
    choices: [auto, record, sha256]
    default: auto
  workers:
    description: Connections that scan at a time, on each side.
    type: int
    default: 2
  parallel_workers:
    description: PostgreSQL's C(max_parallel_workers_per_gather) of each scan.
    type: int
    default: 0
  settle_attempts:
    description: How often differences are read again when somebody writes to a server meanwhile.
    type: int
    default: 3
  settle_seconds:
    description: Seconds between two of these readings.
    type: float
    default: 2
  findings_kept:
    description:
      - How many findings are kept with their keys and columns, 50000 at most; all are counted. Each table has its share. Memory grows with
        this number, not with the differences. To see more of one table name it alone in O(tables).
    type: int
    default: 10000
  service_rows:
    description:
      - What a target's row is that no source row explains. V(difference), or V(apart) for rows that a service made itself.
      - V(auto) is V(apart) once the cutover of this migration has passed.
    type: str
    choices: [auto, difference, apart]
    default: auto
  resume:
    description:
      - Go on where a validation of this plan was interrupted. A piece of a table that it read for ten seconds or more is not read again when
        the versions of its rows are still the same, so the outcome holds for the new point in time; it says how many pieces.
    type: bool
    default: false
  authorisation:
    description: Compare what each user may do, computed from the tables without the mappings.
    type: bool
    default: true
  canaries:
    description:
      - Accounts whose passwords are known; Django's own hashers check them against the password hashes in the target. The formats of all
        password hashes are counted and unknown ones reported also when the list is empty.
    type: list
    elements: dict
    default: []
    suboptions:
      username:
        description: The account's user name.
        type: str
        required: true
      password:
        description: Its password.
        type: str
        required: true
  baseline:
    description: Time the same questions on the monolith and on the services with pgbench.
    type: bool
    default: false
  baseline_seconds:
    description: How long each question is asked on each side.
    type: int
    default: 2
  baseline_ratio:
    description: How many times as long as the monolith a service may take; answers within a millisecond always pass.
    type: float
    default: 1.5
  bin_dir:
    description: The folder with C(pgbench); looked up in the PATH when not given.
    type: path
  progress_file:
    description: Where to write how far the work is; set by the action plugin.
    type: path
requirements:
  - psycopg2
  - Django, for O(canaries) only
attributes:
  check_mode:
    support: full
    description: Tells what would be compared; connects to no source or target.
  diff_mode:
    support: none
    description: Changes nothing.
  idempotent:
    support: full
    description: Changes nothing.
"""

EXAMPLES = r"""
- name: Compare every column of every row
  migration_validate:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
  register: __validate_result

- name: Compare with a digest that auditors know
  migration_validate:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    digest: sha256
"""

RETURN = r"""
passed:
  description: Whether no difference was found.
  type: bool
  returned: success
verdict:
  description: The outcome in one line.
  type: str
  returned: success
run_id:
  description: The migration's name; empty when there is none.
  type: str
  returned: success
tables:
  description: For each target its rows on both sides, differences, seconds and rows a second.
  type: list
  elements: dict
  returned: success
  sample: [{target: auth_service.users, source_rows: 20000, target_rows: 20000, differences: 0, seconds: 0.2, rows_per_second: 200000}]
lines:
  description: The first findings, a line each, without values.
  type: list
  elements: str
  returned: success
sessions:
  description: Whether the migration wrote sessions that are still in the session store.
  type: bool
  returned: when not in check mode
next:
  description: When it failed, the playbook that helps (C(command)) and the reason (C(why)); both empty otherwise.
  type: dict
  returned: success
validation:
  description: Everything, as validation.json keeps it.
  type: dict
  returned: when not in check mode
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.checks.reconciliation import Balance
from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.errors import MigrationError
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.progress import Progress
from ..module_utils.migration.repair import release
from ..module_utils.migration.report.advice import CHECKS, failed, remedy
from ..module_utils.migration.schema import sequences
from ..module_utils.migration.state import control
from ..module_utils.migration.state.control import Migration
from ..module_utils.migration.stopping import stop_with_ansible
from ..module_utils.migration.validate import authorization, latency, test_logins
from ..module_utils.migration.validate import run as validate

KIND, PIECE = "validate", "validate_piece"
LINES = 20
MOST_KEPT = 50_000  # findings: each is held by the runner and the controller, and stands in the record and in validation.json
Check = authorization.Equivalence | Balance | test_logins.Canaries | latency.Baseline | release.Release | sequences.Sequences
NOTHING = {"command": "", "why": ""}  # Ansible resolves the words of an assertion that holds, too
COUNTED_BESIDE = ("accounting",)  # while the rows were read
EVERY = 10**9  # quarantined rows: how many there may be was decided when they were set aside


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError when something cannot be compared."""
    params = module.params
    context = Context.from_params(params, module.check_mode)
    if params["workers"] < 1 or min(params[name] for name in ("parallel_workers", "settle_attempts", "settle_seconds", "findings_kept")) < 0:
        raise MigrationError("validate: workers must be 1 or more; parallel_workers, settle_attempts, settle_seconds and findings_kept 0 or more")
    if params["findings_kept"] > MOST_KEPT:
        raise MigrationError(
            f"validate: validate_findings_kept is {params['findings_kept']:,}, and {MOST_KEPT:,} are the most that are kept (all are counted);"
            " to see more of one table name it alone in validate_tables"
        )
    if module.check_mode:
        return _foreseen(context, params)
    records = control.connect(context.control)
    live = control.require_open(records, context.plan.digest)
    progress = Progress(params["progress_file"])
    try:
        validation = _validate(context, params, live, records, progress)
    except MigrationError as exc:
        control.record(records, KIND, "error", {"error": str(exc)}, migration=live, plan_digest=context.plan.digest)
        raise
    finally:
        progress.close()
    control.record(records, KIND, outcome(validation), validation, migration=live, plan_digest=context.plan.digest)
    return {
        "changed": False,
        "passed": validation["passed"],
        "verdict": validation["verdict"],
        "run_id": live.run_id,
        "tables": validation["tables"],
        "lines": validation["lines"],
        "validation": validation,
        "next": NOTHING if validation["passed"] else remedy(validation).to_dict(),
        "sessions": any(item.outcome != "removed" for item in [control.latest(records, "sessions", migration=live)] if item is not None),
    }


def outcome(validation: Mapping[str, Any]) -> str:
    """Return what is recorded: only a validation of everything can be `passed`; some equal tables are `partial`, which proves nothing of the rest."""
    return ("passed" if validation["complete"] else "partial") if validation["passed"] else "failed"


def _validate(context: Context, params: dict[str, Any], live: Migration, records: Any, progress: Progress) -> dict[str, Any]:
    started = time.monotonic()
    options = validate.Options(
        digest=params["digest"],
        workers=params["workers"],
        parallel=params["parallel_workers"],
        settle_attempts=params["settle_attempts"],
        settle_seconds=params["settle_seconds"],
        findings_kept=params["findings_kept"],
        accounts=params["tables"] is None,
        after_cutover=_after_cutover(params, records, live),
    )
    found = validate.compare(
        context,
        live.plan_time,
        tables=params["tables"],
        options=options,
        progress=lambda what, done, total: progress.update(KIND, "both sides", done, total),
        keeping=validate.Keeping(
            _kept(context, records, live) if params["resume"] else {},
            lambda piece: control.record(records, PIECE, "read", asdict(piece), migration=live, plan_digest=context.plan.digest),
        ),
    )
    loose = [item.line for item in found.references if item.dangling]
    validation = {
        **found.to_dict(),
        "run_id": live.run_id,
        "plan_digest": context.plan.digest,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "complete": params["tables"] is None,
        "rows_of_services": "apart" if options.after_cutover else "difference",
        "lines": first([finding.line for finding in found.findings[:LINES]], found.differences, len(found.findings)) + first(loose, len(loose)),
    }
    balance = found.balance
    if balance is not None:
        _include(validation, "accounting", lambda: balance)
    if params["tables"] is None:
        _include(validation, "quarantine", lambda: release.plan_release(context, live.plan_time, cap=EVERY))
    if params["tables"] is None:
        _include(validation, "sequences", lambda: sequences.look(context))
    if params["authorisation"] and params["tables"] is None:
        chosen = {"workers": params["workers"], "digest": params["digest"], "after_cutover": options.after_cutover}
        _include(validation, "authorisation", lambda: authorization.compare(context, live.plan_time, **chosen))
    if params["canaries"] or params["tables"] is None:
        _include(validation, "canaries", lambda: test_logins.check(context, [(item["username"], item["password"]) for item in params["canaries"]]))
    if params["baseline"]:
        seconds, most = params["baseline_seconds"], params["baseline_ratio"]
        _include(validation, "baseline", lambda: latency.measure(context, params["bin_dir"], seconds=seconds, most=most))
    validation |= {"verdict": whole_verdict(validation), "seconds": round(time.monotonic() - started, 3)}
    return validation


def _kept(context: Context, records: Any, live: Migration) -> dict[str, validate.KeptPiece]:
    """Return the pieces that were read since the last validation that came to an end."""
    last = control.latest(records, KIND, migration=live)
    since = last.id if last and last.outcome != "error" else 0
    found = control.history(records, kind=PIECE, migration=live, limit=10_000)
    mine = [item for item in reversed(found) if item.id > since and item.plan_digest == context.plan.digest]
    return {str(item.detail["key"]): validate.KeptPiece(**item.detail) for item in mine}


def _include(validation: dict[str, Any], name: str, look: Callable[[], Check]) -> None:
    """Add a check's result and how long it took; when it failed the whole validation has failed."""
    started = time.monotonic()
    check = look()
    validation[name] = check.to_dict()
    if name not in COUNTED_BESIDE:
        validation["phases"][name] = round(time.monotonic() - started, 3)
    if not check.passed:
        validation["passed"] = False
        validation["lines"] += first(check.lines, len(check.lines))


def first(lines: Sequence[str], total: int, kept: int | None = None) -> list[str]:
    """Return the first lines, how many more there are, and where (validation.json has `kept` of them, all if not given)."""
    shown = list(lines[:LINES])
    where = "see validation.json" if kept is None or kept >= total else f"validation.json has {kept:,} of them (validate_findings_kept)"
    return [*shown, *([f"... and {total - len(shown):,} more, {where}"] if total > len(shown) else [])]


def whole_verdict(validation: Mapping[str, Any]) -> str:
    """Return one line for the rows and every check: all that was proven, or, when something failed, that alone and first."""
    rows = str(validation["verdict"])
    wrong = [str(validation[name]["verdict"]) for name in failed(validation)]
    if not wrong:
        proven = [str(validation[name]["verdict"]) for name in CHECKS if name in validation]
        return "; ".join([rows, *(proven if rows.startswith("equal") else ())])
    return "; ".join([f"NOT passed: {wrong[0]}", *wrong[1:], f"rows {rows}"] if rows.startswith("equal") else [rows, *wrong])


def _after_cutover(params: dict[str, Any], records: Any, live: Migration) -> bool:
    if params["service_rows"] != "auto":
        return bool(params["service_rows"] == "apart")
    cutover = control.latest(records, "cutover", migration=live)
    return cutover is not None and cutover.outcome == "passed"


def _foreseen(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    """Return what would be compared."""
    targets = validate.choose(context.plan, params["tables"])
    columns = sum(len(target.columns) for target in targets)
    return {
        "changed": False,
        "passed": True,
        "verdict": f"would compare {columns} columns of {len(targets)} tables, every row, in both directions",
        "run_id": "",
        "next": NOTHING,
        "tables": [],
        "lines": [f"{target.name}: {', '.join(target.columns)} with {', '.join(part.label for part in target.parts)}" for target in targets],
    }


def main() -> None:
    """Read the options, compare, report."""
    module = MigrationModule(
        argument_spec={
            **CONTEXT_SPEC,
            "tables": {"type": "list", "elements": "str"},
            "digest": {"type": "str", "choices": ["auto", "record", "sha256"], "default": "auto"},
            "workers": {"type": "int", "default": 2},
            "parallel_workers": {"type": "int", "default": 0},
            "settle_attempts": {"type": "int", "default": 3},
            "settle_seconds": {"type": "float", "default": 2},
            "findings_kept": {"type": "int", "default": 10000},
            "service_rows": {"type": "str", "choices": ["auto", "difference", "apart"], "default": "auto"},
            "resume": {"type": "bool", "default": False},
            "authorisation": {"type": "bool", "default": True},
            "canaries": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"username": {"type": "str", "required": True}, "password": {"type": "str", "required": True, "no_log": True}},
            },
            "baseline": {"type": "bool", "default": False},
            "baseline_seconds": {"type": "int", "default": 2},
            "baseline_ratio": {"type": "float", "default": 1.5},
            "bin_dir": {"type": "path"},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    stop_with_ansible()
    finish(module, run)


if __name__ == "__main__":
    main()
