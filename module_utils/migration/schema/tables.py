# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan the schemas, types, functions and tables that a contract says, before the load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..contract.model import ColumnSpec, Contract, Statement, TableSpec
from ..errors import MigrationError
from ..postgres import driver
from ..postgres.quote import ident, qualified
from . import catalog, ddl
from .catalog import FoundColumn, FoundTable
from .ddl import Action, Step

SHOWN = 3  # differences named in one message
UNCHANGED = ". Nothing was changed"


def plan_schema(connection: driver.Connection, contract: Contract) -> tuple[Action, ...]:
    """Return what is missing of schemas, types, functions, tables and the database's search_path.

    MigrationError, naming the first differences, when something exists that is not what the contract says.
    """
    place = ddl.database(connection)
    differences: list[str] = []
    actions: list[Action] = []
    with driver.database_errors(place, "reading the catalog"):
        for statement in contract.preamble:
            present, difference = _preamble_state(connection, statement)
            if difference:
                differences.append(difference)
            elif not present:
                actions.append(Action(statement.kind, ".".join(statement.object[:2]), (Step(statement.sql, False),)))
        for table in contract.tables:
            found = catalog.read_table(connection, table.schema, table.name)
            if found is None:
                actions.append(Action("table", table.key, (Step(create_table(table), False),), (table.key,)))
            else:
                differences += _table_differences(connection, table, found)
        actions += [Action("ignored", line.partition(": ignored")[0], (), note=line.partition(": ")[2]) for line in contract.ignored_lines(session=False)]
        if not differences:
            actions += _search_path_action(connection, contract)
    if differences:
        raise MigrationError(
            f"{place} has what the contract does not allow: {_first(differences)}{UNCHANGED}:"
            f" change the database, or the SQL of {contract.service} in roles/schema/files, and run again"
        )
    return tuple(actions)


def _first(differences: Sequence[str]) -> str:
    more = len(differences) - SHOWN
    return "; ".join(differences[:SHOWN]) + (f"; and {more} more of {len(differences)} differences" if more > 0 else "")


def create_table(table: TableSpec) -> str:
    """Return CREATE TABLE with columns, defaults, NOT NULL and CHECK; keys come after the load."""
    lines = [column.definition for column in table.columns]
    lines += [f"CONSTRAINT {ident(item.name)} {item.definition}" for item in table.constraints if item.kind == "check"]
    return f"CREATE TABLE {table.qualified} (\n    " + ",\n    ".join(lines) + "\n)"


def _table_differences(connection: driver.Connection, table: TableSpec, found: FoundTable) -> list[str]:
    """Return how an existing table differs from the contract, a phrase for each column."""
    where = ddl.sql_place(table.path, table.line)
    if found.kind != "r":
        kinds = {"v": "a view", "m": "a materialised view", "p": "a partitioned table", "f": "a foreign table", "S": "a sequence", "i": "an index"}
        return [f"{table.key} is {kinds.get(found.kind, 'no ordinary table')}, the contract ({where}) says an ordinary table"]
    differences: list[str] = []
    if found.persistence != "p":
        step = f"ALTER TABLE {table.qualified} SET LOGGED"
        differences.append(f"{table.key} is UNLOGGED, so a crash empties it, the contract ({where}) says a permanent table ({step})")
    existing = {column.name: column for column in found.columns}
    for column in table.columns:
        place = ddl.sql_place(table.path, column.line)
        if column.name not in existing:
            differences.append(f"{table.key}.{column.name} is missing, the contract ({place}) says {column.definition}")
            continue
        for there, wanted in _column_differences(connection, column, existing[column.name]):
            differences.append(f"{table.key}.{column.name} has {there}, the contract ({place}) says {wanted}")
    wanted_names = {column.name for column in table.columns}
    for extra in found.columns:
        if extra.name not in wanted_names and extra.not_null and extra.default is None and not extra.identity and not extra.generated:
            differences.append(
                f"{table.key}.{extra.name} is NOT NULL without a default, and the contract ({where}) does not have it, so no row could be loaded"
            )
    return differences


