# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan the DDL that brings a target database to its contract, and apply what belongs into one transaction.

plan_schema() and plan_index() only read. What exists and is equal is left; what exists and differs is an error that
names both sides; what is missing becomes an Action. The keys and indexes are built by build.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from . import catalog, driver
from .catalog import FoundColumn, FoundTable
from .contract import ColumnSpec, ConstraintSpec, Contract, IndexSpec, Statement, TableSpec
from .errors import MigrationError
from .plan import Plan
from .quote import ident, literal, qualified

APPLICATION_NAME = f"{catalog.APPLICATION_PREFIX} ddl"
MODES = ("auto", "plain", "concurrent")
ORDER = ("drop", "primary_key", "unique", "index", "check", "foreign_key", "analyze")

SHOWN = 3  # differences named in one message
UNCHANGED = ". Nothing was changed"
SQL_FILES = "roles/schema/files/"

Found = Mapping[tuple[str, str], FoundTable]


@dataclass(frozen=True)
class Step:
    """One statement and the lock it wants on the tables it names: `shared` steps of a table run side by side."""

    sql: str
    shared: bool
    transactional: bool = True


@dataclass(frozen=True)
class Action:
    """One thing to make: its steps run one after the other, each committed by itself (or outside a transaction).

    `tables` are the tables whose locks it needs; `weight` is the size in bytes of what it reads, to order by.
    """

    kind: str
    object: str
    steps: tuple[Step, ...]
    tables: tuple[str, ...] = ()
    weight: int = 0
    undo: str = ""
    note: str = ""

    @property
    def sql(self) -> str:
        """Return its statements as text, for a diff."""
        return "".join(f"{step.sql.rstrip(';')};\n" for step in self.steps)

    @property
    def transactional(self) -> bool:
        """Return whether every step may stand in a transaction."""
        return all(step.transactional for step in self.steps)


def target(plan: Plan, targets: Mapping[str, driver.Endpoint], service: str) -> tuple[driver.Endpoint, Contract]:
    """Return the way to a service's database and its contract."""
    contracts = dict(plan.contracts)
    if service not in contracts or service not in targets:
        raise MigrationError(f"the plan knows no service {service!r} (known: {', '.join(contracts)}); name a host of the group 'targets'")
    return targets[service], Contract.from_dict(contracts[service])


def described(action: Action) -> dict[str, str]:
    """Return an action as a module reports it."""
    return {"kind": action.kind, "object": action.object, "sql": action.sql, "note": action.note}


def diff(place: str, actions: Sequence[Action]) -> dict[str, str]:
    """Return the DDL as a difference to nothing, for --diff."""
    lines = [f"-- {action.note}\n{action.sql}" if action.note else action.sql for action in actions]
    return {"before": "", "after": "".join(lines), "before_header": place, "after_header": f"{place}, DDL"}


def sql_place(path: str, line: int) -> str:
    """Return file:line of a contract's SQL as it is named in the project, wherever the project lies."""
    _, found, tail = path.rpartition(SQL_FILES)
    return f"{found}{tail}:{line}"


def _first(differences: Sequence[str]) -> str:
    more = len(differences) - SHOWN
    return "; ".join(differences[:SHOWN]) + (f"; and {more} more of {len(differences)} differences" if more > 0 else "")


def search_path(contract: Contract) -> dict[str, str]:
    """Return the setting under which a contract's names mean what its SQL meant."""
    return {"search_path": f"{ident(contract.service)}, public"}


def connect(endpoint: driver.Endpoint, contract: Contract, *, readonly: bool = False, settings: Mapping[str, str] | None = None) -> driver.Connection:
    """Connect in autocommit as plan and build need it."""
    return driver.connect(
        endpoint,
        application_name=APPLICATION_NAME,
        readonly=readonly,
        settings={**search_path(contract), **(settings or {})},
        autocommit=True,
    )


def read(connection: driver.Connection, contract: Contract) -> Found:
    """Return what the database has under the names of the contract's tables."""
    found = ((table.schema, table.name, catalog.read_table(connection, table.schema, table.name)) for table in contract.tables)
    return {(schema, name): table for schema, name, table in found if table is not None}


# The schema phase.


def plan_schema(connection: driver.Connection, contract: Contract) -> tuple[Action, ...]:
    """Return what is missing of schemas, types, functions, tables and the database's search_path.

    MigrationError, naming the first differences, when something exists that is not what the contract says.
    """
    place = _database(connection)
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
        if not differences:
            actions += _search_path_action(connection, contract)
    if differences:
        raise MigrationError(
            f"{place} has what the contract does not allow: {_first(differences)}{UNCHANGED}:"
            f" change the database, or the SQL of {contract.service} in roles/schema/files, and run again"
        )
    return tuple(actions)


