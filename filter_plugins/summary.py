# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the migration stands, as an operator reads it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = ("table", "source rows", "target rows", "differences", "seconds", "rows/s")
_RUNNING = ("table", "done", "rows", "of about", "rows/s now", "time left")


def migration_summary(status: Mapping[str, Any], inventories: Sequence[str] = (), report: str = "", root: str = "/", hints: Sequence[str] = ()) -> str:
    """Return the status as text: the phases, the tables, the limits, what to do next; `hints` only when all is proven.

    Paths below the project's `root` are shown relative to it.
    """
    lines = [(f"{' and '.join(_near(item, root) for item in inventories)}: " if inventories else "") + _headline(status)]
    lines += [f"  {item['phase']:<10} {_outcome(item):<12} {item['when']}  {item.get('remark', '')}" for item in status["phases"]]
    if any(_old(item) for item in status["phases"]):
        lines.append("  (old): of a migration before this one")
    for item in status["services"]:
        lines += _service(item)
    tables = sorted(status["tables"], key=_bookkeeping)
    if tables:
        lines += ["", *(_running(tables) if _unfinished(tables) else _closing(tables))]
    if report and status["run_id"]:
        lines += ["", f"Report: {_near(report, root)}"]
    where = f" {inventory_arguments(inventories, root)}" if inventories else ""
    lines += ["", f"Next: {playbook_command(root)} {status['next']['command']}{where}", f"      ({status['next']['why']})"]
    if hints and _proven(tables, status["phases"]):
        lines += ["", "Or try:", *(f"  {hint}" for hint in hints)]
    return "\n".join(line.rstrip() for line in lines)


def inventory_arguments(inventories: Sequence[str], root: str) -> str:
    """Return `-i` with each inventory of this run, as it is to be typed in the project's `root`."""
    return " ".join(f"-i {shlex.quote(_near(item, root))}" for item in inventories)


def playbook_command(root: str) -> str:
    """Return what to type for this controller's ansible-playbook in the project's `root`: relative to it, by name, or in full."""
    own = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "ansible-playbook")
    found = shutil.which("ansible-playbook")
    if not os.path.exists(own):
        return "ansible-playbook"
    if not os.path.relpath(own, root).startswith(".."):
        return os.path.relpath(own, root)
    return "ansible-playbook" if found and os.path.samefile(found, own) else own


def psql_command(endpoint: Mapping[str, Any], bin_dir: str = "") -> str:
    """Return what to type to look into a database, whatever its names are; the password is asked for."""
    given = {"host": endpoint.get("login_host"), "port": endpoint.get("login_port", 5432), "dbname": endpoint["login_db"], "user": endpoint["login_user"]}
    role = endpoint.get("session_role")
    if role:
        given["options"] = "-crole=" + str(role).replace("\\", "\\\\").replace(" ", "\\ ")
    words = " ".join(f"{name}={_conninfo(str(value))}" for name, value in given.items() if value not in (None, ""))
    return f"{shlex.quote(os.path.join(bin_dir, 'psql'))} {shlex.quote(words)}"


def _conninfo(value: str) -> str:
    """Return a value of a connection string, in quotes where it needs them (libpq, "Connection Strings")."""
    if value.replace("_", "").replace("/", "").replace(".", "").replace("-", "").replace("=", "").isalnum():
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _bookkeeping(item: Mapping[str, Any]) -> bool:
    """Tell whether a table is the migration's own; those come last."""
    return ".migration." in item["target"]


def _near(path: str, root: str) -> str:
    """Return a path as it is typed in `root`; a list of hosts (`a,b`) is no path."""
    if "," in path:
        return path
    near = os.path.relpath(path, root)
    return os.path.normpath(path) if near.startswith("..") else near


def _headline(status: Mapping[str, Any]) -> str:
    if not status["run_id"]:
        return "No migration has begun."
    begun = f"begun {status['opened_at']}, plan {status['plan_digest'][:12]}, timestamp {status['plan_time']}"
    headline = f"Migration {status['run_id']} is {status['state'].replace('_', ' ')} ({begun})"
    return headline if status["plan_matches"] else headline + ": NOT the plan of today's mappings"


def _outcome(item: Mapping[str, Any]) -> str:
    return str(item["outcome"]) + (" (old)" if _old(item) else "")


def _old(item: Mapping[str, Any]) -> bool:
    return not (item["this_migration"] or item["phase"] == "rehearse")


def _service(item: Mapping[str, Any]) -> list[str]:
    if item["fault"]:
        return [f"  {item['service']}: {item['fault']}"]
    lines = []
    if item["snapshot_age"] is not None:
        lines.append(f"  {item['service']}: the source's snapshot is {_many(round(item['snapshot_age'] / 60), 'minute', 'minutes')} old; it holds vacuum back")
    if item["sessions"]:
        lines.append(f"  {item['service']}: {_many(item['sessions'], 'session is', 'sessions are')} at work")
    if item["rejects"]:
        lines.append(f"  {item['service']}: {_many(item['rejects'], 'row is', 'rows are')} quarantined in migration.rejects")
    if item["limits"]:
        lines.append(f"  {item['service']}: limits set while running: " + ", ".join(f"{name}={value:g}" for name, value in item["limits"].items()))
    return lines


def _unfinished(tables: Sequence[Mapping[str, Any]]) -> bool:
    return any(item.get("chunks_done", 0) < item.get("chunks", 0) for item in tables)


def _proven(tables: Sequence[Mapping[str, Any]], phases: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether no row differs, and whether no other check of the last validation failed."""
    failed = any(item["phase"] == "validate" and item["outcome"] == "failed" for item in phases)
    return bool(tables) and not failed and all(item.get("differences") == 0 for item in tables)


def _running(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for item in tables:
        left, rate = item.get("expected", 0) - item.get("rows", 0), item.get("recent_rate", 0)
        share = f"{100 * item.get('chunks_done', 0) // max(1, item.get('chunks', 1))}%"
        time_left = _clock(left / rate) if rate and left > 0 else ""
        rows.append((item["target"], share, _count(item.get("rows")), _count(item.get("expected")), _count(rate), time_left))
    return _table(_RUNNING, rows)


def _closing(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for item in tables:
        seconds = item.get("seconds")
        rows.append(
            (
                item["target"],
                _count(item.get("source_rows")),
                _count(item.get("target_rows", item.get("rows"))),
                _count(item.get("differences")),
                "" if seconds is None else f"{seconds:.2f}",
                _count(item.get("rate")),
            )
        )
    sums = [_sum(tables, name) for name in ("source_rows", "target_rows", "differences")]
    ran = [item for item in tables if item.get("ended")]
    seconds = max(item["ended"] for item in ran) - min(item["started"] for item in ran) if ran else 0.0
    carried = sum(item.get("rows") or 0 for item in ran)
    rows.append(("total, side by side", *map(_count, sums), f"{seconds:.2f}", _count(round(carried / seconds)) if seconds else ""))
    return _table(_HEAD, rows)


def _sum(tables: Sequence[Mapping[str, Any]], name: str) -> int | None:
    known = [item[name] for item in tables if item.get(name) is not None]
    return sum(known) if known else None


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    made = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in (head, *rows)]
    return [made[0], "-" * len(made[0]), *made[1:]]


def _many(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "migration_summary": migration_summary,
            "inventory_arguments": inventory_arguments,
            "playbook_command": playbook_command,
            "psql_command": psql_command,
        }