def _column_differences(connection: driver.Connection, column: ColumnSpec, found: FoundColumn) -> Iterator[tuple[str, str]]:
    if not _same_type(connection, column, found):
        yield (f"type {found.type}", column.type)
        return
    if found.not_null != column.not_null:
        yield ("NOT NULL" if found.not_null else "no NOT NULL", "NOT NULL" if column.not_null else "no NOT NULL")
    identity = {"a": "always", "d": "by default"}.get(found.identity)
    if identity != column.identity:
        yield (f"identity {identity or 'none'}", column.identity or "none")
    there = found.default
    if (column.generated is not None) != bool(found.generated):
        yield ("a generated value" if found.generated else "no generated value", column.generated or "none")
    elif column.generated is None and not catalog.same_expression(connection, there, column.default, cast=column.type):
        yield (f"default {there or 'none'}", f"default {column.default or 'none'}")
    collation = column.collation.rsplit(".", 1)[-1].strip('"') if column.collation else None
    if collation != found.collation:
        yield (f"collation {found.collation or 'default'}", f"collation {collation or 'default'}")


def _same_type(connection: driver.Connection, column: ColumnSpec, found: FoundColumn) -> bool:
    if found.type == column.type:
        return True
    if column.server_type:
        _, _, modifier = column.type.partition("(")
        same = driver.scalar(connection, "SELECT to_regtype(%s)::oid::int8 = %s", (column.server_type, found.type_oid))
        return bool(same) and found.type.partition("(")[2] == modifier
    if not found.bare_type or "(" in column.type:
        return False
    return bool(driver.scalar(connection, "SELECT to_regtype(%s)::oid::int8 = %s", (column.type, found.type_oid)))


def _preamble_state(connection: driver.Connection, statement: Statement) -> tuple[bool, str]:
    """Return whether a schema, type, ... exists, and how it differs from the contract if it does."""
    name = statement.object
    where = f"({ddl.sql_place(statement.path, statement.line)})" if statement.path else ""
    match statement.kind:
        case "schema":
            return driver.scalar(connection, "SELECT true FROM pg_namespace WHERE nspname = %s", name) is not None, ""
        case "extension":
            return driver.scalar(connection, "SELECT true FROM pg_extension WHERE extname = %s", name) is not None, ""
        case "sequence":
            return ddl.exists(connection, *name, kind="S"), ""
        case "type":
            labels = driver.scalar(
                connection,
                "SELECT ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder)"
                " FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname = %s AND t.typname = %s",
                name,
            )
            if labels is None or tuple(labels) == statement.about:
                return labels is not None, ""
            return True, f"type {'.'.join(name)} has the labels {', '.join(labels) or 'none'}, the contract {where} says {', '.join(statement.about)}"
        case "domain":
            found = driver.rows(
                connection,
                "SELECT format_type(t.typbasetype, t.typtypmod), t.typbasetype::int8 FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"
                " WHERE n.nspname = %s AND t.typname = %s",
                name,
            )
            if not found or found[0][0] == statement.about[0]:
                return bool(found), ""
            return True, f"domain {'.'.join(name)} is {found[0][0]}, the contract {where} says {statement.about[0]}"
        case "function":
            schema, function, arguments = name
            source = driver.scalar(
                connection,
                "SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure(%s)",
                (f"{qualified(schema, function)}({arguments})",),
            )
            if source is None or source == statement.about[0] or not statement.about[0]:
                return source is not None, ""
            return True, f"function {schema}.{function}({arguments}) has another body than the contract {where}"
    raise MigrationError(f"{where}: a {statement.kind} cannot be planned; write it in another way, or make it by hand before this phase")


def _search_path_action(connection: driver.Connection, contract: Contract) -> list[Action]:
    """Return what makes the bare table names work in every new session of this database, if it may be done here."""
    name, owned, setting = driver.rows(
        connection,
        "SELECT d.datname, pg_has_role(current_user, d.datdba, 'USAGE'),"
        " (SELECT substring(c FROM '^search_path=(.*)$') FROM pg_db_role_setting s, unnest(s.setconfig) c"
        "  WHERE s.setdatabase = d.oid AND s.setrole = 0 AND c LIKE 'search\\_path=%%')"
        " FROM pg_database d WHERE d.datname = current_database()",
        (),
    )[0]
    present = [part.strip().strip('"') for part in (setting or "").split(",") if part.strip()]
    if contract.service in present:
        return []
    rest = setting if present else '"$user", public'
    sql = f"ALTER DATABASE {ident(name)} SET search_path = {ident(contract.service)}, {rest}"
    if not owned:
        note = f"not done: the role does not own database {name}; its owner may run: {sql}"
        return [Action("search_path", name, (), note=note)]
    return [Action("search_path", name, (Step(sql, False),), note="so that bare table names work in every new session")]