def create_table(table: TableSpec) -> str:
    """Return CREATE TABLE with columns, defaults, NOT NULL and CHECK; keys come after the load."""
    lines = [column.definition for column in table.columns]
    lines += [f"CONSTRAINT {ident(item.name)} {item.definition}" for item in table.constraints if item.kind == "check"]
    return f"CREATE TABLE {table.qualified} (\n    " + ",\n    ".join(lines) + "\n)"


def _table_differences(connection: driver.Connection, table: TableSpec, found: FoundTable) -> list[str]:
    """Return how an existing table differs from the contract, a phrase for each column."""
    where = sql_place(table.path, table.line)
    if found.kind != "r":
        kinds = {"v": "a view", "m": "a materialised view", "p": "a partitioned table", "f": "a foreign table", "S": "a sequence", "i": "an index"}
        return [f"{table.key} is {kinds.get(found.kind, 'no ordinary table')}, the contract ({where}) says an ordinary table"]
    differences: list[str] = []
    existing = {column.name: column for column in found.columns}
    for column in table.columns:
        place = sql_place(table.path, column.line)
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
    if not found.bare_type or "(" in column.type:
        return False
    return bool(driver.scalar(connection, "SELECT to_regtype(%s)::oid::int8 = %s", (column.type, found.type_oid)))


def _preamble_state(connection: driver.Connection, statement: Statement) -> tuple[bool, str]:
    """Return whether a schema, type, ... exists, and how it differs from the contract if it does."""
    name = statement.object
    where = f"({sql_place(statement.path, statement.line)})" if statement.path else ""
    match statement.kind:
        case "schema":
            return driver.scalar(connection, "SELECT true FROM pg_namespace WHERE nspname = %s", name) is not None, ""
        case "extension":
            return driver.scalar(connection, "SELECT true FROM pg_extension WHERE extname = %s", name) is not None, ""
        case "sequence":
            return driver.scalar(connection, _RELATION, (*name, "S")) is not None, ""
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
    raise MigrationError(f"{where}: a {statement.kind} cannot be planned")


_RELATION = "SELECT true FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s AND c.relkind = %s"


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


# The index phase.


def plan_index(
    connection: driver.Connection,
    contract: Contract,
    mode: str = "auto",
    *,
    kinds: Sequence[str] = ("primary_key", "unique", "index", "check", "foreign_key"),
    tables: Sequence[str] | None = None,
    assume_tables: bool = False,
) -> tuple[Action, ...]:
    """Return what is missing of the keys, indexes and constraints of the contract's tables (`schema.name`; default all).

    `assume_tables` (check mode) plans for tables that do not exist yet as if they did. MigrationError when a name is taken by
    something else, when a table has another primary key, or when an index is being built by somebody at this moment.
    """
    place = _database(connection)
    wanted = [table for table in contract.tables if tables is None or table.key in tables]
    with driver.database_errors(place, "reading the catalog"):
        found = read(connection, contract)
        _require_tables(place, wanted, found, assume_tables)
        present = [found[table.schema, table.name] for table in wanted if (table.schema, table.name) in found]
        used = catalog.in_use(connection, [table.oid for table in present]) if mode == "auto" else {}
        actions: list[Action] = []
        for table in wanted:
            there = found.get((table.schema, table.name))
            why = used.get(there.oid, "") if there is not None else ""
            concurrent = mode == "concurrent" or bool(why)
            actions += _table_actions(connection, place, table, there, kinds, concurrent and there is not None, why)
    return tuple(sorted(actions, key=lambda action: (ORDER.index(action.kind), -action.weight, action.object)))


def _require_tables(place: str, wanted: Sequence[TableSpec], found: Found, assume_tables: bool) -> None:
    missing = [table.key for table in wanted if (table.schema, table.name) not in found]
    if missing and not assume_tables:
        raise MigrationError(f"{place} has no table {', '.join(missing)}; run playbooks/schema.yml first")


def _table_actions(
    connection: driver.Connection,
    place: str,
    table: TableSpec,
    found: FoundTable | None,
    kinds: Sequence[str],
    concurrent: bool,
    why: str,
) -> Iterator[Action]:
    note = (f"CONCURRENTLY, because {why}" if why else "CONCURRENTLY") if concurrent else ""
    for constraint in table.constraints:
        if constraint.kind in kinds and not (found is None and constraint.kind == "check"):
            yield from _constraint_actions(connection, place, table, found, constraint, concurrent, note)
    if "index" in kinds:
        for index in table.indexes:
            yield from _index_actions(connection, place, table, found, index, concurrent, note)


