# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-rollback`: the seconds of snapshot, proof and rollback in both scopes, through the playbooks, on servers with their default durability.

Environment: BENCH_USERS (1000000), BENCH_SCOPES (databases,data). Writes artifacts/bench/rollback.json: wall seconds of each playbook and, from the
migration's own records, of each step in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import Any

from ansible.module_utils.migration.state import control
from ansible.module_utils.migration.state.control import Record

from tests.bench.world import PROJECT, World, world

USERS = int(os.environ.get("BENCH_USERS", "1000000"))
SCOPES = os.environ.get("BENCH_SCOPES", "databases,data").split(",")
REPORT = PROJECT / "artifacts" / "bench" / "rollback.json"
MIGRATE = ("schema", "migrate", "index")


def play(found: World, name: str, *variables: str) -> float:
    """Run a playbook against the bench's servers; return its wall seconds."""
    extra = {"migration_artifacts_dir": str(found.folder / "artifacts"), **dict(item.split("=") for item in variables)}
    argv = [sys.executable, "-m", "ansible", "playbook", "-i", str(found.inventory), f"playbooks/{name}.yml", "-e", json.dumps(extra)]
    started = time.monotonic()
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stdout[-3000:]}{done.stderr[-2000:]}")
    return round(time.monotonic() - started, 1)


def records(found: World, kind: str, after: int) -> list[Record]:
    """Return the records of a kind that are newer than the record `after`, oldest first."""
    with contextlib.closing(control.connect(found.context.control, readonly=True)) as connection:
        return [item for item in reversed(control.history(connection, kind=kind, limit=1000)) if item.id > after]


def newest(found: World) -> int:
    """Return the id of the newest record."""
    with contextlib.closing(control.connect(found.context.control, readonly=True)) as connection:
        return max((item.id for item in control.history(connection, limit=1)), default=0)


def go(found: World, scope: str) -> dict[str, Any]:
    """Snapshot with proof, migrate, roll back; return the seconds."""
    play(found, "preflight")
    before = newest(found)
    seconds: dict[str, Any] = {"snapshot.yml": play(found, "snapshot", "snapshot_verify_restore=true")}
    taken, proof = records(found, "snapshot", before)[0].detail, records(found, "snapshot_proof", before)[0].detail
    seconds["dump"] = {item["name"]: {key: item[key] for key in ("seconds", "rows", "bytes")} for item in taken["databases"]}
    seconds["dumped bytes"] = taken["bytes"]
    seconds["proof"] = {item["name"]: {key: item[key] for key in ("restore_seconds", "seconds")} for item in proof["databases"]}
    seconds["snapshot.yml again"] = play(found, "snapshot", "snapshot_verify_restore=true")
    for name in MIGRATE:
        play(found, name)
    before = newest(found)
    seconds["rollback.yml"] = play(found, "rollback", f"rollback_scope={scope}")
    steps = records(found, "rollback", before)
    seconds["steps"] = [{"step": item.outcome, **{key: item.detail[key] for key in ("service", "seconds", "rows") if key in item.detail}} for item in steps]
    return seconds


def main() -> None:
    """Measure both scopes, print, write the report."""
    result: dict[str, Any] = {"users": USERS, "processors": os.cpu_count()}
    with world(USERS, group_permissions=0) as found:
        for scope in SCOPES:
            result[scope] = go(found, scope)
            print(json.dumps({scope: result[scope]}, indent=1), flush=True)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {REPORT.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
