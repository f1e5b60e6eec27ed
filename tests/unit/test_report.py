# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page needs nothing but itself, whatever the records say; the summary reads like a table."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.migration.report import collect, status, svg
from ansible.module_utils.migration.report.page import page
from ansible.module_utils.migration.state.control import Migration, Record
from ansible.module_utils.migration.validate import latency
from psycopg2.extensions import parse_dsn

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


FULL = {
    "passed": False,
    "verdict": "NOT equal: 4 differences",
    "differences": 4,
    "findings_total": 4,
    "complete": True,
    "consistency": "judged at one consistent point",
    "digest": {"method": "sha256", "label": "sha256 of the wire form", "reason": "asked for"},
    "plan_digest": "c0ffee" * 10 + "beef",
    "at": "2026-01-02T03:04:05+00:00",
    "seconds": 12.5,
    "phases": {"scan": 7.25, "open": 1.0, "references": 0.5, "authorisation": 3.75},
    "positions": {"monolith": "0/3420848 at 2026-01-02 03:04:05.1+00 (snapshot 829:831:829,830, PostgreSQL 18.6)", "svc": "unheard of"},
    "unmapped_columns": ["svc.t.shoe"],
    "tables": [
        {
            "target": "svc.t", "source_rows": 1000, "target_rows": 1001, "rejected": 3, "differences": 4, "kinds": {"different": 3, "extra": 1},
            "seconds": 0.25, "rows_per_second": 8004, "source_digest": "0123456789ab" + "0" * 20, "target_digest": "ba9876543210" + "0" * 20,
        }
    ],
    "references": [
        {"target": "svc.t", "column": "boss", "refers_to": "svc.t", "checked": 77, "dangling": 1, "keys": ["id 9"], "by": "join"},
        {"target": "svc.t", "column": "firm", "refers_to": "svc.f", "checked": 0, "dangling": 0, "keys": [], "by": "foreign key"},
    ],
    "findings": [{"target": "svc.t", "part": "", "kind": "different", "source_key": str(n), "id": f"id-{n}", "columns": ["bio"]} for n in (71, 72, 73)],
    "accounting": {"passed": True, "verdict": "every source row is accounted for", "tables": [], "gaps": []},
    "quarantine": {"passed": False, "verdict": "2 quarantined rows no rule keeps out", "fit": 2, "rows": [{"target": "svc.t", "source_key": "4"}]},
    "authorisation": {"passed": False, "verdict": "1 of 9 users may do more", "findings": [{"user": "user-5", "what": "roles"}]},
    "canaries": {"passed": False, "verdict": "0 of 1", "failed": [{"place": 1, "why": "no such user"}], "formats": {"md5": 5}, "unknown_formats": ["md5 (5)"]},
    "baseline": {
        "passed": False,
        "verdict": "1 of 2 in time",
        "threshold": 1.5,
        "timings": [
            {"question": "quick", "monolith_ms": 0.1, "service_ms": 0.5, "ratio": 5.0, "in_time": True},
            {"question": "slow", "monolith_ms": 1.0, "service_ms": 2.25, "ratio": 2.25, "in_time": False},
        ],
    },
}


