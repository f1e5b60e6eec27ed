# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan the keys, indexes and constraints that a contract says, after the load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..contract.model import ConstraintSpec, Contract, IndexSpec, TableSpec
from ..errors import MigrationError
from ..postgres import driver
from ..postgres.quote import ident, qualified
from . import catalog, ddl
from .catalog import FoundTable
from .ddl import ORDER, Action, Found, Step


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
    place = ddl.database(connection)
    wanted = [table for table in contract.tables if tables is None or table.key in tables]
    with driver.database_errors(place, "reading the catalog"):
        found = ddl.read(connection, contract)
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
                f" ({ddl.sql_place(table.path, spec.line)}) gives: {spec.definition}; drop or rename it and run again"
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
    where = f"the contract ({ddl.sql_place(table.path, spec.line)}) says {spec.name} {spec.definition}"
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
