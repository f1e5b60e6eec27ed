# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts between databases of different encodings: preflight refuses exactly what PostgreSQL will not carry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
from ansible.module_utils.migration.checks import source_catalog
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.postgres.quote import literal
from ansible.module_utils.migration.preflight import scan

from tests.conftest import execute
from tests.one_table import PLAN_TIME, load, one_table

# What a monolith of each encoding may hold, as bytes: plain, accented, beyond Latin, not valid, a control character.
BYTES = {
    "UTF8": ("61", "c3a9", "e282ac", "e697a5", "f09f9880", "c281"),
    "LATIN1": ("61", "e9", "e3", "81", "a4"),
    "WIN1252": ("61", "e9", "80", "81", "5d81"),
    "SQL_ASCII": ("61", "c3a9", "e282ac", "ff", "80", "c3", "eda080", "f09f9880"),
    "EUC_JP": ("61", "c6fc", "a4a2"),
}
TARGET = "CREATE SCHEMA svc; CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 text, c1 jsonb);"


PAIRS = {
    "UTF8": ("LATIN1", "WIN1252", "EUC_JP", "SQL_ASCII"),
    "LATIN1": ("UTF8", "LATIN1", "LATIN2"),
    "WIN1252": ("UTF8", "WIN1252"),
    "SQL_ASCII": ("UTF8", "LATIN1", "SQL_ASCII"),
    "EUC_JP": ("UTF8", "LATIN1"),
}


def test_a_text_is_refused_where_it_cannot_be_carried(databases: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "FIRST", 100)
    sources = {have: databases("monolith", encoding=have) for have in BYTES}
    targets = {want: databases("svc", encoding=want) for want in dict.fromkeys(want for found in PAIRS.values() for want in found)}
    for target in targets.values():
        execute(target, TARGET)
    for have, source in sources.items():
        execute(source, "CREATE TABLE rows (id bigint PRIMARY KEY, v0 text, v1 jsonb)")
        for want in PAIRS[have]:
            context = one_table(source, targets[want], TARGET, 2)
            assert [have, want, *judged(context, have, want)] == [have, want, *carried(context, have)]


def fill(source: Endpoint, have: str) -> list[str]:
    """Put every text into the source anew; return the keys."""
    execute(source, "TRUNCATE rows")
    for number, text in enumerate(BYTES[have], 1):
        execute(source, f"INSERT INTO rows VALUES ({number}, convert_from(decode({literal(text)}, 'hex'), {literal(have)}), '[1]')")
    return [str(number) for number in range(1, len(BYTES[have]) + 1)]


def carried(context: Context, have: str) -> list[str]:
    """Return the keys that PostgreSQL refuses to carry."""
    keys = fill(context.source, have)
    with (
        closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as reader,
        closing(driver.connect(context.targets["svc"], application_name="tests", autocommit=True)) as writer,
    ):
        return [key for key in keys if load(context, reader, writer, [key])]


def judged(context: Context, have: str, want: str) -> list[str]:
    """Return the keys that preflight refuses; what no condition tells is found by trying, one row after the other."""
    fill(context.source, have)
    refused: set[str] = set()
    with closing(context.connect_source("tests", plan_time=PLAN_TIME, autocommit=True)) as reader:
        catalog = source_catalog.read(reader, "public")
        while True:
            found = scan.run(reader, context.plan, catalog, {"svc": (have, want)}).findings
            assert {item.rule for item in found} <= {"encoding"}
            new = {key for item in found for key in item.keys if item.level == "stop"}
            if not new:
                return sorted(refused)
            refused |= new
            execute(context.source, f"DELETE FROM rows WHERE id IN ({', '.join(new)})")
