# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A result column has an origin only where it shows a table's column and nothing else."""

from __future__ import annotations

import pytest
from ansible.module_utils.migration.plan.column_origins import origins

A = {"id": (("a", "id"),)}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id FROM a",
        "SELECT x.id FROM a AS x LEFT JOIN b ON b.a = x.id WHERE x.flag",
        "SELECT DISTINCT x.id FROM b, a x",
        "SELECT q.id FROM (SELECT id, 1 AS n FROM a) AS q JOIN g() AS f ON true",
        "SELECT id FROM a UNION SELECT other.id FROM a AS other",
    ],
)
def test_a_column_that_is_shown_unchanged_has_its_tables_column_as_origin(sql: str) -> None:
    assert origins(sql, "q.sql") == A


def test_each_branch_of_a_union_counts() -> None:
    assert origins("SELECT id FROM a UNION ALL SELECT k FROM b", "q.sql") == {"id": (("a", "id"), ("b", "k"))}
    assert origins("SELECT id FROM a UNION ALL SELECT k + 1 FROM b", "q.sql") == {}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id + 0 AS id FROM a",
        "SELECT coalesce(id, 1) AS id FROM a",
        "SELECT * FROM a",
        "SELECT id FROM a, g()",  # whose is it?
        "SELECT id FROM a JOIN b USING (id)",
        "SELECT f.id FROM g() AS f",
        "SELECT k.i AS id FROM a AS k (i)",
        "SELECT other.a.id FROM other.a",
        "SELECT x.id FROM other.a AS x",
        "SELECT j.id FROM (a JOIN b USING (id)) AS j",
        "WITH a AS (SELECT 1 AS id) SELECT id FROM a",
        "WITH a AS (SELECT 1 AS id) SELECT q.id FROM (SELECT a.id FROM a) AS q",
        "SELECT q.id FROM (SELECT id FROM a) AS q (k)",
        "SELECT q.id FROM (SELECT 1 AS id, id FROM a) AS q",
        "SELECT q.id FROM (SELECT a.x, a.id FROM a UNION SELECT s.*, b.id FROM s, b) AS q",  # s may have two columns
        "SELECT q.id FROM (SELECT s.*, b.id FROM s, b UNION SELECT a.x, a.id FROM a) AS q",
        'SELECT id FROM g() AS f, a AS " 0"',
        "VALUES (1)",
    ],
)
def test_anything_else_has_none(sql: str) -> None:
    assert origins(sql, "q.sql") == {}
