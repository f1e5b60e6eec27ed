# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page needs nothing but itself, whatever the records say; the summary reads like a table."""

from __future__ import annotations

import importlib.util
import sys
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.migration import status
from ansible.module_utils.migration.control import Migration, Record
from ansible.module_utils.migration.report import collect, svg
from ansible.module_utils.migration.report.page import page

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MIGRATION = Migration(1, "20260102T030405Z-ab12", "open", "a" * 64, "f" * 16, "2026-01-02 03:04:05", "there", NOW)
NEXT = status.Next("playbooks/validate.yml", "because")
TABLE = {"target": "svc.t", "chunks": 1, "chunks_done": 1, "rows": 10, "started": 5.0, "ended": 7.0, "seconds": 2.0, "rate": 5}


PROJECT = Path(__file__).resolve().parents[2]
OWN = Path(sys.executable).with_name("ansible-playbook")


def load_filter() -> Any:
    path = PROJECT / "filter_plugins" / "summary.py"
    spec = importlib.util.spec_from_file_location("summary", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(number: int, kind: str, outcome: str, **detail: Any) -> Record:
    return Record(number, 1, kind, outcome, "a" * 64, detail, NOW)


def assembled(*records: Record, **changed: Any) -> dict[str, Any]:
    return collect.assemble(MIGRATION, records, [{**TABLE, **changed}], {"svc.t": [(0.5, 4.0), (1.5, 6.0)]}, [], NEXT)


class Finder(HTMLParser):
    """Collects what a page would fetch or run, and checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "onload", "onclick", "action")]
        if tag in ("script", "link", "iframe", "object", "img"):
            self.fetched.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Self-closed tags of SVG need no end."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_fetches_nothing_and_is_well_formed() -> None:
    finder = Finder()
    finder.feed(page(assembled(record(1, "validate", "failed", tables=[{"target": "svc.t", "kinds": {"different": 2}}]), differences=2)))
    assert finder.fetched == []
    assert finder.open == []


def test_a_validation_shows_its_verdict_first_and_each_finding_once() -> None:
    finding = {"target": "svc.t", "part": "", "kind": "different", "source_key": "4711", "id": "an id", "columns": ["bio"]}
    said = "svc.t: different key 4711"
    detail = {"passed": False, "at": "then", "lines": [said], "differences": 1, "verdict": "NOT equal", "consistency": "at one point", "findings": [finding]}
    shown = page(assembled(record(1, "validate", "failed", **detail)))
    section = shown[shown.index("<h2>Validation</h2>") :]
    assert section.index("NOT equal") < section.index("at one point") < section.index("then") < section.index("4711")
    assert said not in section
    assert section.count("4711") == 1


def test_text_from_records_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>"
    migrate = record(1, "migrate", "failed", error=evil, runner=evil, **{evil: {evil: [evil]}})
    assert "<script" not in page(assembled(migrate, record(2, "preflight", "passed", findings=[{"level": evil}])))


def test_the_plots_are_xml_and_keep_small_troubles_visible() -> None:
    shares = svg.shares({"svc.t": {svg.EQUAL: 1_000_000_000, "missing": 1}}, title="t")
    root = ElementTree.fromstring(shares)
    widths = {rect.find("title").text.split()[3]: float(rect.get("width")) for rect in root.iter("rect") if rect.find("title") is not None}
    assert widths["missing"] >= 3
    ElementTree.fromstring(svg.lines({"a & b": [(1.0, 0.0)]}, title="<t>"))


def test_rows_are_spread_over_the_time_that_their_chunk_took() -> None:
    series = collect._over_time({"svc.t": [(100.0, 110.0, 1000)], "svc.u": [(130.0, 160.0, 3000)]})
    assert max(rate for _, rate in series["svc.t"]) == pytest.approx(100, rel=0.01)
    assert sum(rate for _, rate in series["svc.u"]) == pytest.approx(3000, rel=0.01)  # a bin is one second
    assert min(when for when, rate in series["svc.u"] if rate) >= 30


@pytest.mark.parametrize(
    ("records", "level"),
    [
        ([], "open"),
        ([record(1, "migrate", "failed")], "bad"),
        ([record(1, "validate", "passed")], "good"),
        ([record(1, "validate", "passed"), record(2, "migrate", "passed")], "open"),
        ([record(1, "validate", "failed", tables=[{"differences": 2}])], "bad"),
        ([record(1, "validate", "error", error="no connection")], "bad"),
    ],
)
def test_the_verdict_is_good_only_when_the_last_word_is_a_proof(records: list[Record], level: str) -> None:
    assert assembled(*records)["verdict"]["level"] == level


def shown(**changed: Any) -> list[str]:
    state = {
        "run_id": "r1",
        "state": "open",
        "plan_time": "2026-01-02 03:04:05.678",
        "opened_at": "then",
        "plan_digest": "a" * 64,
        "plan_matches": True,
        "phases": [{"phase": "validate", "outcome": "passed", "when": "now", "this_migration": True}],
        "services": [],
        "tables": [{**TABLE, "source_rows": 10, "target_rows": 10, "differences": 0}],
        "next": {"command": "playbooks/x.yml", "why": "because"},
        **changed,
    }
    return load_filter().migration_summary(state, inventory="/p/inventories/lab", report="/p/artifacts/r.html", root="/p", hints=["a hint"]).splitlines()


def test_the_closing_table_has_rows_differences_seconds_and_a_total() -> None:
    lines = shown()
    assert [line.split() for line in lines if line.startswith("svc.t")] == [["svc.t", "10", "10", "0", "2.00", "5"]]
    assert [line.split()[-5:] for line in lines if line.startswith("total")] == [["10", "10", "0", "2.00", "5"]]
    assert "Report: artifacts/r.html" in lines
    assert any(line.startswith("Next: ") and line.endswith("ansible-playbook playbooks/x.yml -i inventories/lab") for line in lines)
    assert "  a hint" in lines


def test_hints_wait_for_the_proof() -> None:
    assert "  a hint" not in shown(tables=[{**TABLE, "source_rows": 10, "target_rows": 9, "differences": 1}])


def test_a_transfer_under_way_shows_percent_and_time_left() -> None:
    lines = shown(tables=[{**TABLE, "chunks": 4, "chunks_done": 1, "rows": 100, "expected": 400, "recent_rate": 50}])
    assert [line.split() for line in lines if line.startswith("svc.t")] == [["svc.t", "25%", "100", "400", "50", "00:06"]]


def test_another_plan_is_said_loudly() -> None:
    assert "NOT the plan of today's mappings" in shown(plan_matches=False)[0]


def test_a_needless_transfer_that_failed_takes_no_proof_back() -> None:
    records = [record(1, "migrate", "passed"), record(2, "validate", "passed"), record(3, "migrate", "failed")]
    verdicts = [collect.assemble(MIGRATION, records, [TABLE], {}, [], NEXT, carried=carried)["verdict"]["level"] for carried in (True, False)]
    assert verdicts == ["good", "bad"]


@pytest.mark.parametrize(
    ("root", "path", "typed"),
    [
        (OWN.parents[2], "", str(OWN.relative_to(OWN.parents[2]))),
        (OWN.parents[2], str(OWN.parent), str(OWN.relative_to(OWN.parents[2]))),
        ("/elsewhere", str(OWN.parent), "ansible-playbook"),
        ("/elsewhere", "", str(OWN)),
    ],
)
def test_the_suggested_command_can_be_typed_as_it_is(root: Path | str, path: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", path)
    assert load_filter().playbook_command(str(root)) == typed


@pytest.mark.parametrize("number", [1, 2])
def test_one_is_not_many(number: int) -> None:
    service = {"service": "svc", "fault": "", "snapshot_age": 60.0 * number, "sessions": number, "rejects": number, "limits": {}}
    text = " ".join(shown(services=[service]))
    told = ("1 minute old", "1 session is", "1 row is") if number == 1 else ("2 minutes old", "2 sessions are", "2 rows are")
    assert all(words in text for words in told)


def test_every_source_row_is_summed_up_by_the_phase_that_knows_best() -> None:
    share = {"table": "auth_user", "rows": 13, "carried": 7, "merged": 0, "quarantined": 6, "dropped": 0}
    foretold = record(1, "preflight", "passed", accounting=[{**share, "rows": 12, "carried": 6}])
    gaps = [{"target": "svc.t", "expected": 7, "carried": 5}]
    carried = record(2, "migrate", "failed", accounting={"passed": False, "verdict": "not every source row", "tables": [share], "gaps": gaps})
    before, after = page(assembled(foretold)), page(assembled(foretold, carried))
    assert "<h2>Source rows</h2><p>preflight: every source row will be accounted for" in before
    section = after[after.index("<h2>Source rows</h2>") : after.index("<h2>What was done</h2>")]
    assert "migrate: not every source row." in section
    assert '<td class="n">13</td><td class="n">7</td><td class="n">0</td><td class="n">6</td><td class="n">0</td>' in section
    assert "svc.t" in section
