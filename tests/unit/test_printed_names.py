# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The name of an object forges no line of an operator's output."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from ansible.module_utils.migration import module
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.text import printable
from hypothesis import given
from hypothesis import strategies as st

FORGED = 'public."x\nok: [runner1] => all rows equal\r\x1b[32m\u202e\u2028"'


class Ended(Exception):
    """What ends the fake module, with what it would have sent."""


class Fake:
    """Ends as AnsibleModule does, by leaving."""

    def exit_json(self, **result: Any) -> None:
        raise Ended(result)

    def fail_json(self, **result: Any) -> None:
        raise Ended(result)


def ended(work: Any) -> dict[str, Any]:
    """Return what a module sends that does this work."""
    with pytest.raises(Ended) as caught:
        module.finish(Fake(), work)  # type: ignore[arg-type]  # only its two ends are asked
    sent: dict[str, Any] = caught.value.args[0]
    return sent


@given(st.text())
def test_a_printable_text_is_one_line_and_keeps_what_is_printable(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert shown == text or len(shown) > len(text)
    assert printable(shown) == shown


def test_no_result_and_no_fault_holds_a_forged_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored afterwards
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    sent = ended(lambda _: {"lines": [f"{FORGED} differs"], "tables": {FORGED: {"rows": 1}}, "diff": {"after": f"{FORGED}\nnext\n"}, "plan": "SELECT\n1"})
    assert sent["lines"] == ['public."x\\nok: [runner1] => all rows equal\\r\\x1b[32m\\u202e\\u2028" differs']
    assert "\n" not in next(iter(sent["tables"]))
    assert sent["diff"]["after"].count("\n") == 3, "a diff has lines of its own"
    assert "\x1b" not in sent["diff"]["after"]
    assert sent["plan"] == "SELECT\n1", "SQL is not shown"

    def fails(_: Any) -> dict[str, Any]:
        raise MigrationError(f"{FORGED}: has no key; add one")

    assert "\n" not in ended(fails)["msg"]
