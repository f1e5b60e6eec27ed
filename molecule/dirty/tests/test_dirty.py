# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What preflight leaves of a dirty monolith: a record, findings that name keys and no values, a graph."""

from __future__ import annotations

import json
from typing import Any

from molecule_databases import INVENTORY, PROJECT, ask

FOLDER = PROJECT / "artifacts" / INVENTORY.name


def test_the_findings_name_mapping_column_rule_count_and_keys() -> None:
    newest = max(FOLDER.glob("*/preflight.json"), key=lambda path: path.stat().st_mtime)
    text = newest.read_text(encoding="utf-8")
    (found,) = [item for item in json.loads(text)["findings"] if item["level"] == "stop"]
    assert (found["target"], found["column"], found["rule"], found["count"]) == ("auth_service.users", "email", "blank", 3)
    assert found["place"].startswith("mappings/auth_service/users.yml:")
    assert found["keys"] == ["990001", "990002", "990003"]
    assert "secret" not in text
    assert newest.with_name("dependencies.mmd").read_text(encoding="utf-8").startswith("flowchart LR\n")


def test_the_failure_is_on_record_and_nothing_was_begun(host: Any) -> None:
    assert ask(host, "migration_control", "SELECT outcome FROM migration.records WHERE kind = 'preflight' ORDER BY id DESC LIMIT 1") == "failed"
    assert ask(host, "migration_control", "SELECT count(*) FROM migration.migrations WHERE state = 'open'") == "0"
