# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A damaged index of the source: no proof rests on it, and what is said leads to the REINDEX, not in circles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
from ansible.module_utils.migration.checks import source_catalog, source_indexes
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver, without_indexes
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.preflight import scan
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair import reconcile
from ansible.module_utils.migration.state.limits import Limits
from ansible.module_utils.migration.transfer import run as transfer

from tests import phases
from tests.conftest import execute
from tests.one_table import PLAN_TIME, one_table

TABLE = "CREATE SCHEMA svc; CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 integer NOT NULL UNIQUE);"
OPTIONS = transfer.Options(runner="one", workers=1, chunk_rows=500, limits=Limits(cpu_percent=0, memory_percent=0, disk_percent=0))


@pytest.fixture
def context(databases: Callable[..., Endpoint]) -> Context:
    source, target = databases("monolith"), databases("svc")
    execute(
        source,
        "CREATE TABLE rows (id integer PRIMARY KEY, v0 integer UNIQUE)",
        "INSERT INTO rows SELECT n, n FROM generate_series(1, 5000) AS n",
        "CREATE EXTENSION amcheck",
        "DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET random_page_cost = 0', current_database()); END$$",  # so that chunks are read by the index
        "ANALYZE",
    )
    made = one_table(source, target, TABLE, 1)
    phases.schema(target, Contract.from_dict(dict(made.plan.contracts)["svc"]))
    return made


def behind_the_indexes(endpoint: Endpoint, statement: str) -> None:
    """Write without the table's indexes being told, as a damaged one would have it."""
    ready = "UPDATE pg_index SET indisready = {0}, indisvalid = {0} WHERE indrelid = 'rows'::regclass"
    execute(endpoint, ready.format("false"), statement, ready.format("true"))


def looked(context: Context) -> list[tuple[str, str, int | None]]:
    with closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as source:
        found = list(scan.run(source, context.plan, source_catalog.read(source, "public")).findings)
        found += source_indexes.check(source, [part for target in context.plan.targets for part in target.parts], "public")
    return [(item.rule, item.column, item.count) for item in found if item.level == "stop"]


def test_duplicates_that_no_index_shows_stop_preflight(context: Context) -> None:
    assert looked(context) == []
    behind_the_indexes(context.source, "INSERT INTO rows VALUES (7, 60000), (60001, 9)")
    assert looked(context) == [("unique", "id", 2), ("unique", "c0", 2), ("index", "", None)]


def test_rows_that_an_index_lacks_are_named_with_the_reindex_and_never_run_it_again(context: Context) -> None:
    behind_the_indexes(context.source, "INSERT INTO rows VALUES (77777, 77777)")
    assert looked(context) == [("index", "", None)]
    for _ in range(3):
        with pytest.raises(MigrationError) as caught:
            transfer.run(context, PLAN_TIME, "run", OPTIONS, Progress(None), reconcile.reconcile)
        assert "rows has 5001 rows, but 5000 by its index (public.rows_pkey)" in str(caught.value)
        assert "REINDEX INDEX public.rows_pkey; SELECT public.bt_index_check('public.rows_pkey'::regclass, true)" in str(caught.value)
        assert "run it again" not in str(caught.value)
    execute(context.source, "REINDEX INDEX rows_pkey")
    assert transfer.run(context, PLAN_TIME, "run", OPTIONS, Progress(None), reconcile.reconcile).reconciled > 0


def test_a_query_that_looks_up_every_row_keeps_its_indexes(context: Context) -> None:
    execute(context.source, "INSERT INTO rows SELECT n, n FROM generate_series(10001, 60000) AS n", "ANALYZE")
    looking = "SELECT count(*) FROM rows AS r WHERE (SELECT o.v0 FROM rows AS o WHERE o.id = r.id + 1) > 0"
    with closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as source:
        assert without_indexes.scalar(source, looking) == 54998
        assert driver.scalar(source, "SHOW enable_indexscan") == "on"
