# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Another monolith, other services: only YAML and SQL differ (tests/other_monolith), never the code."""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.repair import repair
from ansible.module_utils.migration.validate import run as validate

from tests.conftest import execute
from tests.mapped_world import NAMESPACE, PLAN_TIME, Change, ask, carry, compiled, index, look, make_tables, rows, stops, uuid_of

SHOP = Path(__file__).resolve().parents[1] / "other_monolith"
SCHEMA = "Legacy Shop"
SERVICES = ("catalog", "sales")


def read_plan(change: dict[str, Change] | None = None, mappings: Path | None = None) -> Plan:
    return compiled(SHOP, SERVICES, change, mappings)


@pytest.fixture
def shop(databases: Callable[..., Endpoint]) -> Context:
    source = databases("shop")
    execute(source, (SHOP / "monolith.sql").read_text())
    targets = {service: databases(service) for service in SERVICES}
    seen = dataclasses.replace(source, schema=SCHEMA)
    return Context(plan=read_plan(), source=seen, targets=targets, control=databases("records"), namespace=NAMESPACE)


def maybe(entity: str, key: int | str | None) -> str | None:
    return None if key is None else uuid_of(entity, key)


COLUMNS = """c."Code", c."order", c."select"::text, c."user", c.tags::text, c.prefs::text, c.raw::text, c.photo::text, c.wait::text,
 c.seen::text, c.ip::text, c.status::text, c.tel::text, c.valid::text, c.prime::text, c.full_name"""
DAMAGE = {
    "catalog": (
        "UPDATE catalog.items SET parent_id = NULL WHERE id = (SELECT min(id::text)::uuid FROM catalog.items WHERE parent_id IS NOT NULL)",
        """UPDATE catalog."Band" SET label = 'other' WHERE rate = 1.5""",
        "DELETE FROM catalog.item_tags WHERE tag = '' AND item_id = (SELECT min(item_id::text)::uuid FROM catalog.item_tags)",
    ),
    "sales": (
        """UPDATE "Sales Data"."Customer" SET raw = '{"b":1,"a":2,"b":3}' WHERE "Code" = 'Abc '""",
        """UPDATE "Sales Data"."Customer" SET "select" = upper("select"::text) WHERE "Code" = ' '""",
        "UPDATE sales.order_lines SET qty = 1.1 WHERE id = (SELECT min(id::text)::uuid FROM sales.order_lines WHERE qty = 1.10)",
    ),
}


def test_another_monolith_needs_other_data_and_no_other_code(shop: Context) -> None:
    assert stops(shop) == []
    assert make_tables(shop) > 0
    assert make_tables(shop) == 0
    assert carry(shop).rows > 6_000
    assert carry(shop).changed is False
    assert index(shop) == 16
    assert index(shop) == 0
    found = validate.compare(shop, PLAN_TIME)
    assert found.passed, [finding.line for finding in found.findings]
    assert {name: result.target_rows for name, result in found.tables.items() if result.target_rows == 0} == {"catalog.nothings": 0, "catalog.zeros": 0}
    assert_equal_by_hand(shop)
    assert [item.target or item.place for item in look(shop).findings if item.rule == "trigger"] == ["sales.orders"]
    for service, statements in DAMAGE.items():
        execute(shop.targets[service], *statements)
    found = validate.compare(shop, PLAN_TIME, options=validate.Options(settle_attempts=0))
    assert found.differences == 6, [finding.line for finding in found.findings]
    planned = repair.plan_repair(found.to_dict(), after_cutover=False)
    assert repair.apply_repair(shop, PLAN_TIME, planned).rows == 6
    assert validate.compare(shop, PLAN_TIME).passed
    assert_equal_by_hand(shop)


