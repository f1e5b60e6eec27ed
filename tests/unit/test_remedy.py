# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After a failed validation the advice is what helps: repair only where rows differ."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from ansible.module_utils.migration.report import advice, status
from ansible.module_utils.migration.state import limits
from ansible.module_utils.migration.state.control import Migration
from ansible.modules import migration_validate

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CHECKS = {name: {"passed": True, "verdict": f"{name} holds"} for name in advice.CHECKS}


def validation(rows: int = 0, dangling: int = 0, **failing: str) -> dict[str, Any]:
    """Return a record in which some rows differ, some references hang, and the named checks failed with a verdict."""
    checks = CHECKS | {name: {"passed": False, "verdict": verdict, "fit": 2} for name, verdict in failing.items()}
    return {
        "verdict": "NOT equal: some" if rows or dangling else "equal: all",
        "differences": rows,
        "tables": [{"target": "svc.t", "differences": rows}],
        "references": [{"dangling": dangling}],
        **checks,
    }


@pytest.mark.parametrize(
    ("found", "command", "why"),
    [
        (validation(rows=3), "repair", "3 rows differ"),
        (validation(rows=1001), "repair", "seldom single faults"),
        (validation(rows=1, dangling=1, authorisation="x", canaries="x"), "repair", "1 row differs"),
        (validation(rows=3, quarantine="x"), "release", "2 quarantined rows"),
        (validation(quarantine="x", authorisation="x"), "release", "then validate"),
        (validation(dangling=1), "preflight", "the monolith itself refers to rows that it does not have"),
        (validation(accounting="x"), "rollback", "a mapping leaves rows out"),
        (validation(authorisation="x"), "rollback", "a mapping gives other rights"),
        (validation(canaries="x"), "validate", "validate_canaries"),
        (validation(baseline="x"), "index", "too slowly"),
    ],
)
def test_the_next_step_is_the_one_that_helps(found: dict[str, Any], command: str, why: str) -> None:
    helps = advice.remedy(found)
    assert helps.command == f"playbooks/{command}.yml"
    assert why in helps.why
    migration = Migration(1, "run", "open", "a", "f", "2026-01-02", "there", NOW)
    said = [("schema", "passed", {}), ("index", "passed", {}), ("validate", "failed", found)]
    steps = [status.Step(phase, outcome, NOW, (), True, detail) for phase, outcome, detail in said]
    assert status.advise(migration, "a", steps, []) == status.Next(helps.command, f"the last validation failed: {helps.why}")


def test_sessions_are_not_advised_where_preflight_found_none() -> None:
    migration = Migration(1, "run", "open", "a", "f", "2026-01-02", "there", NOW)
    for there, command in ((True, "sessions"), (False, "validate")):
        said = [("preflight", {"sessions": there}), ("schema", {}), ("index", {}), ("validate", {})]
        steps = [status.Step(phase, "passed", NOW, (), True, detail) for phase, detail in said]
        assert status.advise(migration, "a", steps, []).command == f"playbooks/{command}.yml"


def test_a_pause_names_the_option_that_sets_its_limit() -> None:
    assert "the limit is memory_percent in migrate_limits" in str(limits.runner_pressure(limits.Limits(cpu_percent=0, memory_percent=0.001)))


def test_what_failed_comes_first_in_the_verdict_and_what_holds_does_not_hide_it() -> None:
    assert migration_validate.whole_verdict(validation()).count("holds") == len(advice.CHECKS)
    assert migration_validate.whole_verdict(validation(rows=1, canaries="no canary sings")) == "NOT equal: some; no canary sings"
    verdict = migration_validate.whole_verdict(validation(quarantine="2 fit", canaries="no canary sings"))
    assert verdict == "NOT passed: 2 fit; no canary sings; rows equal: all"


def test_only_the_first_lines_are_shown_and_the_rest_is_counted() -> None:
    lines = [str(number) for number in range(30)]
    assert migration_validate.first(lines, 2030)[-2:] == ["19", "... and 2,010 more, see validation.json"]
    assert migration_validate.first(lines[:20], 20) == lines[:20]
