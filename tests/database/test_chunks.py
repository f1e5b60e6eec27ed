# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chunks are of one size, wherever the rows lie and whatever the statistics say, and cover every row once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.plan.predicates import between
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.transfer import chunks

from tests.conftest import execute
from tests.database.test_transfer import NAMESPACE, PLAN_TIME
from tests.mutation.world import fill, read_plan

SIZE = 500
QUIET = "SET (autovacuum_enabled = off)"


@pytest.fixture
def context(databases: Callable[..., Endpoint]) -> Context:
    """A monolith whose users have no permissions yet."""
    source = databases("monolith")
    fill(source, 50, seed=3)
    execute(source, f"ALTER TABLE auth_user_groups {QUIET}", f"ALTER TABLE auth_user_user_permissions {QUIET}")
    execute(source, "TRUNCATE auth_user_groups, auth_user_user_permissions, auth_group_permissions", "ANALYZE")
    execute(source, "INSERT INTO auth_group_permissions (group_id, permission_id) SELECT min(g.id), min(p.id) FROM auth_group AS g, auth_permission AS p")
    return Context(plan=read_plan(), source=source, targets={}, control=source, namespace=NAMESPACE)


def members(low: int, high: int) -> str:
    """Return the statement that puts users of these ids, which need not exist, into the group with one permission."""
    return f"INSERT INTO auth_user_groups (user_id, group_id) SELECT g, (SELECT min(id) FROM auth_group) FROM generate_series({low}, {high}) AS g"


def cut(context: Context) -> tuple[list[int], list[int]]:
    """Return the estimated and the real rows of the chunks of user_permissions."""
    with contextlib.closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as source:
        unit = next(unit for unit in chunks.units(context.plan, "auth_service") if unit.target.table == "user_permissions")
        found = chunks.plan_chunks(source, "public", unit, SIZE, "load")
        parts = [between(chunk.low, chunk.high, nulls=chunk.nulls) for chunk in found]
        real = [int(driver.scalar(source, unit.part.select_columns(["count(*)"], "public", part))) for part in parts]
        assert sum(real) == driver.scalar(source, unit.part.select_columns(["count(*)"], "public"))
    return [chunk.estimate for chunk in found], real


def test_rows_that_lie_in_one_of_several_tables_are_cut_as_evenly_as_those_of_the_other(context: Context) -> None:
    own = "INSERT INTO auth_user_user_permissions (user_id, permission_id) SELECT g, 1 FROM generate_series(1000, 6000) AS g"
    execute(context.source, own, members(200_000, 204_000), "ANALYZE")
    _, real = cut(context)
    assert max(real) <= 2 * SIZE


def test_a_user_with_more_permissions_than_a_chunk_has_rows_is_alone_in_one(context: Context) -> None:
    many = "INSERT INTO auth_user_user_permissions (user_id, permission_id) SELECT 2000000000, g FROM generate_series(1, 5000) AS g"
    execute(context.source, many, members(1, 4000), members(2_000_000_001, 2_000_002_000), "ANALYZE")
    _, real = cut(context)
    assert sorted(real)[-1] <= 5000 + 2 * SIZE
    assert sorted(real)[-2] <= 2 * SIZE


def test_a_table_that_its_statistics_call_empty_is_cut_all_the_same(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(context.source, members(1, 9000), "CREATE TABLE kept AS SELECT * FROM auth_user_groups", "DELETE FROM auth_user_groups")
    execute(context.source, "ANALYZE auth_user_groups", "INSERT INTO auth_user_groups SELECT * FROM kept")
    asked = 0
    estimate = chunks.estimate

    def counted(source: driver.Connection, from_item: str) -> int:
        nonlocal asked
        asked += 1
        return estimate(source, from_item)

    monkeypatch.setattr(chunks, "_MOST_ESTIMATES", 300)
    monkeypatch.setattr(chunks, "estimate", counted)
    _, real = cut(context)
    assert len(real) > 3
    assert max(real) < 9000 / 2
    assert asked < 400


def test_rows_that_came_after_the_statistics_are_cut_all_the_same(context: Context) -> None:
    execute(context.source, members(1, 200), "ANALYZE auth_user_groups", members(1000, 9000))
    _, real = cut(context)
    assert max(real) <= 3 * SIZE
