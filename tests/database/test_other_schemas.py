# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mapping that names a table of another schema than source_schema: said once, with the way out, and never taken for a table of that name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.postgres.driver import Endpoint

from tests.conftest import execute
from tests.mapped_world import NAMESPACE, compiled, stops

JOINED = "{query: notes.sql, refresh: {note: id}}"


@pytest.mark.parametrize(("source", "stopped"), [(JOINED, True), ("tenant1.note", True), ("tenant1_note", False)], ids=["query", "table", "view"])
def test_a_table_of_another_schema_is_refused_once_and_a_view_of_it_is_read(
    databases: Callable[..., Endpoint], tmp_path: Path, source: str, stopped: bool
) -> None:
    files = {
        "services/office/010-tables.sql": "CREATE TABLE notes (id uuid PRIMARY KEY, body text NOT NULL);",
        "mappings/office/notes.yml": f"source: {source}\nkey: {{from: id}}\nchunk_by: id\ncolumns: {{body: body}}\n",
        "mappings/office/notes.sql": "SELECT id, body FROM tenant1.note",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    database = databases("tenants")
    execute(
        database,
        "CREATE TABLE note (id int PRIMARY KEY, body text NOT NULL)",  # which is another table, and must not be taken for it
        "CREATE SCHEMA tenant1",
        "CREATE TABLE tenant1.note (id int PRIMARY KEY, body text NOT NULL)",
        "CREATE VIEW tenant1_note AS SELECT * FROM tenant1.note",
    )
    plan = compiled(tmp_path, ("office",))
    found = stops(Context(plan=plan, source=database, targets={"office": databases("service")}, control=databases("records"), namespace=NAMESPACE))
    said = [line for line in found if "tenant1.note is not in public: a migration reads the tables and views of one schema" in line]
    assert len(said) == stopped, found
    assert not any("the source has no table" in line for line in found)
