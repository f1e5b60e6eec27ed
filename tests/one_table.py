# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A migration of one table: `rows (id, v0, v1, ...)` becomes `svc.things (id, c0, c1, ...)`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import psycopg2
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.parse import parse_texts
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan import mapping as m
from ansible.module_utils.migration.plan.compiler import compile_plan
from ansible.module_utils.migration.plan.predicates import one_of
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint

NAMESPACE = "a namespace of the tests, long enough"
PLAN_TIME = "2024-01-01 00:00:00"


def one_table(
    source: Endpoint, target: Endpoint, target_sql: str, width: int, *, given: Mapping[int, m.Column] | None = None, policies: Sequence[m.Policy] = ()
) -> Context:
    """Return the context; `target_sql` makes schema svc and its table, `given` are columns that are no copy."""
    contract = parse_texts("svc", [("svc/tables.sql", target_sql)])
    chosen = given or {}
    columns = tuple(chosen.get(i) or m.Column(f"c{i}", f"svc/things.yml:{i}", source=f"v{i}") for i in range(width))
    part = m.Part("", "svc/things.yml:1", "rows", None, None, (), m.Key(("id",), ("integer",), None, "svc/things.yml:1"), "id", columns)
    mapping = m.Mapping("svc", "things", "svc/things.yml", (part,), tuple(policies))
    plan = compile_plan(m.Mappings((mapping,), ()), {"svc": contract}, ids.fingerprint(NAMESPACE))
    return Context(plan=plan, source=source, targets={"svc": target}, control=target, namespace=NAMESPACE)


def load(context: Context, source: driver.Connection, target: driver.Connection, keys: Sequence[str]) -> str:
    """Load rows as the transfer does, in place of what is there; return '' or PostgreSQL's error."""
    part = context.plan.targets[0].parts[0]
    buffer = io.BytesIO()
    try:
        with source.cursor() as cursor:
            cursor.copy_expert(f"COPY ({part.select('public', one_of(keys))}) TO STDOUT (FORMAT binary)", buffer)
        buffer.seek(0)
        with target.cursor() as cursor:
            cursor.execute("TRUNCATE svc.things")
            cursor.copy_expert("COPY svc.things FROM STDIN (FORMAT binary)", buffer)
    except psycopg2.Error as exc:
        return f"{exc.pgcode} {exc}"
    return ""
