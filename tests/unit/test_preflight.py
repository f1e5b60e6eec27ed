# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight's pure parts: coverage, dependencies, and what the operator reads."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType

import pytest
from ansible.module_utils.migration.checks.findings import Finding, ordered
from ansible.module_utils.migration.checks.row_checks import raw_sql
from ansible.module_utils.migration.checks.source_catalog import Reference, SourceCatalog, SourceColumn, SourceTable
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.preflight import coverage, dependencies

from tests.mutation.world import PROJECT, read_plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan()


def catalog(plan: Plan, extra: Mapping[str, tuple[str, ...]] | None = None, references: tuple[Reference, ...] = ()) -> SourceCatalog:
    """Return a source that has exactly what the plan reads or drops, and `extra` tables or columns."""
    columns: dict[str, list[str]] = {}
    for target in plan.targets:
        for part in target.parts:
            for read in part.reads:
                for name in read.tables[:1] if len(read.tables) == 1 else ():
                    columns.setdefault(name, []).append(read.column)
            for name, _reason in part.dropped:
                table, _, column = name.rpartition(".")
                columns.setdefault(table or str(part.table), []).append(column)
    for name, more in (extra or {}).items():
        columns.setdefault(name, []).extend(more)
    tables = {
        name: SourceTable(name, "r", {column: SourceColumn(column, "text", False) for column in found}, ("id",), 7, 0, True)
        for name, found in columns.items()
    }
    return SourceCatalog("public", tables, references)


def test_a_source_of_what_the_mappings_read_is_covered(plan: Plan) -> None:
    assert coverage.check(plan, catalog(plan)) == []


def test_a_column_that_nothing_reads_stops_and_names_file_and_remedy(plan: Plan) -> None:
    (finding,) = coverage.check(plan, catalog(plan, {"companies": ("founder_shoe_size",)}))
    assert (finding.level, finding.place, finding.column) == ("stop", "mappings/user_service/company_profiles.yml", "founder_shoe_size")
    assert "dropped: {founder_shoe_size:" in finding.next_step


def test_a_missing_column_suggests_the_one_that_was_meant(plan: Plan) -> None:
    whole = catalog(plan)
    table = whole.tables["companies"]
    columns = {name.replace("industry", "industrie"): replace(column, name=name.replace("industry", "industrie")) for name, column in table.columns.items()}
    found = coverage.check(plan, replace(whole, tables={**whole.tables, "companies": replace(table, columns=columns)}))
    assert any("has no column industry (did you mean industrie?)" in finding.message for finding in found)


def test_a_missing_table_stops(plan: Plan) -> None:
    whole = catalog(plan)
    found = coverage.check(plan, replace(whole, tables={name: table for name, table in whole.tables.items() if name != "students"}))
    assert any("no table public.students" in finding.message for finding in found)


def test_a_table_left_behind_is_named_with_the_id_map_it_needs(plan: Plan) -> None:
    source = catalog(plan, {"orders": ("id", "user_id")}, (Reference("fk", "orders", ("user_id",), "auth_user", True, "public", 7),))
    (finding,) = dependencies.check(plan, source)
    assert (finding.place, finding.column) == ("public.orders", "user_id")
    assert "'users'" in finding.next_step
    graph = dependencies.build(plan, source)
    assert "==>" in graph.mermaid()
    assert {"from": "public.orders", "to": "public.auth_user", "kind": "stays", "label": "user_id"} in graph.to_dict()["edges"]


def test_a_calls_volatility_is_judged_by_name(plan: Plan) -> None:
    called = {**coverage.volatile_names(plan), "roll_dice": "mappings/x.yml"}
    assert "btrim" in called
    assert [finding.place for finding in coverage.check_volatile(called, ["roll_dice"])] == ["mappings/x.yml"]


def test_stop_comes_first_and_nothing_twice() -> None:
    info, stop = Finding("info", "a", "r", "m"), Finding("stop", "b", "r", "m")
    assert ordered([info, stop, info]) == (stop, info)


def test_the_raw_expression_of_a_cell_has_no_cast(plan: Plan) -> None:
    users = next(target for target in plan.targets if target.name == "auth_service.users")
    cell = next(cell for cell in users.parts[0].cells if cell.name == "email")
    assert raw_sql(cell, ()) == 'src."email"'


@pytest.fixture(scope="module")
def filters() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preflight_filters", PROJECT / "filter_plugins" / "preflight.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lines_give_place_count_keys_and_next_step(filters: ModuleType) -> None:
    finding = Finding("stop", "mappings/x.yml:3", "length", "is too long", "shorten it", "svc.x", "name", 7, ("1", "2"))
    report = {"findings": [finding.to_dict()], "rows": [{"target": "svc.x", "part": "", "rows": 10}], "seconds": {"contract": 0.5}}
    lines = filters.preflight_lines(report)
    assert lines[0] == "STOP length      mappings/x.yml:3 name: 7 rows: is too long (keys 1, 2, ...) -> shorten it"
    assert lines[-1] == "1 stop, 0 warn, 0 info"
    assert "svc.x.name: is too long. Next: shorten it" in filters.preflight_verdict(report)
    assert [item["name"] for item in filters.preflight_files(report)] == ["preflight.json"]


def test_one_row_is_a_row(filters: ModuleType) -> None:
    finding = Finding("warn", "mappings/x.yml:3", "case", "m", count=1)
    (line, *_) = filters.preflight_lines({"findings": [finding.to_dict()], "rows": [], "seconds": {}})
    assert line == "WARN case        mappings/x.yml:3: 1 row: m"


def test_names_of_any_kind_make_a_flowchart_that_mermaid_reads(plan: Plan) -> None:
    source = catalog(plan)
    odd = Reference("r", 'say "hi" #1', ("a|b", "c"), "auth_user", True, "bill-ing", 3)
    twin = Reference("r", "say_hi", ("a",), "auth_user", True, "bill_ing", 3)
    graph = dependencies.build(plan, replace(source, schema="auth_service", references=(odd, twin)))
    text = graph.mermaid()
    nodes = re.findall(r'^    (n\d+)\["([^"]*)"\]$', text, re.MULTILINE)
    assert len({name for name, _ in nodes}) == len({label for _, label in nodes}) == len(graph.nodes)
    for line in text.splitlines()[1:]:
        assert re.fullmatch(r'  (subgraph g\d+\["[^"]+"\]|end|  n\d+\["[^"]+"\]|n\d+ (-->|-\.->|==>)(\|"[^"]+"\|)? n\d+)', line), line
    assert "bill-ing.say #34;hi#34; #35;1" in text
