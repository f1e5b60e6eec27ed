# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: alternate the cases, take medians, print ratios, write artifacts/bench/bench.json and bench.svg.

Environment: BENCH_USERS (1000000), BENCH_REPEATS (3), BENCH_LINEAR_USERS (0: leave the linearity row out; 5000000 is the goal's),
BENCH_ONLY (names of groups: transfer, groups, rows, ansible, linear, validate, sessions; all by default).
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.bench import cases, sessions, validation
from tests.bench.meter import with_cpu
from tests.bench.plot import bars
from tests.bench.world import PROJECT, World, world

USERS = int(os.environ.get("BENCH_USERS", "1000000"))
REPEATS = int(os.environ.get("BENCH_REPEATS", "3"))
LINEAR = int(os.environ.get("BENCH_LINEAR_USERS", "0"))
ONLY = os.environ.get("BENCH_ONLY", "").replace(",", " ").split()
FOLDER = PROJECT / "artifacts" / "bench"
Case = Callable[[World], cases.Result]


class Table:
    """The rows of the result, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, case: str, users: int, result: cases.Result, limit: cases.Result | None = None, against: str = "") -> None:
        """Add one case; its ratio is that of the seconds to those of `limit`."""
        ratio = round(result["seconds"] / limit["seconds"], 3) if limit else None
        row = {
            "case": case,
            "users": users,
            "rows": int(result.get("rows", 0)),
            "seconds": round(result["seconds"], 3),
            "ratio_to_limit": ratio,
            "limit": against,
            "peak_rss_mib": round(result.get("peak_rss_mib", 0.0), 1),
            "parts": {name: value for name, value in result.items() if name not in ("seconds", "rows", "peak_rss_mib")},
        }
        self.rows.append(row)
        rate = row["rows"] / result["seconds"] if result["seconds"] else 0  # type: ignore[operator]
        shown = f"{ratio:.2f} x {against}" if ratio is not None else ""
        figures = f"{users:>9,} users {row['rows']:>11,} rows {result['seconds']:>8.2f} s {rate:>9,.0f} rows/s"
        print(f"{case:<28} {figures}  {shown:<28} {row['peak_rss_mib']:>6} MiB", flush=True)


def alternate(found: World, chosen: dict[str, Case]) -> dict[str, cases.Result]:
    """Run the cases in turn, REPEATS times, after one uncounted round of the first; return their medians."""
    next(iter(chosen.values()))(found)
    results: dict[str, list[cases.Result]] = {name: [] for name in chosen}
    for number in range(REPEATS):
        for name, case in chosen.items():
            print(f"  round {number + 1} of {REPEATS}: {name}", file=sys.stderr, flush=True)
            results[name].append(with_cpu(functools.partial(case, found), found.servers))
    return {name: cases.medians(found_results) for name, found_results in results.items()}


def wanted(group: str) -> bool:
    """Tell whether a group of cases is asked for."""
    return not ONLY or group in ONLY


def transfer(table: Table) -> None:
    """The transfer against bare pipes and against dump and restore; then validation of what it carried."""
    with world(USERS, group_permissions=0) as found:
        done = alternate(found, {"limit": cases.limit, "migrate": cases.migrate, "dump_restore": cases.dump_restore})
        table.add("limit", USERS, done["limit"])
        table.add("dump_restore", USERS, done["dump_restore"])
        table.add("migrate", USERS, done["migrate"], done["limit"], "limit")
        table.add("migrate_to_dump_restore", USERS, done["migrate"], done["dump_restore"], "dump_restore")
        if wanted("validate"):
            cases.migrate(found)
            names = ("validate-auto", "validate-sha256", "preflight")
            ours: dict[str, Case] = {name: functools.partial(cases.phase, name=name) for name in names}
            ours |= {f"validate-{count}-differ": functools.partial(validation.differing, count=count) for count in (1, 1000)}
            checks = alternate(found, {**ours, "scan": validation.scan, "sorted_streams": validation.sorted_streams})
            table.add("validate-auto", USERS, checks["validate-auto"], done["migrate"], "migrate")
            table.add("validate-sha256", USERS, checks["validate-sha256"], done["migrate"], "migrate")
            for count in (1, 1000):
                table.add(f"validate-{count}-differ", USERS, checks[f"validate-{count}-differ"], checks["validate-auto"], "validate-auto")
            table.add("scan_both_sides", USERS, checks["scan"])
            table.add("validate_to_scan", USERS, checks["validate-auto"], checks["scan"], "scan_both_sides")
            table.add("sorted_streams", USERS, checks["sorted_streams"], checks["validate-auto"], "validate-auto")
            table.add("preflight", USERS, checks["preflight"], checks["validate-auto"], "validate-auto")


def groups(table: Table) -> None:
    """The costliest mapping: groups of twenty permissions each."""
    users = USERS // 2
    with world(users, group_permissions=20) as found:
        done = alternate(found, {"limit": cases.limit, "migrate": cases.migrate})
        table.add("limit_20_permissions", users, done["limit"])
        table.add("migrate_20_permissions", users, done["migrate"], done["limit"], "limit_20_permissions")


def row_by_row(table: Table) -> None:
    """For orientation: what the engine's way gains over one row at a time."""
    users = min(USERS, 50_000)
    with world(users, group_permissions=0) as found:
        done = {"migrate": cases.migrate(found), "row_by_row": cases.row_by_row(found)}
        table.add("row_by_row", users, done["row_by_row"], done["migrate"], "migrate")


def live_sessions(table: Table) -> None:
    """Sessions carried into the store against the same values piped as they are."""
    count = max(1000, USERS // 10)
    with world(5000, group_permissions=3, sessions=count) as found:
        cases.migrate(found)
        raw: cases.Result | None = None
        for row in sessions.cases(found):
            result = {"seconds": row["seconds"], "rows": row["rows"], "peak_rss_mib": row["peak_rss_mib"]}
            raw = raw or result
            table.add(row["case"], count, result, raw, "raw values piped")


def linear(table: Table) -> None:
    """Seconds a row at a larger size against those at BENCH_USERS, and against the limit at that size, which tells the machine's part from the transfer's."""
    if not LINEAR:
        return
    with world(LINEAR, group_permissions=0) as found:
        own = cases.limit(found)
        result = cases.migrate(found)
    table.add("limit_linear", LINEAR, own)
    table.add("migrate_linear_to_limit", LINEAR, result, own, "limit_linear")
    before = next((row for row in table.rows if row["case"] == "migrate"), None)
    if before is not None:
        scaled = {"seconds": float(before["seconds"]) / int(before["rows"]) * result["rows"]}  # type: ignore[arg-type, call-overload]
        table.add("migrate_linear", LINEAR, result, scaled, "migrate, scaled by rows")


def ansible(table: Table) -> None:
    """Ansible's own share: every phase over a monolith with next to no rows."""
    with world(100, group_permissions=0) as found:
        for name in ("preflight", "snapshot", "schema", "migrate", "index", "validate", "status"):
            start = time.monotonic()
            command = [str(Path(sys.executable).parent / "ansible-playbook"), f"playbooks/{name}.yml", "-i", str(found.inventory)]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stdout[-2000:])
                raise SystemExit(f"bench: playbooks/{name}.yml failed")
            table.add(f"ansible_{name}", 100, {"seconds": time.monotonic() - start})


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def main() -> None:
    """Run the groups of cases and write the results."""
    table = Table()
    steps = {"transfer": transfer, "groups": groups, "rows": row_by_row, "sessions": live_sessions, "ansible": ansible, "linear": linear}
    for name, step in steps.items():
        if wanted(name):
            step(table)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "bench.json").write_text(json.dumps({"machine": machine(), "repeats": REPEATS, "cases": table.rows}, indent=2) + "\n", encoding="utf-8")
    (FOLDER / "bench.svg").write_text(bars(table.rows), encoding="utf-8")
    print(f"written: {FOLDER.relative_to(PROJECT)}/bench.json, {FOLDER.relative_to(PROJECT)}/bench.svg")


if __name__ == "__main__":
    main()