def assert_equal_by_hand(shop: Context) -> None:
    """Hold every table against the monolith with statements and ids of this file alone."""
    source, catalog, sales = shop.source, shop.targets["catalog"], shop.targets["sales"]
    wanted = {(uuid_of("customers", str(row[0])), *row, len(str(row[0]))) for row in rows(source, f'SELECT {COLUMNS} FROM "Legacy Shop"."Customer" AS c')}
    assert rows(sales, f'SELECT c.id::text, {COLUMNS}, c.code_length FROM "Sales Data"."Customer" AS c') == wanted
    users = ask(source, 'SELECT id, name, boss, customer FROM "Legacy Shop"."user"')
    wanted = {(uuid_of("users", i), n, maybe("users", b), maybe("customers", c), i) for i, n, b, c in users}  # type: ignore[arg-type]
    assert rows(sales, "SELECT id::text, name, boss::text, customer_id::text, old_id FROM sales.users") == wanted
    orders = ask(source, """SELECT order_id, (placed_at AT TIME ZONE 'UTC')::text, customer, band::text, note FROM "Legacy Shop"."order" """)
    wanted = {(uuid_of("orders", i), i, p, maybe("customers", c), maybe("bands", b), n) for i, p, c, b, n in orders}  # type: ignore[arg-type]
    assert rows(sales, "SELECT id::text, number, placed_at::text, customer_id::text, band_id::text, note FROM sales.orders") == wanted
    lines = ask(source, 'SELECT order_id, line_no, item::text, qty::text FROM "Legacy Shop".order_line')
    wanted = {(uuid_of("sales.order_lines", o, n), uuid_of("orders", o), n, maybe("items", i), q) for o, n, i, q in lines}  # type: ignore[arg-type]
    assert rows(sales, "SELECT id::text, order_id::text, line_no, item_id::text, qty::text FROM sales.order_lines") == wanted
    items = ask(source, """SELECT id::text, parent_id::text, price::text, bits::text, size::text, dur::text, "Größe"::text FROM "Legacy Shop".item""")
    wanted = {(uuid_of("items", str(i)), maybe("items", p), *rest, i) for i, p, *rest in items}  # type: ignore[arg-type]
    found = rows(catalog, 'SELECT id::text, parent_id::text, price::text, bits::text, size::text, dur::text, "Größe"::text, old_key::text FROM catalog.items')
    assert found == wanted
    tags = ask(source, 'SELECT item_id::text, tag FROM "Legacy Shop".item_tag')
    wanted = {(uuid_of("catalog.item_tags", i, t), uuid_of("items", i), t) for i, t in tags}  # type: ignore[arg-type]
    assert rows(catalog, "SELECT id::text, item_id::text, tag FROM catalog.item_tags") == wanted
    uses = ask(source, 'SELECT id, rate::numeric(20,4)::text FROM "Legacy Shop".band_use')
    wanted = {(uuid_of("catalog.band_uses", i), maybe("bands", r), i) for i, r in uses}  # type: ignore[arg-type]
    assert rows(catalog, "SELECT id::text, band_id::text, old_id FROM catalog.band_uses") == wanted
    assets = ask(source, 'SELECT id, name FROM "Legacy Shop".asset')
    assert rows(catalog, "SELECT id::text, old_id, name FROM catalog.assets") == {(uuid_of("catalog.assets", i), i, n) for i, n in assets}  # type: ignore[arg-type]


def test_a_reference_that_equals_its_key_but_is_written_otherwise_is_refused(shop: Context, tmp_path: Path) -> None:
    changed = tmp_path / "mappings"
    for path in (SHOP / "mappings").rglob("*.*"):
        copy = changed / path.relative_to(SHOP / "mappings")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text().replace("sql: \"rate::numeric(20,4)\"", "from: rate"))
    said = stops(dataclasses.replace(shop, plan=read_plan(mappings=changed)))
    assert len(said) == 1
    assert "band_uses.yml:4 equals a key of band that is written otherwise" in said[0]


@pytest.mark.parametrize("statement", ["ANALYZE", 'ALTER TABLE "Legacy Shop".band_use DROP CONSTRAINT band_use_rate_fkey'], ids=["key", "no key"])
def test_what_only_equals_a_key_refers_to_nobody(shop: Context, tmp_path: Path, statement: str) -> None:
    changed = tmp_path / "mappings"
    shutil.copytree(SHOP / "mappings", changed)
    uses = changed / "catalog" / "band_uses.yml"
    uses.write_text(uses.read_text().replace('sql: "rate::numeric(20,4)"', "from: rate"))
    seen = dataclasses.replace(shop, plan=read_plan(mappings=changed))
    execute(shop.source, statement)
    make_tables(seen)
    carry(seen)
    found = validate.compare(seen, PLAN_TIME)
    assert {(item.target, item.column, item.dangling) for item in found.references if item.dangling} == {("catalog.band_uses", "band_id", 2)}


def test_rows_that_a_policy_hides_from_the_reader_stop_preflight(shop: Context) -> None:
    role = f"reader_{uuid.uuid4().hex[:8]}"
    execute(
        shop.source,
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret'",
        f'GRANT USAGE ON SCHEMA "Legacy Shop" TO {role}',
        f'GRANT SELECT ON ALL TABLES IN SCHEMA "Legacy Shop" TO {role}',
        'ALTER TABLE "Legacy Shop".secret ENABLE ROW LEVEL SECURITY',
    )
    try:
        said = stops(dataclasses.replace(shop, source=dataclasses.replace(shop.source, user=role, password="secret")))
        assert any('row level security hides rows of "Legacy Shop".secret' in line for line in said), said
    finally:
        execute(shop.source, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_generated_value_that_breaks_a_check_stops_preflight(shop: Context) -> None:
    def narrow(text: str) -> str:
        return text.replace("STORED);", "STORED, CONSTRAINT short CHECK (code_length < 20));")

    said = stops(dataclasses.replace(shop, plan=read_plan({"sales": narrow})))
    assert len(said) == 1
    assert "breaks CHECK short" in said[0]


@pytest.mark.parametrize(
    ("service", "old", "new", "fault"),
    [
        ("sales", "full_name text", "full_name text GENERATED ALWAYS AS (\"Code\") STORED", "full_name is GENERATED, so the target computes it itself"),
        ("sales", "number bigint GENERATED BY DEFAULT", "number bigint GENERATED ALWAYS", "number is GENERATED ALWAYS AS IDENTITY"),
    ],
)
def test_a_column_that_nobody_may_write_is_not_mapped(service: str, old: str, new: str, fault: str) -> None:
    with pytest.raises(MigrationError, match=fault):
        read_plan({service: lambda text: text.replace(old, new)})
