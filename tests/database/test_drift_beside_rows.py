# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""State of a target's tables that no row shows, against the schema SQL: each in turn, in one world."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.preflight import drift

from tests import phases
from tests.conftest import execute
from tests.one_table import one_table

TABLE = """
CREATE SCHEMA svc;
CREATE TABLE svc.things (id uuid PRIMARY KEY, c0 integer);
"""
CASES = (
    ("ALTER TABLE svc.things SET UNLOGGED", "is UNLOGGED, so a crash empties it", "ALTER TABLE svc.things SET LOGGED"),
    ("ALTER TABLE svc.things DISABLE TRIGGER tell", "the trigger tell is disabled", "ALTER TABLE svc.things ENABLE TRIGGER tell"),
    ("ALTER TABLE svc.things DISABLE TRIGGER ALL", "the foreign key of_c0 is disabled", "ALTER TABLE svc.things ENABLE TRIGGER ALL"),
    ("ALTER TABLE svc.things REPLICA IDENTITY NOTHING", "REPLICA IDENTITY NOTHING and is in the publication cdc", "REPLICA IDENTITY DEFAULT"),
)


def test_what_differs_beside_the_rows_is_named_as_drift(databases: Callable[..., Endpoint]) -> None:
    target = databases("svc")
    context = one_table(databases("monolith"), target, TABLE, 1)
    contract = Contract.from_dict(dict(context.plan.contracts)["svc"])
    phases.schema(target, contract)
    execute(
        target,
        "CREATE TABLE svc.others (id integer PRIMARY KEY)",
        "ALTER TABLE svc.things ADD CONSTRAINT of_c0 FOREIGN KEY (c0) REFERENCES svc.others",
        "CREATE FUNCTION svc.tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER tell AFTER DELETE ON svc.things EXECUTE FUNCTION svc.tell()",
    )
    for change, said, step in CASES:
        if "NOTHING" in change:
            execute(target, "CREATE PUBLICATION cdc FOR TABLE svc.things")
        with closing(context.connect_target("svc", "tests", readonly=True, autocommit=True)) as connection:
            before = set(drift.check(context, {"svc": connection}, {}))
            execute(target, change)
            found = [item for item in drift.check(context, {"svc": connection}, {}) if item not in before and item.rule == "drift"]
        told = [f"{item.message}; {item.next_step}".replace('"', "") for item in found]
        assert any(said in line and step in line for line in told), (change, told)
        if "UNLOGGED" in change:  # which the schema phase refuses as well
            with pytest.raises(MigrationError, match="is UNLOGGED"):
                phases.schema(target, contract)
            execute(target, "ALTER TABLE svc.things SET LOGGED")
        execute(target, "ALTER TABLE svc.things ENABLE TRIGGER ALL")
