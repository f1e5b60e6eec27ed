# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's section on the last validation: each check with its outcome, where and how it was compared, and every kind of finding."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..text import counted
from .advice import dangling, differences
from .html import Figure, Html, Key, brief, grid, listing, tag

FILE = "validation.json"
NOT_DONE = "not done"
_POSITION = re.compile(r"(?P<lsn>\S+) at (?P<at>.+?) \(snapshot (?P<snapshot>.+), (?P<server>[^,]+)\)")
_OTHERS = {  # check -> its name on the page, and how it is asked for
    "accounting": ("Every source row accounted for", "only a validation of all tables tells it"),
    "quarantine": ("Every quarantined row breaks a rule", "only a validation of all tables tells it"),
    "sequences": ("Sequences give values that no row has", "only a validation of all tables tells it"),
    "authorisation": ("Rights of every user", "only a validation of all tables tells it, unless validate_authorisation is false"),
    "canaries": ("Canary accounts and formats of password hashes", "only a validation of all tables, or with validate_canaries, tells it"),
    "baseline": ("Performance", "validate_baseline is false"),
}


def section(detail: Mapping[str, Any]) -> str:
    """Return the section for a validation's record; nothing when there is none."""
    if not detail:
        return ""
    if "error" in detail:
        return f"<h2>Validation</h2><p>It could not run: {escape(str(detail['error']))}</p>"
    parts = [
        f'<h2>Validation</h2><p class="line">{escape(str(detail.get("verdict", "")))}</p>',
        "<h3>Checks</h3>" + _checks(detail),
        "<h3>What was compared, and where</h3>" + _place(detail),
        _positions(detail.get("positions") or {}),
        _tables(_records(detail, "tables")),
        _findings(detail),
        _references(_records(detail, "references")),
        _quarantine(detail.get("quarantine") or {}),
        _rights(detail.get("authorisation") or {}),
        _hashes(detail.get("canaries") or {}),
        _timings(detail.get("baseline") or {}),
    ]
    return "".join(parts)


def _checks(detail: Mapping[str, Any]) -> str:
    tables, references, phases = _records(detail, "tables"), _records(detail, "references"), detail.get("phases") or {}
    rows, loose, checked = differences(detail), dangling(detail), sum(item.get("checked") or 0 for item in references)
    proven = sum(1 for item in references if item.get("by") == "foreign key")
    nulled = sum(item.get("nulled") or 0 for item in references)
    before, now = (sum(item.get(name) or 0 for item in tables) for name in ("source_rows", "target_rows"))
    seen = f"{before:,} rows of the source, {now:,} of the services"
    reading = [phases[name] for name in ("scan", "open") if name in phases]
    found = [
        ["Every column of every row", _outcome(rows == 0), f"{counted(rows, 'difference')}; {seen}, {counted(len(tables), 'table')}", sum(reading) or None],
        [
            "Every reference has its row",
            _outcome(loose == 0) if references else tag(NOT_DONE),
            f"{loose:,} of {checked:,} looked up have none" + (f"; {counted(proven, 'column')} by the source's own foreign keys" if proven else "")
            + (f"; {nulled:,} more are NULL by policy, as their rows are not there or are quarantined" if nulled else ""),
            phases.get("references"),
        ],
    ]
    for name, (title, otherwise) in _OTHERS.items():
        check = detail.get(name)
        if isinstance(check, Mapping):
            found.append([title, _outcome(bool(check.get("passed"))), check.get("verdict", ""), phases.get(name)])
        else:
            found.append([title, tag(NOT_DONE), otherwise, None])
    return grid(("Check", "Outcome", "Result", "Seconds"), found)


def _place(detail: Mapping[str, Any]) -> str:
    digest = detail.get("digest") or {}
    unmapped = detail.get("unmapped_columns") or []
    number = len(_records(detail, "tables"))
    scope = f"every table of the plan ({number})" if detail.get("complete", True) else f"{counted(number, 'table')} only, which proves nothing of the rest"
    known = {
        "Compared": scope + (f"; not these columns, which no mapping fills: {', '.join(unmapped)}" if unmapped else ", every column, in both directions"),
        "Consistency": detail.get("consistency"),
        "Digest of a row": f"{digest.get('label', '')} ({digest.get('method', '')}); {digest.get('reason', '')}" if digest else None,
        "Plan digest": detail.get("plan_digest"),
        "Ended": str(detail["at"]).replace("T", " ").replace("+00:00", " UTC") if "at" in detail else None,
        "Took": f"{detail['seconds']:,.2f} s" if "seconds" in detail else None,
    }
    return grid(("", ""), [[Key(name), value] for name, value in known.items() if value])


def _positions(positions: Mapping[str, str]) -> str:
    rows: list[list[Any]] = []
    for name, text in positions.items():
        found = _POSITION.fullmatch(str(text))
        rows.append([name, *(found.group("lsn", "at", "snapshot", "server") if found else (text, "", "", ""))])
    return grid(("Database", "WAL position", "At", "Snapshot (xmin:xmax:running)", "Server"), rows) if rows else ""