def _constraint_actions(
    connection: driver.Connection,
    place: str,
    table: TableSpec,
    found: FoundTable | None,
    spec: ConstraintSpec,
    concurrent: bool,
    note: str,
) -> Iterator[Action]:
    equal = None
    if found is not None:
        equal = next((item for item in found.constraints if catalog.same_constraint(connection, found, item, spec)), None)
    if equal is not None and equal.valid:
        return
    if found is not None and equal is None:
        _refuse_other(place, table, found, spec)
    alter = f"ALTER TABLE {table.qualified}"
    tables = (table.key,) if spec.foreign is None else tuple(dict.fromkeys((table.key, f"{spec.foreign.schema}.{spec.foreign.table}")))
    undo = f"{alter} DROP CONSTRAINT IF EXISTS {ident(spec.name)}"
    weight = found.size if found else 0
    label = f"{spec.name} on {table.key}"
    if spec.kind in ("primary_key", "unique"):
        yield from _key_actions(place, table, found, spec, concurrent, note)
    elif equal is not None:
        step = Step(f"{alter} VALIDATE CONSTRAINT {ident(equal.name)}", False)
        yield Action(spec.kind, label, (step,), tables, weight, undo, "was left unvalidated")
    elif concurrent:
        steps = (
            Step(f"{alter} ADD CONSTRAINT {ident(spec.name)} {spec.definition} NOT VALID", False),
            Step(f"{alter} VALIDATE CONSTRAINT {ident(spec.name)}", False),
        )
        yield Action(spec.kind, label, steps, tables, weight, undo, note)
    else:
        yield Action(spec.kind, label, (Step(f"{alter} ADD CONSTRAINT {ident(spec.name)} {spec.definition}", False),), tables, weight, undo)


def _key_actions(place: str, table: TableSpec, found: FoundTable | None, spec: ConstraintSpec, concurrent: bool, note: str) -> Iterator[Action]:
    """Return a key as an index and its adoption as a constraint, so that several keys of a table are built side by side."""
    index = IndexSpec(
        name=spec.name,
        columns=spec.columns,
        unique=True,
        predicate=None,
        definition=f"({', '.join(ident(name) for name in spec.columns)})"
        + (f" INCLUDE ({', '.join(ident(name) for name in spec.include)})" if spec.include else "")
        + (" NULLS NOT DISTINCT" if spec.nulls_not_distinct else ""),
    )
    words = "PRIMARY KEY" if spec.kind == "primary_key" else "UNIQUE"
    deferral = (" DEFERRABLE INITIALLY DEFERRED" if spec.deferred else " DEFERRABLE") if spec.deferrable else ""
    steps: list[Step] = []
    ready = None
    if found is not None:
        ready = next((item for item in found.indexes if catalog.backs(item, spec) and item.valid and item.constraint is None), None)
        if ready is None:
            steps += _drop_invalid(place, table, found, spec.name, concurrent)
    if ready is None:
        steps.append(_create_index(table, index, concurrent))
    elif ready.name != spec.name:
        note = f"adopts the unique index {ready.name}"
    adopted = ident(ready.name if ready else spec.name)
    steps.append(Step(f"ALTER TABLE {table.qualified} ADD CONSTRAINT {ident(spec.name)} {words} USING INDEX {adopted}{deferral}", False))
    yield Action(
        spec.kind,
        f"{spec.name} on {table.key}",
        tuple(steps),
        (table.key,),
        found.size if found else 0,
        f"ALTER TABLE {table.qualified} DROP CONSTRAINT IF EXISTS {ident(spec.name)}",
        note,
    )


def _index_actions(
    connection: driver.Connection, place: str, table: TableSpec, found: FoundTable | None, spec: IndexSpec, concurrent: bool, note: str
) -> Iterator[Action]:
    steps: list[Step] = []
    if found is not None:
        if any(item.valid and catalog.same_index(connection, found, item, spec) for item in found.indexes):
            return
        taken = next((item for item in found.indexes if item.name == spec.name), None)
        if taken is not None and taken.valid:
            raise MigrationError(
                f"{place}: index {spec.name} on {table.key} exists with another definition than the contract"
                f" ({sql_place(table.path, spec.line)}) gives: {spec.definition}; drop or rename it and run again"
            )
        steps += _drop_invalid(place, table, found, spec.name, concurrent)
    steps.append(_create_index(table, spec, concurrent))
    undo = f"DROP INDEX IF EXISTS {qualified(table.schema, spec.name)}"
    yield Action("index", f"{spec.name} on {table.key}", tuple(steps), (table.key,), found.size if found else 0, undo, note)