class Tables(HTMLParser):
    """Collects the cells of each row of a page, and its other text."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text = ""
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data
        else:
            self.text += data


def validated(**changed: Any) -> Tables:
    shown = page(assembled(record(1, "validate", "failed", **{**FULL, **changed})))
    tables = Tables()
    tables.feed(shown[shown.index("<h2>Validation</h2>") : shown.index("<h2>What was done</h2>")])
    return tables


def test_the_proof_tells_what_was_compared_where_and_each_checks_outcome_and_seconds() -> None:
    rows = validated().rows
    assert {row[0]: (row[1], row[3]) for row in rows if len(row) == 4 and row[1] in ("passed", "failed", "not done")} == {
        "Every column of every row": ("failed", "8.25"),
        "Every reference has its row": ("failed", "0.50"),
        "Every source row accounted for": ("passed", "-"),
        "Every quarantined row breaks a rule": ("failed", "-"),
        "Sequences give values that no row has": ("not done", "-"),
        "Rights of every user": ("failed", "3.75"),
        "Canary accounts and formats of password hashes": ("failed", "-"),
        "Performance": ("failed", "-"),
    }
    facts = {row[0]: row[1] for row in rows if len(row) == 2}
    assert facts["Compared"] == "every table of the plan (1); not these columns, which no mapping fills: svc.t.shoe"
    assert facts["Digest of a row"] == "sha256 of the wire form (sha256); asked for"
    assert (facts["Plan digest"], facts["Ended"], facts["Took"]) == (FULL["plan_digest"], "2026-01-02 03:04:05 UTC", "12.50 s")
    assert ["monolith", "0/3420848", "2026-01-02 03:04:05.1+00", "829:831:829,830", "PostgreSQL 18.6"] in rows
    assert ["svc", "unheard of", "", "", ""] in rows
    digests = [FULL["tables"][0][name][:12] + "\u2026" for name in ("source_digest", "target_digest")]
    assert ["svc.t", "1,000", "1,001", "3", "4", "0.25", "8,004", *digests] in rows


def test_the_proof_names_every_finding_of_every_check() -> None:
    shown = validated()
    assert ["svc.t", "different", "bio", "3"] in shown.rows  # how many of a kind
    assert [row[-2] for row in shown.rows if row[-1].startswith("id-")] == ["71", "72", "73"]
    assert "1 more were counted and are not named here" in shown.text
    assert ["svc.t.boss", "svc.t", "look-up", "77", "1", "id 9"] in shown.rows
    assert ["svc.t.firm", "svc.f", "foreign key", "-", "0", ""] in shown.rows
    for row in (["svc.t", "4"], ["user-5", "roles"], ["1", "no such user"], ["md5", "5", "no"]):
        assert row in shown.rows
    assert [row for row in shown.rows if row[0] in ("quick", "slow")] == [
        ["quick", "0.100", "0.500", "5.00", "yes"],
        ["slow", "1.000", "2.250", "2.25", "no"],
    ]


def test_a_partial_validation_says_so_and_shows_what_was_not_done() -> None:
    checks = ("accounting", "quarantine", "sequences", "authorisation", "canaries", "baseline")
    shown = validated(complete=False, **dict.fromkeys(checks))
    assert sum(1 for row in shown.rows if row[1:2] == ["not done"]) == len(checks)
    assert any(row[0] == "Compared" and row[1].startswith("1 table only, which proves nothing of the rest") for row in shown.rows)


def test_the_headline_names_each_check_that_failed_and_the_log_what_each_validation_found() -> None:
    said = "3 rows differ; 1 reference has no row; 1 of 9 users may do more"
    few = {"differences": 3, "references": [{"dangling": 1}], "authorisation": {"passed": False, "verdict": "1 of 9 users may do more"}}
    repaired = record(2, "repair", "passed", tables={"svc.t": {"update": 2, "delete": 1}}, inserted=0, updated=2, deleted=1)
    report = assembled(record(1, "validate", "failed", **few), repaired, record(3, "validate", "failed", quarantine=FULL["quarantine"]))
    assert report["verdict"] == {"level": "bad", "text": "The last validation failed: 2 quarantined rows no rule keeps out."}
    assert [phase["remark"] for phase in report["phases"]] == [said, "2 updated, 1 deleted", "2 quarantined rows no rule keeps out"]
    shown = Tables()
    shown.feed(page(report))
    assert ["Table", "update", "delete"] in shown.rows
    assert ["svc.t", "2", "1"] in shown.rows


def test_a_validation_that_could_not_run_says_why() -> None:
    assert "<h2>Validation</h2><p>It could not run: no way &lt;in&gt;</p>" in page(assembled(record(1, "validate", "error", error="no way <in>")))
def test_the_performance_baseline_has_both_sides_and_the_threshold() -> None:
    timed = latency.Baseline((latency.Timing("log in by email", 0.25, 4.0), latency.Timing("a user's permissions", 0.0, 0.6)), most=1.5)
    assert timed.verdict == "1 of 2 questions are answered in time (at most 1.5 times the monolith's time, or 1 ms)"
    assert timed.lines == ("log in by email: 0.25 ms before, 4.00 ms now",)
    shown = Tables()
    shown.feed(page(assembled(record(1, "validate", "failed", verdict="NOT passed", baseline=timed.to_dict()))))
    assert ["log in by email", "0.250", "4.000", "16.00", "no"] in shown.rows
    assert ["a user's permissions", "0.000", "0.600", "600.00", "yes"] in shown.rows
    assert "Too slow is more than 1.5 times as long" in shown.text


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


def test_the_plots_have_units_and_say_in_words_what_a_thin_colour_would_hide() -> None:
    said = [node.text for node in ElementTree.fromstring(svg.shares({"svc.t": {svg.EQUAL: 10**6, "missing": 1, "extra": 2}}, title="t")).iter("text")]
    assert "1 missing, 2 extra" in said
    assert [text for text in said if text.endswith("%")] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    root = ElementTree.fromstring(svg.lines({"svc.t": [(0.1, 5.0), (9.3, 7.0)]}, title="t"))
    words = [node.text for node in root.iter("text")]
    assert [text for text in words if text.endswith(" s")] == ["0 s", "2 s", "4 s", "6 s", "8 s"]
    assert "rows a second" in words
    assert "time since the first row" in words


def test_white_text_on_a_bar_can_be_read() -> None:
    def light(colour: str) -> float:
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    # The contrast of WCAG 2.1, 1.4.3
    assert {kind for kind, colour in svg.OUTCOME_COLOURS.items() if 1.05 / (light(colour) + 0.05) < 4.5} == set()


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
        ([record(1, "validate", "failed"), record(2, "repair", "passed")], "open"),
        ([record(1, "validate", "failed"), record(2, "repair", "failed")], "bad"),
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
    inventories = ["/p/inventories/lab", "/q/my hosts.yml"]
    return load_filter().migration_summary(state, inventories=inventories, report="/p/artifacts/r.html", root="/p", hints=["a hint"]).splitlines()


def test_the_closing_table_has_rows_differences_seconds_and_a_total() -> None:
    lines = shown()
    assert [line.split() for line in lines if line.startswith("svc.t")] == [["svc.t", "10", "10", "0", "2.00", "5"]]
    assert [line.split()[-5:] for line in lines if line.startswith("total")] == [["10", "10", "0", "2.00", "5"]]
    assert "Report: artifacts/r.html" in lines
    assert any(line.startswith("Next: ") and line.endswith("ansible-playbook playbooks/x.yml -i inventories/lab -i '/q/my hosts.yml'") for line in lines)
    assert "  a hint" in lines


def test_hints_wait_for_the_proof() -> None:
    assert "  a hint" not in shown(phases=[{"phase": "validate", "outcome": "failed", "when": "now", "this_migration": True}])
    assert "  a hint" not in shown(tables=[{**TABLE, "source_rows": 10, "target_rows": 9, "differences": 1}])


def test_a_transfer_under_way_shows_percent_and_time_left() -> None:
    lines = shown(tables=[{**TABLE, "chunks": 4, "chunks_done": 1, "rows": 100, "expected": 400, "recent_rate": 50}])
    assert [line.split() for line in lines if line.startswith("svc.t")] == [["svc.t", "25%", "100", "400", "50", "00:06"]]


def test_the_first_line_names_the_inventory_which_without_i_is_the_lab() -> None:
    assert shown()[0].startswith("inventories/lab and /q/my hosts.yml: Migration r1 is open (")
    assert shown(run_id="")[0] == "inventories/lab and /q/my hosts.yml: No migration has begun."


def test_what_an_earlier_migration_left_is_explained_where_it_is_shown() -> None:
    old = {"phase": "migrate", "outcome": "passed", "when": "then", "this_migration": False}
    explained = "  (old): of a migration before this one"
    assert shown(phases=[old])[1:3] == ["  migrate    passed (old) then", explained]
    assert explained not in shown(phases=[{**old, "phase": "rehearse"}])


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


def test_the_command_to_look_around_is_what_it_says_whatever_the_names_are() -> None:
    plain = {"login_host": "/tmp/pg", "login_port": 5433, "login_db": "auth_service", "login_user": "migrator"}
    summary = load_filter()
    assert summary.psql_command(plain) == "psql 'host=/tmp/pg port=5433 dbname=auth_service user=migrator'"
    odd = {"login_host": "::1", "login_db": "it's $HOME \\ \"x\" dbname=y", "login_user": "a b", "session_role": "the owner"}
    program, words = shlex.split(summary.psql_command(odd, "/opt/pg 18/bin"))
    assert program == "/opt/pg 18/bin/psql"
    read = parse_dsn(words)
    assert (read["host"], read["dbname"], read["user"]) == (odd["login_host"], odd["login_db"], odd["login_user"])
    assert read["options"] == "-crole=the\\ owner"