def _tables(tables: Sequence[Mapping[str, Any]]) -> str:
    if not tables:
        return ""
    names = ("source_rows", "target_rows", "rejected", "differences")
    rows: list[list[Any]] = [
        [
            item.get("target"),
            *(item.get(name) for name in names),
            item.get("seconds"),
            item.get("rows_per_second") or None,
            *(brief(item.get(name)) for name in ("source_digest", "target_digest")),
        ]
        for item in sorted(tables, key=lambda item: (bool(item.get("bookkeeping")), ".migration." in str(item.get("target"))))
    ]
    rows.append(["total", *(sum(item.get(name) or 0 for item in tables) for name in names), "", "", "", ""])
    head = ("Table", "Source rows", "Target rows", "Quarantined", "Differences", "Seconds", "Rows a second", "Source digest", "Target digest")
    note = '<p class="note">Rows a second are those of both sides; whole digests are in validation.json.</p>'
    return "<h3>Tables compared</h3>" + grid(head, rows, last_is_total=True) + note


def _kind(kind: str) -> str:
    return "the service's own" if kind == "service_row" else kind


def _findings(detail: Mapping[str, Any]) -> str:
    """Show the findings counted by table, kind and columns, then one by one."""
    found = _records(detail, "findings")
    total = int(detail.get("findings_total") or differences(detail))
    if not found:
        return "<h3>Findings</h3>" + ("<p>No row differs.</p>" if not total else f"<p>{total:,} rows differ; none was to be named.</p>")
    groups = Counter((str(item.get("target")), str(item.get("kind")), ", ".join(item.get("columns") or ()) or "(the row)") for item in found)
    counts = [[target, _kind(kind), columns, rows] for (target, kind, columns), rows in groups.most_common(50)]
    hidden = total - sum(1 for item in found if item.get("kind") != "service_row")
    more = f'<p class="note">{hidden:,} more were counted and are not named here: {FILE} has as many as validate_findings_kept says.</p>' if hidden > 0 else ""
    summary = "<h3>Findings by table, kind and columns</h3>" + grid(("Table", "Kind", "Columns", "Rows"), counts) + more
    return summary + "<h3>Findings</h3>" + listing(found, FILE)


def _references(references: Sequence[Mapping[str, Any]]) -> str:
    if not references:
        return ""
    rows: list[list[Any]] = []
    for item in references:
        proven = item.get("by") == "foreign key"
        how = Html('<span class="when">foreign key</span>') if proven else "look-up"
        checked = None if proven else item.get("checked")
        nulled = [f"{item['nulled']:,} NULL by policy"] if item.get("nulled") else []
        named = ", ".join([*nulled, *(item.get("keys") or ())])
        rows.append([f"{item.get('target')}.{item.get('column')}", item.get("refers_to"), how, checked, item.get("dangling"), named])
    note = '<p class="note">The source\'s own foreign key proves a reference for rows that are equal; only those of other rows are looked up then.</p>'
    return "<h3>References</h3>" + grid(("Column", "Refers to", "Judged by", "Looked up", "Without a row", "Rows"), rows) + note


def _quarantine(check: Mapping[str, Any]) -> str:
    fit = _records(check, "rows")
    return "<h3>Quarantined without a reason</h3>" + listing(fit, FILE) if fit else ""


def _rights(check: Mapping[str, Any]) -> str:
    found = _records(check, "findings")
    return "<h3>Users who may do more or less than before</h3>" + listing(found, FILE) if found else ""


def _hashes(check: Mapping[str, Any]) -> str:
    failed, formats = _records(check, "failed"), check.get("formats") or {}
    unknown = {str(item).rsplit(" (", 1)[0] for item in check.get("unknown_formats") or ()}
    shown = "<h3>Canaries that cannot log in</h3>" + listing(failed, FILE) if failed else ""
    rows = [[name, users, "no" if name in unknown else "yes"] for name, users in sorted(formats.items(), key=lambda item: -item[1])]
    return shown + ("<h3>Formats of password hashes</h3>" + grid(("Format", "Users", "Known to Django"), rows) if rows else "")


def _timings(check: Mapping[str, Any]) -> str:
    timings = _records(check, "timings")
    if not timings:
        return ""
    most, floor = check.get("threshold"), check.get("floor_ms", 1.0)
    rows = [[item.get("question"), _ms(item, "monolith_ms"), _ms(item, "service_ms"), item.get("ratio"), item.get("in_time")] for item in timings]
    head = ("Question", "Monolith, ms", "Service, ms", "Times as long", "In time")
    note = f'<p class="note">Mean latency by pgbench, one client. Too slow is more than {most} times as long and more than {floor:g} ms.</p>'
    return "<h3>Performance</h3>" + grid(head, rows) + note


def _ms(item: Mapping[str, Any], name: str) -> Figure | None:
    value = item.get(name)
    return None if value is None else Figure(f"{value:.3f}")


def _outcome(passed: bool) -> str:
    return tag("passed" if passed else "failed")


def _records(holder: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [item for item in holder.get(name) or () if isinstance(item, Mapping)]
