# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every error that a phase raises says what to do: the third of place, fault and next step."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.migration.postgres import connect_errors, faults

from tests.conftest import PROJECT

# Errors of files have their file and line as the place, and what would be right as the fault.
OF_FILES = ("plan", "contract", "mistakes.py", "yaml_tree.py")
STEP = re.compile(
    r"; |\b(?:run|set|give|name|correct|check|install|use|raise|write|make|choose|put|add|drop|remove|let|free|mend|wait|stop|grant|start|leave"
    r"|delete|upgrade|keep|restore|rename)\b",
    re.IGNORECASE,
)
# What a message ends with when another place has written it as a whole, step included.
WHOLE = re.compile(
    r"\b(?:exc|faults|fault|text|answer|step|said\(|told\(|_explain\(|_no_driver\(|_FULL|_failure|cause|unfit|room|states|changed|item\.line"
    r"|reconciliation\.missing\()"
)


def raised(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the fixed text and the last placeholder of each MigrationError that is made."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MigrationError" and node.args:
            parts = [part for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            yield node.lineno, " ".join(part.value for part in parts), ast.unparse(node.args[0])


def test_every_raise_site_of_a_phase_says_what_to_do() -> None:
    lacking, seen = [], 0
    core = PROJECT / "module_utils" / "migration"
    for path in [*core.rglob("*.py"), *(PROJECT / "library").glob("*.py")]:
        if path.is_relative_to(core) and path.relative_to(core).parts[0] in OF_FILES:
            continue
        for line, text, whole in raised(path):
            seen += 1
            if not STEP.search(text) and not WHOLE.search(whole):
                lacking.append(f"{path.relative_to(PROJECT)}:{line}: {whole}")
    assert seen > 100
    assert lacking == []


def test_every_error_of_postgresql_has_a_step_whatever_its_state() -> None:
    for state in ("", "P0001", "23505", "42501", "55P03", "57014", "0A000", "ZZ999", "XX001", "08006", "53100", "99999"):
        assert len(faults.step_for(state)) > 10, state
    for text in ("", "FATAL: whatever", "Connection refused", "FATAL:  no pg_hba.conf entry for host"):
        fault, step = connect_errors.why(text)
        assert fault, text
        assert step.endswith(" in") or "see" in step, text
