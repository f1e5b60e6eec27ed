# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's data as one HTML page: self-contained, without scripts, fit for paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import proof, svg
from .html import MOST, Html, facts, grid, listing, tag

_SHOWN_ELSEWHERE = ("tables", "rates", "seconds", "findings", "findings_left_out", "dependencies", "accounting")  # the last has files of its own
_LEVELS = {"stop": 0, "warn": 1, "info": 2}

_STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#1c2430;background:#fff;max-width:1120px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #ccd3dc}h3{font-size:1rem;margin:1.2rem 0 .4rem}
p.sub{color:#55606e;margin:.2rem 0 1rem}
.verdict{border-left:8px solid;padding:.7rem 1rem;font-size:1.1rem;margin:1rem 0;background:#f5f7fa}
.good{border-color:#1b7a3d}.bad{border-color:#c1121f}.open{border-color:#b58900}
.scroll{overflow-x:auto}.scroll+.scroll{margin-top:1rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #e3e8ee;vertical-align:top;overflow-wrap:break-word}
.facts td+td{overflow-wrap:anywhere}.tag,.when{white-space:nowrap}p.line{font-weight:600}p.note{color:#55606e;font-size:.85rem;margin:.3rem 0}
th{background:#f5f7fa;vertical-align:bottom}td.k{white-space:nowrap;width:1%;padding-right:2rem;color:#55606e}
td.n,th.n{text-align:right}td.n{white-space:nowrap}tr.total td{font-weight:600;border-top:2px solid #9aa5b1}
.tag{display:inline-block;padding:0 .5rem;border:1px solid;border-radius:1rem;font-size:.82rem;white-space:nowrap}
.tag.passed{color:#1b7a3d}.tag.failed,.tag.error,.tag.stop{color:#c1121f;font-weight:600}.tag.warn{color:#8a6100}
figure{margin:1rem 0}figcaption{font-weight:600;margin-bottom:.3rem}
svg.plot{width:100%;min-width:800px;height:auto;font:12px system-ui,sans-serif;fill:#1c2430}svg .grid{stroke:#dfe5ec}svg .in{fill:#fff}
ul.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;margin:.3rem 0;font-size:.85rem}
code{font:.85em ui-monospace,monospace;overflow-wrap:anywhere}
@page{margin:14mm 12mm 16mm;@bottom-right{content:"page " counter(page) " of " counter(pages);font:9px system-ui,sans-serif;color:#55606e}}
@media print{html{font-size:11px}body{margin:0;padding:0;max-width:none;font-size:11px}h2,h3,h2+p,figcaption{break-after:avoid}figure,tr{break-inside:avoid}
.scroll{overflow:visible}svg.plot{min-width:0}table{font-size:10px}th,td{padding:.12rem .3rem}
thead{display:table-header-group}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def page(report: Mapping[str, Any]) -> str:
    """Return the page."""
    migration = report["migration"] or {}
    title = f"Migration {migration['run_id']}" if migration else "Migration: not begun"
    verdict = report["verdict"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(_subtitle(migration))}Report made {escape(report["generated_at"])}.</p>',
        f'<p class="verdict {escape(verdict["level"])}">{escape(verdict["text"])}</p>',
        f'<p>Next: <code>{escape(report["next"]["command"])}</code> — {escape(report["next"]["why"])}</p>',
        _tables(report["tables"]),
        svg.shares(report["outcomes"], title="Share of each table's rows by outcome, in percent; what is not fine is drawn a little wider than it is"),
        svg.lines(report["rates"], title="Rows a second over the time of the copy, by table"),
        proof.section(report["details"].get("validate", {})),
        _accounting(report["details"]),
        _phases(report["phases"]),
        _repair(report["details"].get("repair", {})),
        _rejects(report["rejects"]),
        _preflight(report["details"].get("preflight", {})),
        *(_detail(kind, detail) for kind, detail in report["details"].items()),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"
    )


def _subtitle(migration: Mapping[str, Any]) -> str:
    if not migration:
        return ""
    return (
        f"State: {migration['state'].replace('_', ' ')}. Planned {migration['opened_at']}. Plan {migration['plan_digest'][:12]},"
        f" namespace {migration['namespace_fingerprint']}. "
    )


def _tables(tables: Sequence[Mapping[str, Any]]) -> str:
    """Show each target with the ledger's figures and the last validation's; a table that others' chunks fill has no copy of its own."""
    if not tables:
        return ""
    names = ("source_rows", "target_rows", "differences", "seconds", "rate")
    rows = [[item["target"], *(item.get(name) for name in names)] for item in tables]
    sums: list[Any] = [sum(value for value in (row[column] for row in rows) if value is not None) for column in range(1, 4)]
    ran = [item for item in tables if item.get("ended")]
    seconds = max(item["ended"] for item in ran) - min(item["started"] for item in ran) if ran else None
    copied = sum(item.get("rows") or 0 for item in ran)
    rows.append(["total, side by side", *sums, seconds, copied / seconds if seconds else None])
    head = ("Table", "Source rows", "Target rows", "Differences", "Copy seconds", "Rows a second")
    along = any(item.get("target_rows") and not item.get("ended") for item in tables)
    note = '<p class="note">A table without copy seconds was filled along with the rows of the others.</p>' if along else ""
    return "<h2>Tables</h2>" + grid(head, rows, last_is_total=True) + note


def _accounting(details: Mapping[str, Any]) -> str:
    """Show what became of every source row, by the phase that knows best."""
    found = {kind: details[kind]["accounting"] for kind in ("validate", "migrate", "preflight") if details.get(kind, {}).get("accounting")}
    if not found:
        return ""
    kind, account = next(iter(found.items()))
    listed = account["tables"] if isinstance(account, Mapping) else account  # preflight foretells, and has nothing to hold it against
    gaps = account["gaps"] if isinstance(account, Mapping) else []
    said = account["verdict"] if isinstance(account, Mapping) else "every source row will be accounted for"
    names = ("rows", "carried", "merged", "quarantined", "dropped", "unselected")
    rows: list[list[Any]] = [[item["table"], *(item.get(name, 0) for name in names)] for item in listed]
    rows.append(["total", *(sum(item.get(name, 0) for item in listed) for name in names)])
    head = ("Source table", "Rows", "Carried", "Merged", "Quarantined", "Dropped by declaration", "Not selected by where")
    return f"<h2>Source rows</h2><p>{escape(kind)}: {escape(said)}.</p>" + grid(head, rows, last_is_total=True) + (listing(gaps) if gaps else "")


def _phases(phases: Sequence[Mapping[str, Any]]) -> str:
    if not phases:
        return ""
    shown = [(item, item["error"] or item.get("remark") or item["runner"]) for item in phases[-MOST:]]
    rows = [[_where(item), tag(item["outcome"]), Html(f'<span class="when">{escape(item["when"])}</span>'), item["seconds"], remark] for item, remark in shown]
    return "<h2>What was done</h2>" + grid(("Phase", "Outcome", "When", "Seconds", "Remark"), rows)


def _where(item: Mapping[str, Any]) -> str:
    return f"{item['phase']} ({item['service']})" if item["service"] else str(item["phase"])


def _repair(detail: Mapping[str, Any]) -> str:
    """Show what the last repair wrote, by table."""
    tables = detail.get("tables")
    if not isinstance(tables, Mapping) or not tables:
        return ""
    words = list(dict.fromkeys(word for counts in tables.values() for word in counts))
    rows = [[name, *(counts.get(word, 0) for word in words)] for name, counts in tables.items()]
    return "<h2>Last repair: rows to</h2>" + grid(("Table", *words), rows)


def _rejects(rejects: Sequence[Mapping[str, Any]]) -> str:
    return "<h2>Quarantined rows</h2>" + listing(rejects) if rejects else ""


def _preflight(detail: Mapping[str, Any]) -> str:
    findings = [item for item in detail.get("findings", []) if isinstance(item, Mapping)]
    if not findings:
        return ""
    ordered = sorted(findings, key=lambda item: _LEVELS.get(str(item.get("level")), 3))
    shown = [{key: value for key, value in item.items() if key != "target"} for item in ordered]  # the place says it
    left = int(detail.get("findings_left_out") or 0)
    more = f'<p class="note">{left:,} more are in preflight.json.</p>' if left else ""
    return "<h2>Preflight findings</h2>" + listing(shown) + more


def _detail(kind: str, detail: Mapping[str, Any]) -> str:
    """Show what else a phase recorded; validation has its own section."""
    rest = {key: value for key, value in detail.items() if key not in _SHOWN_ELSEWHERE}
    if kind == "validate" or not rest:
        return ""
    return f"<h2>Details: {escape(kind)}</h2>" + facts({**rest, **({"seconds": detail["seconds"]} if "seconds" in detail else {})})
