# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's data as one HTML page: self-contained, without scripts, fit for paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import svg

MOST = 200  # rows of a list on the page; report.json has all that the records have
_SHOWN_ELSEWHERE = ("tables", "rates", "seconds", "findings", "dependencies", "accounting")  # the last has files of its own
_FIRST = ("level", "target", "table", "name", "place", "part", "kind", "rule", "column", "columns", "source_key", "keys", "id", "count", "rows")
_JUDGED = ("target", "source_rows", "target_rows", "differences", "rejected", "seconds", "source_digest", "target_digest")
_PROOF = ("verdict", "consistency", "positions", "digest", "plan_digest", "at", "seconds", "phases", "complete", "differences")  # the rest follows
_TOLD = ("findings", "tables", "lines", "findings_total", "run_id", "passed", "accounting")  # in a table of their own, or above
_LEVELS = {"stop": 0, "warn": 1, "info": 2}

_STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#1c2430;background:#fff;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #ccd3dc}h3{font-size:1rem;margin:1.2rem 0 .4rem}
p.sub{color:#55606e;margin:.2rem 0 1rem}
.verdict{border-left:8px solid;padding:.7rem 1rem;font-size:1.1rem;margin:1rem 0;background:#f5f7fa}
.good{border-color:#1b7a3d}.bad{border-color:#c1121f}.open{border-color:#b58900}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #e3e8ee;vertical-align:top;overflow-wrap:break-word}
th{background:#f5f7fa;vertical-align:bottom}td.k{white-space:nowrap;width:1%;padding-right:2rem;color:#55606e}
td.n,th.n{text-align:right}td.n{white-space:nowrap}tr.total td{font-weight:600;border-top:2px solid #9aa5b1}
.tag{display:inline-block;padding:0 .5rem;border:1px solid;border-radius:1rem;font-size:.82rem;white-space:nowrap}
.tag.passed{color:#1b7a3d}.tag.failed,.tag.stop{color:#c1121f;font-weight:600}.tag.warn{color:#8a6100}
figure{margin:1rem 0}figcaption{font-weight:600;margin-bottom:.3rem}
svg.plot{width:100%;height:auto;font:12px system-ui,sans-serif;fill:#1c2430}svg .grid{stroke:#dfe5ec}svg .in{fill:#fff}
ul.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;margin:.3rem 0;font-size:.85rem}
code{font:.85em ui-monospace,monospace;overflow-wrap:anywhere}
@media print{html{font-size:9px}body{margin:0;max-width:none;font-size:9px}h2,h3{break-after:avoid}figure,tr{break-inside:avoid}
.scroll{overflow:visible}table{font-size:8px}td:not(.n):not(.k){overflow-wrap:anywhere}th,td{padding:.15rem .35rem}
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
        svg.shares(report["outcomes"], title="Share of rows by outcome"),
        svg.lines(report["rates"], title="Rows a second over time, by table"),
        _accounting(report["details"]),
        _phases(report["phases"]),
        _validation(report["details"].get("validate", {})),
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
    return "<h2>Tables</h2>" + _grid(head, rows, last_is_total=True)


def _accounting(details: Mapping[str, Any]) -> str:
    """Show what became of every source row, by the phase that knows best."""
    found = {kind: details[kind]["accounting"] for kind in ("validate", "migrate", "preflight") if details.get(kind, {}).get("accounting")}
    if not found:
        return ""
    kind, account = next(iter(found.items()))
    listed = account["tables"] if isinstance(account, Mapping) else account  # preflight foretells, and has nothing to hold it against
    gaps = account["gaps"] if isinstance(account, Mapping) else []
    said = account["verdict"] if isinstance(account, Mapping) else "every source row will be accounted for"
    names = ("rows", "carried", "merged", "quarantined", "dropped")
    rows: list[list[Any]] = [[item["table"], *(item[name] for name in names)] for item in listed]
    rows.append(["total", *(sum(item[name] for item in listed) for name in names)])
    head = ("Source table", "Rows", "Carried", "Merged", "Quarantined", "Dropped by declaration")
    return f"<h2>Source rows</h2><p>{escape(kind)}: {escape(said)}.</p>" + _grid(head, rows, last_is_total=True) + (_listing(gaps) if gaps else "")


def _phases(phases: Sequence[Mapping[str, Any]]) -> str:
    if not phases:
        return ""
    shown = [(item, item["error"] or item.get("remark") or item["runner"]) for item in phases[-MOST:]]
    rows = [[_where(item), _tag(item["outcome"]), item["when"], item["seconds"], remark] for item, remark in shown]
    return "<h2>What was done</h2>" + _grid(("Phase", "Outcome", "When", "Seconds", "Remark"), rows)


def _where(item: Mapping[str, Any]) -> str:
    return f"{item['phase']} ({item['service']})" if item["service"] else str(item["phase"])


def _validation(detail: Mapping[str, Any]) -> str:
    if not detail:
        return ""
    findings = [item for item in detail.get("findings", []) if isinstance(item, Mapping)]
    shown = _listing(findings) if findings else "<p>No difference was found.</p>"
    tables = [{name: item.get(name) for name in _JUDGED} for item in detail.get("tables", []) if isinstance(item, Mapping)]
    names = sorted((key for key in detail if key not in _TOLD), key=lambda key: _PROOF.index(key) if key in _PROOF else len(_PROOF))
    facts = _facts({key: detail[key] for key in names})
    return f"<h2>Validation</h2>{facts}<h3>Tables</h3>{_listing(tables)}<h3>Findings</h3>{shown}"


def _rejects(rejects: Sequence[Mapping[str, Any]]) -> str:
    return "<h2>Quarantined rows</h2>" + _listing(rejects) if rejects else ""


def _preflight(detail: Mapping[str, Any]) -> str:
    findings = [item for item in detail.get("findings", []) if isinstance(item, Mapping)]
    if not findings:
        return ""
    ordered = sorted(findings, key=lambda item: _LEVELS.get(str(item.get("level")), 3))
    shown = [{key: value for key, value in item.items() if key != "target"} for item in ordered]  # the place says it
    return "<h2>Preflight findings</h2>" + _listing(shown)


def _detail(kind: str, detail: Mapping[str, Any]) -> str:
    """Show what else a phase recorded; validation has its own section."""
    rest = {key: value for key, value in detail.items() if key not in _SHOWN_ELSEWHERE}
    if kind == "validate" or not rest:
        return ""
    return f"<h2>Details: {escape(kind)}</h2>" + _facts({**rest, **({"seconds": detail["seconds"]} if "seconds" in detail else {})})


def _facts(detail: Mapping[str, Any]) -> str:
    """Show plain values as a table of two columns, lists of records as tables of their own."""
    plain = {key: value for key, value in detail.items() if not _is_records(value) and not _holds_records(value) and value not in ([], {}, "")}
    lists = {key: value for key, value in detail.items() if _is_records(value)}
    groups = {key: value for key, value in detail.items() if _holds_records(value)}
    shown = _grid(("", ""), [[_Key(_words(key)), _plain(value)] for key, value in plain.items()]) if plain else ""
    shown += "".join(f"<h3>{escape(_words(key))}</h3>{_listing(value)}" for key, value in lists.items())
    return shown + "".join(f"<h3>{escape(_words(key))}</h3>{_facts(value)}" for key, value in groups.items())


def _is_records(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _holds_records(value: Any) -> bool:
    return isinstance(value, Mapping) and any(_is_records(item) for item in value.values())


def _listing(records: Sequence[Mapping[str, Any]]) -> str:
    known = dict.fromkeys(name for item in records[:MOST] for name in item if item[name] not in (None, "", [], {}))
    names = sorted(known, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    rows = [[_tag(item[name]) if name == "level" and name in item else _brief(item.get(name)) for name in names] for item in records[:MOST]]
    more = f"<p>{len(records) - MOST:,} more are in report.json.</p>" if len(records) > MOST else ""
    return _grid([_words(name) for name in names], rows) + more


def _brief(value: Any) -> Any:
    """Return a value for a narrow column: digests by their first digits, the rest is in report.json; numbers stay numbers."""
    if isinstance(value, str) and len(value) >= 24 and not set(value) - set("0123456789abcdef"):
        return value[:12] + "\u2026"
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else _plain(value)


class _Html(str):
    """Text that is HTML already."""


class _Key(str):
    """The name of a fact."""


def _tag(text: Any) -> _Html:
    kind = str(text) if str(text) in ("passed", "failed", "stop", "warn", "info") else ""
    return _Html(f'<span class="tag {kind}">{escape(str(text))}</span>')


def _grid(head: Sequence[str], rows: Sequence[Sequence[Any]], *, last_is_total: bool = False) -> str:
    numeric = [any(isinstance(row[column], (int, float)) for row in rows) for column in range(len(head))]
    keyed = bool(rows) and isinstance(rows[0][0], _Key)
    mark = [' class="k"' if keyed and column == 0 else ' class="n"' if flag else "" for column, flag in enumerate(numeric)]
    titles = "".join(f"<th{mark[column]}>{escape(name)}</th>" for column, name in enumerate(head))
    body = []
    for index, row in enumerate(rows):
        total = ' class="total"' if last_is_total and index == len(rows) - 1 else ""
        body.append(f"<tr{total}>" + "".join(f"<td{mark[column]}>{_cell(value)}</td>" for column, value in enumerate(row)) + "</tr>")
    thead = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{thead}<tbody>{"".join(body)}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, _Html):
        return value
    return escape(_plain(value) if not isinstance(value, str) else value)


def _plain(value: Any) -> Any:
    """Return a value as people read it; numbers in columns stay numbers until _cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(key))} {_plain(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_plain(item)) for item in value[:MOST]) or "-"
    return str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
