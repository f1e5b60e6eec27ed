# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan the triggers, views, comments and grants that a contract says, last of all."""

from __future__ import annotations

from ..contract.model import Contract, Statement
from ..errors import MigrationError
from ..postgres import driver
from ..postgres.quote import qualified
from . import ddl
from .ddl import Action, Step

_OWNED = """
SELECT true FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.classid = 'pg_class'::regclass AND d.objid = to_regclass(%s) AND d.deptype = 'a' AND d.refobjid = %s AND a.attname = %s
"""


def plan_epilogue(connection: driver.Connection, contract: Contract, *, assume_tables: bool = False) -> tuple[Action, ...]:
    """Return the triggers, views, comments and grants that are missing."""
    with driver.database_errors(ddl.database(connection), "reading the catalog"):
        return tuple(
            Action(statement.kind, ".".join(statement.object), (Step(statement.sql, False),), (".".join(statement.object[:2]),))
            for statement in contract.epilogue
            if not _epilogue_present(connection, statement, assume_tables)
        )


def _epilogue_present(connection: driver.Connection, statement: Statement, assume_tables: bool) -> bool:
    schema, table, *rest = statement.object
    oid = driver.scalar(connection, "SELECT to_regclass(%s)::oid", (qualified(schema, table),))
    if statement.kind == "view":
        return ddl.exists(connection, schema, table, kind="v")
    if oid is None:
        if assume_tables:
            return False
        raise MigrationError(f"{ddl.database(connection)} has no table {schema}.{table}; run playbooks/schema.yml first")
    match statement.kind:
        case "owned sequence":
            column, *sequence = rest
            return driver.scalar(connection, _OWNED, (qualified(*sequence), oid, column)) is not None
        case "trigger":
            return driver.scalar(connection, "SELECT true FROM pg_trigger WHERE tgrelid = %s AND tgname = %s", (oid, rest[0])) is not None
        case "comment" if rest:
            found = driver.scalar(
                connection,
                "SELECT col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = %s AND attname = %s",
                (oid, rest[0]),
            )
            return (found or "") == statement.about[0]
        case "comment":
            return (driver.scalar(connection, "SELECT obj_description(%s, 'pg_class')", (oid,)) or "") == statement.about[0]
    role, privilege = rest
    names = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER") if privilege == "all" else (privilege,)
    return all(driver.scalar(connection, "SELECT has_table_privilege(%s, %s::oid, %s)", (role, oid, name)) for name in names)
