# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One phase in a process of its own, as a module runs it, so that its memory and time can be measured from outside.

    python -m tests.bench.child <phase> <pickled context>      prints one line of JSON
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.world import PLAN_TIME

import ansible.module_utils.basic  # noqa: F401  isort: skip  (every module has it in memory)
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.embedded.server import binaries
from ansible.module_utils.migration.preflight import run as preflight
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair.reconcile import reconcile
from ansible.module_utils.migration.schema import build
from ansible.module_utils.migration.state.limits import Limits
from ansible.module_utils.migration.transfer import run as transfer
from ansible.module_utils.migration.validate import run as verify

UNLIMITED = Limits(cpu_percent=0, memory_percent=0, disk_percent=0)


def migrate(context: Context) -> dict[str, float]:
    """Carry everything and build every constraint and index: the modules migration_copy and migration_index."""
    outcome = transfer.run(context, PLAN_TIME, "bench", transfer.Options("bench", limits=UNLIMITED), Progress(None), reconcile)
    start = time.monotonic()
    build_indexes(context)
    rows = sum(table.rows for table in outcome.tables)
    return {"rows": rows, **outcome.seconds, "index": round(time.monotonic() - start, 3)}


def build_indexes(context: Context) -> None:
    """Build what the index phase builds, both databases at a time, as its play does."""

    def one(item: tuple[str, dict[str, object]]) -> None:
        build.build(context.targets[item[0]], Contract.from_dict(item[1]), options=build.Options(jobs=1))  # both databases share the machine

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, context.plan.contracts))


def validate(context: Context, digest: str) -> dict[str, float]:
    """Compare every column of every row."""
    found = verify.compare(context, PLAN_TIME, options=verify.Options(digest=digest, accounts=True))
    return {"rows": sum(table.source_rows for table in found.tables.values()), "findings": len(found.findings)}


def look(context: Context) -> dict[str, float]:
    """Read everything that preflight reads; what was carried passes, or the figure means nothing."""
    report = preflight.run(context, preflight.Options(str(binaries(Path("/"), None)), limits=UNLIMITED), None)
    stopped = [f"{item.place}: {item.message}" for item in report.findings if item.level == "stop"]
    if stopped:
        sys.exit(f"preflight stops: {'; '.join(stopped)}")
    return {"rows": sum(report.rows.values())}


def main() -> None:
    """Run one phase."""
    context = pickle.loads(Path(sys.argv[2]).read_bytes())
    start = time.monotonic()
    phase, _, variant = sys.argv[1].partition("-")
    result = {"migrate": lambda: migrate(context), "preflight": lambda: look(context), "validate": lambda: validate(context, variant)}[phase]()
    print(json.dumps({"seconds": round(time.monotonic() - start, 3), **result}))


if __name__ == "__main__":
    main()
