# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight's report to an operator's lines and files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_LEVELS = ("stop", "warn", "info")


def preflight_lines(report: Mapping[str, Any], most: int = 60) -> list[str]:
    """Return the findings as lines, stop first, then the rows that will move."""
    findings = list(report["findings"])
    lines = [_line(item) for item in findings[:most]]
    if len(findings) > most:
        lines.append(f"... and {len(findings) - most} more in preflight.json")
    rows = [item["rows"] for item in report["rows"]]
    lines.append(f"{sum(rows):,} rows of {len(rows)} sources checked in {sum(report['seconds'].values()):.1f} s")
    accounts = report.get("accounting", [])
    lines += [_account(item) for item in accounts[:most]]
    if len(accounts) > most:
        lines.append(f"... and {len(accounts) - most} more source tables in preflight.json")
    for phase in report.get("estimates", {}).get("phases", []):
        lines.append(f"estimate: {phase['phase']:<10} {phase['minutes']:8.1f} min   {phase['what']}")
    lines.append(", ".join(f"{sum(item['level'] == level for item in findings)} {level}" for level in _LEVELS))
    return lines


def preflight_verdict(report: Mapping[str, Any]) -> str:
    """Return the sentence that a failed preflight ends with."""
    stops = [item for item in report["findings"] if item["level"] == "stop"]
    if not stops:
        return "nothing stops the migration"
    first = stops[0]
    where = f"{first['place']}: {first['target']}.{first['column']}" if first["column"] and first["target"] else first["place"]
    found = f"preflight found {len(stops)} reason(s) to stop, the first: {where}: {first['message']}"
    return f"{found}. Next: {first['next_step']}. Then run playbooks/preflight.yml again"


def preflight_files(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the files of the artifacts folder (name, content)."""
    files = [{"name": "preflight.json", "content": json.dumps(report, indent=2, sort_keys=True) + "\n"}]
    graph = report.get("dependencies")
    if graph:
        files.append({"name": "dependencies.json", "content": json.dumps(graph["graph"], indent=2, sort_keys=True) + "\n"})
        files.append({"name": "dependencies.mmd", "content": graph["mermaid"]})
    return files


def _line(item: Mapping[str, Any]) -> str:
    where = f"{item['place']} {item['column']}".strip() if item["column"] else item["place"]
    count = "" if item["count"] is None else f"{item['count']:,} {'row' if item['count'] == 1 else 'rows'}: "
    keys = f" (keys {', '.join(item['keys'])}{', ...' if item['count'] is None or item['count'] > len(item['keys']) else ''})" if item["keys"] else ""
    step = f" -> {item['next_step']}" if item["next_step"] else ""
    return f"{item['level'].upper():<4} {item['rule']:<11} {where}: {count}{item['message']}{keys}{step}"


def _account(item: Mapping[str, Any]) -> str:
    words = {name: name for name in ("carried", "merged", "quarantined", "dropped")} | {"unselected": "not selected by where"}
    shares = " + ".join(f"{item[name]:,} {word}" for name, word in words.items() if item.get(name))
    return f"rows of {item['table']}: {item['rows']:,} = {shares or 0}"


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"preflight_files": preflight_files, "preflight_lines": preflight_lines, "preflight_verdict": preflight_verdict}
