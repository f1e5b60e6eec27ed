# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values that PostgreSQL carries and a service cannot use: years that no driver holds, numbers of large objects. Each is told with its rows."""

from __future__ import annotations

from contextlib import closing

from ansible.module_utils.migration.checks import source_catalog
from ansible.module_utils.migration.plan import mapping as m
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.preflight import large_objects, scan

from tests.conftest import execute
from tests.one_table import PLAN_TIME, one_table

TARGET = """
CREATE SCHEMA svc;
CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 date, c1 timestamp, c2 timestamptz, c3 timestamptz, c4 bigint, c5 bigint);
"""


def test_each_is_told_with_its_rows(database: Endpoint) -> None:
    policies = (m.Policy("c3", "year", "placeholder", "NULL", "here"),)
    context = one_table(database, database, TARGET, 6, policies=policies)
    execute(
        database,
        "CREATE DOMAIN lo AS oid",
        "CREATE TABLE rows (id integer PRIMARY KEY, v0 date, v1 timestamp, v2 timestamptz, v3 timestamptz, v4 oid, v5 lo)",
        "INSERT INTO rows SELECT 1, '0044-03-15 BC', '0044-03-15 BC', '0001-01-01 00:00+14', '0001-12-31 BC', lo_create(4001), 4001",
        "INSERT INTO rows VALUES (2, '0001-01-01', '9999-12-31 23:59', '0001-01-01 00:00+00', 'infinity', 4001, 7)",
        "INSERT INTO rows VALUES (3, '10000-01-01', '-infinity', 'infinity', now(), 0, NULL)",
    )
    with closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as source:
        found = list(scan.run(source, context.plan, source_catalog.read(source, "public")).findings)
        found += large_objects.check(source, "public", ["rows"])
    assert {(item.rule, item.column, item.level, item.count) for item in found} == {
        ("year", "c0", "warn", 2),
        ("year", "c1", "warn", 1),
        ("year", "c2", "warn", 1),
        ("year", "c3", "info", 1),
        ("infinity", "c1", "warn", 1),
        ("infinity", "c2", "warn", 1),
        ("infinity", "c3", "warn", 1),
        ("large_object", "v4", "warn", 2),
        ("large_object", "v5", "warn", 1),
    }
