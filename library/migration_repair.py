#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mend the differences that the last validation found."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_repair
short_description: Mend the differences that the last validation found
description:
  - Takes the findings of the last validation of the open migration and makes exactly those keys equal to the source, by the same
    function that the transfer and the catch-up write with.
  - When the validation found more rows than it named, the tables in which something differs are compared anew and settled whole, parents first.
  - Sequences behind mapped columns that the validation found behind the rows are moved past them, never backwards.
  - Once the cutover has passed, the services own their rows; nothing is written then unless O(insert_missing) asks for the missing ones.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
options:
  max_rows:
    description: How many rows may change at most; more is an error before anything is written.
    type: int
    default: 1000
  insert_missing:
    description:
      - After the cutover, insert rows again that a service does not have. It may have deleted them itself, which nobody can see; look first.
      - Before the cutover missing rows are inserted in any case.
    type: bool
    default: false
requirements:
  - psycopg2
attributes:
  check_mode:
    support: full
    description: Reads the findings from the control database and shows what would be written, also when it is more than O(max_rows); it says so.
  diff_mode:
    support: full
    description: Shows each row's table, key, id and columns, or how many rows of each table where whole tables are settled; no values.
  idempotent:
    support: full
    description: Writing the same keys again changes nothing.
"""

EXAMPLES = r"""
- name: Mend what the last validation found
  migration_repair:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    max_rows: 50
"""

RETURN = r"""
tables:
  description: For each table how many rows are inserted, updated and deleted.
  type: dict
  returned: success
  sample: {auth_service.users: {update: 3, insert: 1}}
written:
  description: How many rows were written.
  type: int
  returned: success
left:
  description: Findings that are not mended, with the reason.
  type: list
  elements: str
  returned: success
msg:
  description: The outcome in one line.
  type: str
  returned: success
"""

import time
from collections.abc import Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.errors import MigrationError
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.repair.repair import Repair, apply_repair, plan_repair, require_cap
from ..module_utils.migration.report.advice import failed, remedy
from ..module_utils.migration.schema import sequences
from ..module_utils.migration.state import control
from ..module_utils.migration.state.rolled_back import require_not_rolled_back
from ..module_utils.migration.stopping import stop_with_ansible
from ..module_utils.migration.text import counted
from ..module_utils.migration.upsert.upsert import Equalized

KIND = "repair"
NOTHING = {
    "passed": "the last validation found no difference",
    "partial": "the last validation found no difference in the tables that it compared; run playbooks/validate.yml for all",
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError when there are no findings or too many."""
    context = Context.from_params(module.params, module.check_mode)
    records = control.connect(context.control, readonly=module.check_mode)
    live = control.require_open(records, context.plan.digest)
    require_not_rolled_back(context, live)
    last = control.latest(records, "validate", migration=live)
    if last is None or last.outcome == "error":
        raise MigrationError("this migration has no finished validation; run playbooks/validate.yml first")
    mended = control.latest(records, KIND, migration=live)
    if last.outcome in ("passed", "partial") or (mended is not None and mended.id > last.id):
        why = NOTHING.get(last.outcome, "the last findings are mended already; run playbooks/validate.yml")
        return {"changed": False, "tables": {}, "written": 0, "left": [], "msg": f"nothing to repair: {why}"}
    cutover = control.latest(records, "cutover", migration=live)
    passed = cutover is not None and cutover.outcome == "passed"
    repair = plan_repair(last.detail, after_cutover=passed, insert_missing=module.params["insert_missing"])
    behind = sequences.look(context).behind if "sequences" in failed(last.detail) else ()
    if not repair.rows and not repair.left and not repair.unnamed and not behind:
        helps = remedy(last.detail)
        said = f"nothing to repair: no row differs, but the last validation failed. Next: {helps.command} ({helps.why})"
        return {"changed": False, "tables": {}, "written": 0, "left": [], "msg": said}
    refused = ""
    try:
        require_cap(repair, module.params["max_rows"])
    except MigrationError as exc:
        if not module.check_mode:  # a dry run is how one looks before one raises it
            raise
        refused = f"; would refuse: {exc}"
    written = 0
    if (repair.rows or behind) and not module.check_mode:
        started = time.monotonic()
        done = apply_repair(context, live.plan_time, repair, module.params["max_rows"]) if repair.rows else Equalized()
        behind = sequences.advance(context)
        written = done.rows
        detail = {
            "tables": repair.by_table,
            "inserted": done.inserted,
            "updated": done.updated,
            "deleted": done.deleted,
            "left": len(repair.left),
            "sequences": sequences.in_words(behind),
            "unnamed": repair.unnamed,
            "seconds": round(time.monotonic() - started, 3),
        }
        control.record(records, KIND, "passed", detail, migration=live, plan_digest=context.plan.digest)
    return {
        "changed": bool(repair.rows or behind) if module.check_mode else bool(written or behind),
        "tables": repair.by_table,
        "written": written,
        "left": [f"{finding.line}: {why}" for finding, why in repair.left],
        "msg": _line(repair, written, module.check_mode) + _moved(behind, module.check_mode) + refused,
        "diff": {
            "before_header": "targets",
            "after_header": "targets, repaired",
            "before": "",
            "after": "".join(f"{line}\n" for line in [*repair.lines, *sequences.in_words(behind)]),
        },
    }


def _line(repair: Repair, written: int, check: bool) -> str:
    many = counted(repair.rows, "row")
    rows = f"would make {many} equal to the source" if check else f"made {many} equal to the source, wrote {written}"
    left = f"; left {counted(len(repair.left), 'row')}, named below with the reason" if repair.left else ""
    more = counted(repair.unnamed, "difference was", "differences were")
    compared = "compares" if check else "compared"
    unnamed = f"; {more} counted but not named, so it {compared} {counted(len(repair.whole), 'whole table')} anew, parents first" if repair.whole else ""
    return rows + left + unnamed


def _moved(behind: Sequence[sequences.Behind], check: bool) -> str:
    many = counted(len(behind), "sequence")
    return f"; {'would move' if check else 'moved'} {many} past the rows: {'; '.join(sequences.in_words(behind))}" if behind else ""


def main() -> None:
    """Read the options, repair, report."""
    module = MigrationModule(
        argument_spec={**CONTEXT_SPEC, "max_rows": {"type": "int", "default": 1000}, "insert_missing": {"type": "bool", "default": False}},
        supports_check_mode=True,
    )
    stop_with_ansible()
    finish(module, run)


if __name__ == "__main__":
    main()