def _create_index(table: TableSpec, spec: IndexSpec, concurrent: bool) -> Step:
    """Return the step that makes an index; two CONCURRENTLY on one table would wait for each other for ever."""
    return Step(spec.create(table.schema, table.name, concurrently=concurrent), not concurrent, transactional=not concurrent)


def _drop_invalid(place: str, table: TableSpec, found: FoundTable, name: str, concurrent: bool) -> list[Step]:
    """Return how an unfinished index of that name, left by a killed CONCURRENTLY, goes away."""
    leftover = next((item for item in found.indexes if item.name == name and not item.valid), None)
    if leftover is None:
        return []
    if leftover.building:
        raise MigrationError(f"{place}: index {name} on {table.key} is being built at this moment by another session; wait for it and run again")
    words = "DROP INDEX CONCURRENTLY" if concurrent else "DROP INDEX"
    return [Step(f"{words} {qualified(table.schema, name)}", False, transactional=not concurrent)]


def _refuse_other(place: str, table: TableSpec, found: FoundTable, spec: ConstraintSpec) -> None:
    """Raise when the table has another primary key, or the name belongs to something else."""
    where = f"the contract ({sql_place(table.path, spec.line)}) says {spec.name} {spec.definition}"
    other = next((item for item in found.constraints if item.kind == "p"), None)
    if spec.kind == "primary_key" and other is not None:
        raise MigrationError(f"{place}: {table.key} has the primary key {other.name} ({', '.join(other.columns)}), {where}; drop it and run again")
    if any(item.name == spec.name for item in found.constraints):
        raise MigrationError(f"{place}: constraint {spec.name} on {table.key} exists with another definition, {where}; drop or rename it and run again")
    if spec.kind not in ("primary_key", "unique"):
        return
    index = next((item for item in found.indexes if item.name == spec.name and item.valid), None)
    if index is not None and not catalog.backs(index, spec):
        raise MigrationError(f"{place}: index {spec.name} on {table.key} exists with another definition, {where}; drop or rename it and run again")


def plan_epilogue(connection: driver.Connection, contract: Contract, *, assume_tables: bool = False) -> tuple[Action, ...]:
    """Return the triggers, views, comments and grants that are missing."""
    with driver.database_errors(_database(connection), "reading the catalog"):
        return tuple(
            Action(statement.kind, ".".join(statement.object), (Step(statement.sql, False),), (".".join(statement.object[:2]),))
            for statement in contract.epilogue
            if not _epilogue_present(connection, statement, assume_tables)
        )


def _epilogue_present(connection: driver.Connection, statement: Statement, assume_tables: bool) -> bool:
    schema, table, *rest = statement.object
    oid = driver.scalar(connection, "SELECT to_regclass(%s)::oid", (qualified(schema, table),))
    if statement.kind == "view":
        return driver.scalar(connection, _RELATION, (schema, table, "v")) is not None
    if oid is None:
        if assume_tables:
            return False
        raise MigrationError(f"{_database(connection)} has no table {schema}.{table}; run playbooks/schema.yml first")
    match statement.kind:
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


# Doing it.


def apply(connection: driver.Connection, actions: Sequence[Action], *, lock_timeout: str = "5s") -> None:
    """Apply actions in one transaction: all of them or none; MigrationError otherwise."""
    if not any(action.steps for action in actions):
        return
    place = _database(connection)
    autocommit, connection.autocommit = connection.autocommit, False
    try:
        with _one_transaction(connection):
            with driver.database_errors(place, "preparing the transaction"):
                driver.rows(connection, f"SET LOCAL lock_timeout = {literal(lock_timeout)}")
                driver.rows(connection, "SET LOCAL check_function_bodies = off")
            for action in actions:
                for step in action.steps:
                    with driver.database_errors(place, f"making the {action.kind} {action.object}"):
                        driver.rows(connection, step.sql)
    finally:
        connection.autocommit = autocommit


@contextmanager
def _one_transaction(connection: driver.Connection) -> Iterator[None]:
    try:
        yield
        with driver.database_errors(_database(connection), "committing"):
            connection.commit()
    except BaseException:
        connection.rollback()
        raise


def _database(connection: driver.Connection) -> str:
    return f"database {connection.info.dbname}"
