# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compile mappings against the contract into a plan. Controller only (it parses SQL).

compile_plan() walks the mappings' tables, checks every name against the contract, and gives each target column its one
SQL expression. What it rejects is rejected with the mapping's file and line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping as MappingType
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from ..contract.model import Contract, TableSpec
from ..errors import MigrationError
from ..mistakes import Consequence, Mistakes
from ..postgres.quote import ident, literal
from ..text import counted
from ..yaml_tree import suggest
from . import mapping as m
from . import primary_key
from .accounts import check_accounts
from .column_origins import origins
from .id_cells import IdCells, Minter, own_cell
from .model import BOOKKEEPING, PLAN_TIME_SQL, Cell, Entity, Part, Plan, Policy, Read, Target, Touch
from .predicates import replaced
from .sql_reader import Reads, output_columns, read_expression, read_query

ID_MAP = "id_map"
ID_MAP_COLUMNS = (("entity", "text"), ("source_key", "text"), ("id", "uuid"))


def compile_plan(mappings: m.Mappings, contracts: MappingType[str, Contract], fingerprint: str, mistakes: Mistakes | None = None) -> Plan:
    """Return the plan; `contracts` has one contract for each service of the mappings.

    MigrationError names every mistake, those in `mistakes` (what reading the files found) among them.
    """
    own = mistakes if mistakes is not None else Mistakes()
    minters = _minters(mappings, own)
    targets: list[Target] = []
    for mapping in mappings.tables:
        with own:
            targets.append(_table_target(mapping, contracts[mapping.service], minters, own))
    for identity in mappings.identities:
        with own:
            target = _identity_target(identity, own)  # without columns to keep there is no table, but its source is checked
            targets += [target] if identity.keep else []
    _no_shared_entities(targets, own)
    check_accounts(mappings.accounts, {target.name: target.columns for target in targets if not target.bookkeeping}, own)
    own.settle()
    entities = tuple(_entity(name, *minter) for name, minter in sorted(minters.items()))
    targets += _id_maps(mappings, targets, minters)
    return Plan(
        targets=tuple(targets),
        entities=entities,
        contracts=tuple((name, json.loads(json.dumps(contract.to_dict()))) for name, contract in sorted(contracts.items())),
        fingerprint=fingerprint,
        accounts=mappings.accounts,
    )


def summary(plan: Plan) -> list[str]:
    """Return what a plan holds, a line for each service."""
    tables = {service: [target for target in plan.of(service) if not target.bookkeeping] for service in plan.services}
    return [
        f"{service}: {counted(len(own), 'table')} from {counted(sum(len(target.parts) for target in own), 'source')}, no mistake"
        for service, own in tables.items()
    ] + [line for _, contract in plan.contracts for line in _remarks(Contract.from_dict(contract))]


def _remarks(contract: Contract) -> list[str]:
    created = {statement.object[0] for statement in contract.preamble if statement.kind == "extension"}
    unknown = [
        f"{table.path}:{column.line}: the type {column.server_type} is not built in; preflight looks for it on the server"
        for table in contract.tables
        for column in table.columns
        if column.server_type and column.server_type.rpartition(".")[2] not in created
    ]
    return [*unknown, *contract.ignored_lines()]


def _minters(mappings: m.Mappings, mistakes: Mistakes) -> dict[str, Minter]:
    found: dict[str, Minter] = {}
    candidates = [(mapping.service, mapping.table, part) for mapping in mappings.tables for part in mapping.parts]
    candidates += [(identity.database, identity.entity, identity.part) for identity in mappings.identities]
    for service, table, part in candidates:
        entity = part.key.mints
        if entity is None:
            continue
        if entity in found:
            place = found[entity][2].key.place
            mistakes.note(MigrationError(f"{part.key.place}: {entity!r} is minted at {place} already; one place mints an entity"))
            continue
        found[entity] = (service, table, part)
    return found


def _entity(name: str, service: str, table: str, part: m.Part) -> Entity:
    return Entity(name, service, table, part.name, part.table or "", part.key.columns[0], part.key.keep)


def _table_target(mapping: m.Mapping, contract: Contract, minters: dict[str, Minter], mistakes: Mistakes) -> Target:
    spec = _find_table(mapping, contract, mistakes)
    stored = tuple(column for column in spec.columns if column.generated is None)
    names = tuple(column.name for column in stored)
    identity: tuple[str, ...] = ()
    with mistakes:
        identity = primary_key.identity(mapping, spec)
    parts = tuple(_part(mapping, part, spec, identity, minters, mistakes) for part in mapping.parts)
    judged = {*names, *(column for part in mapping.parts for column in part.parents)}
    for policy in mapping.policies:
        if policy.column not in judged and _readable(mistakes, mapping.service, spec, policy.column):
            known = suggest(policy.column, names)
            mistakes.note(MigrationError(f"{policy.place}: {mapping.service}.{mapping.table} has no column {policy.column!r}{known}"))
        elif policy.policy == "null" and parts:
            with mistakes:
                primary_key.require_nullable(policy, mapping, spec, parts)
    return Target(
        service=mapping.service,
        schema=spec.schema,
        table=spec.name,
        identity=identity,
        columns=names,
        column_types=tuple(column.type for column in stored),
        parts=parts,
        policies=tuple(Policy(p.column, p.rule, p.policy, p.placeholder, p.place) for p in mapping.policies),
    )


def _readable(mistakes: Mistakes, service: str, spec: TableSpec, column: str) -> bool:
    """Return whether a column that the contract lacks is lacking in the schema SQL too, and not just unread there."""
    return f"{service}.{spec.name}.{column}" not in mistakes.unread


def _find_table(mapping: m.Mapping, contract: Contract, mistakes: Mistakes) -> TableSpec:
    found = [table for table in contract.tables if table.name == mapping.table]
    left_out = next((item for item in contract.ignored if item.name.rpartition(".")[2] == mapping.table), None)
    if not found and left_out:
        where = f"{left_out.what} at {left_out.path}:{left_out.line}"
        raise MigrationError(f"{mapping.path}: {left_out.name} is not created ({where}); make it an ordinary table, or remove the mapping")
    if not found:
        known = tuple(table.name for table in contract.tables)
        text = f"{mapping.path}: the schema SQL of {mapping.service} makes no table {mapping.table!r}{suggest(mapping.table, known)}"
        raise Consequence(text) if {mapping.service, f"{mapping.service}.{mapping.table}"} & mistakes.unread else MigrationError(text)
    if len(found) > 1:
        raise MigrationError(f"{mapping.path}: the schema SQL of {mapping.service} makes {mapping.table!r} in several schemas; keep one")
    return found[0]


def _part(
    mapping: m.Mapping, part: m.Part, spec: TableSpec, identity: tuple[str, ...], minters: dict[str, Minter], mistakes: Mistakes
) -> Part:
    service, table = mapping.service, mapping.table
    own = primary_key.minted_column(spec, identity)
    entity = part.key.mints or (f"{service}.{table}.{part.name}" if part.name else f"{service}.{table}")
    wire = {column.name: column.wire_type for column in spec.columns if column.generated is None}
    rules = {column.name: column for column in part.columns}
    generated = {column.name for column in spec.columns if column.generated is not None}
    for name, rule in rules.items():
        with mistakes:
            if name in generated:
                raise MigrationError(f"{rule.place}: {service}.{table}.{name} is GENERATED, so the target computes it itself; leave it out of 'columns'")
            if name not in wire and _readable(mistakes, service, spec, name):
                raise MigrationError(f"{rule.place}: {service}.{table} has no column {name!r}{suggest(name, tuple(wire))}")
            if name == own:
                how = f"key: {{from: ..., map: {rule.translate}}}" if rule.translate else "key: {from: ..., keep: ..., mints: ...}"
                raise MigrationError(f"{rule.place}: {name!r} is given by 'key' ({how} when it is not minted); leave it out of 'columns'")
    near = {match for name in rules if name not in wire for match in get_close_matches(name, tuple(wire), n=1)}
    given = {*rules, *part.unread, *near}  # a column whose name is mistyped is one mistake, not two
    for name in part.counted:
        if name not in given and m.EVERY not in given:
            text = f"{part.place}: 'counted' names {name!r}, which is no column of the mapping{suggest(name, tuple(rules))}"
            mistakes.note(MigrationError(text))
    missing = [name for name in wire if identity and name not in identity and name not in given]
    if missing and m.EVERY not in given:
        where = f"part {part.name!r} gives" if part.name else "the mapping gives"
        text = f"{part.place}: {where} no value for {', '.join(missing)}; every target column has a source or a 'value'"
        mistakes.note(MigrationError(text))
    cells = []
    null = frozenset(policy.column for policy in mapping.policies if policy.policy == "null")
    id_cells = IdCells(minters, null, mistakes, lambda home, of: _projection(home, home.place, of, (), (), Mistakes()))
    for column in spec.columns:
        if column.name in generated:
            continue
        with mistakes:
            if column.identity == "always":
                fault = "is GENERATED ALWAYS AS IDENTITY, which no UPDATE may set; write BY DEFAULT in the schema SQL"
                raise MigrationError(f"{mapping.path}: {service}.{table}.{column.name} {fault}")
            if column.name == own:
                cells.append(id_cells.own(own, entity, part))
            elif column.name in rules:
                cells.append(_placeholders(_cell(rules[column.name], column.wire_type, id_cells), mapping.policies))
    projection = _projection(part, mapping.path, entity, tuple(cells), identity, mistakes)
    return replace(projection, lookups=id_cells.lookups, key_types=id_cells.key_types(part))


def _projection(part: m.Part, path: str, entity: str, cells: tuple[Cell, ...], identity: tuple[str, ...], mistakes: Mistakes) -> Part:
    reads, tables, stars = _reads(part, cells, mistakes)
    return Part(
        name=part.name,
        path=path,
        table=part.table,
        query=part.query,
        touches=tuple(Touch(touch.table, touch.column, touch.result) for touch in part.touches),
        key=part.key.columns,
        key_types=part.key.types,
        chunk_by=part.chunk_by,
        entity=entity,
        minted=part.key.mints is not None,
        cells=cells,
        tables=tables,
        reads=reads,
        stars=stars,
        dropped=tuple(sorted(part.dropped.items())),
        parents=tuple(sorted(part.parents.items())),
        counted=tuple(sorted(part.counted.items())),
        origins=tuple(sorted(origins(part.query, part.query_path or part.place).items())) if part.query is not None else (),
        identity=identity,
        keep=part.key.keep,
        where=part.where,
        cut_by_default=part.cut_by_default,
        qualified=read_query(part.query, part.query_path or part.place).qualified if part.query is not None else (),
    )


def _reads(part: m.Part, cells: tuple[Cell, ...], mistakes: Mistakes) -> tuple[tuple[Read, ...], tuple[str, ...], tuple[str, ...]]:
    where: tuple[str, ...] = ()
    with mistakes:
        where = read_expression(part.where, f"{part.where_place}: where") if part.where is not None else ()
    named = [*part.key.columns, part.key.keep or "", part.chunk_by, *part.parents, *where]
    used = dict.fromkeys([*named, *(name for cell in cells for name in cell.reads)])
    used.pop("", None)  # what is not named, or has a mistake
    if part.query is None:
        return tuple(Read((str(part.table),), name) for name in used), (str(part.table),), ()
    place = part.query_path or part.place
    found = read_query(part.query, place)
    _check_touches(part, found, place, mistakes)
    names = output_columns(part.query, place)
    if names is not None:
        for name in used:
            if name not in names:
                mistakes.note(MigrationError(f"{part.place}: the result of {place} has no column {name!r}{suggest(name, names)}"))
        for touch in part.touches:
            if touch.result not in (*names, m.EVERY):
                fault = f"the result of {place} has no column {touch.result!r}{suggest(touch.result, names)}"
                mistakes.note(MigrationError(f"{part.place}: refresh of {touch.table}: {fault}"))
    return tuple(Read(read.tables, read.column) for read in found.columns), found.tables, found.star


def _check_touches(part: m.Part, found: Reads, place: str, mistakes: Mistakes) -> None:
    faults = [
        f"{place} reads {touch.table!r} more than once, so no one column says which rows a change in it touches; write {touch.table}: '*' in 'refresh'"
        for touch in part.touches
        if touch.table in found.repeated and touch.result != m.EVERY
    ]
    named = {touch.table for touch in part.touches}
    faults += [f"{place} reads {table!r}, but 'refresh' does not say which rows a change in it touches" for table in found.tables if table not in named]
    faults += [f"refresh names {table!r}, which {place} does not read{suggest(table, found.tables)}" for table in sorted(named - set(found.tables))]
    for fault in faults:
        mistakes.note(MigrationError(f"{part.place}: {fault}"))


def _cell(column: m.Column, wire_type: str, id_cells: IdCells) -> Cell:
    if column.plan_time:
        return Cell(column.name, f"{PLAN_TIME_SQL}::{wire_type}", wire_type, constant=True, place=column.place)
    if column.source is None and column.sql is None:
        return Cell(column.name, f"{_constant(column.value)}::{wire_type}", wire_type, constant=True, place=column.place)
    if column.source is not None:
        sql = f"src.{ident(column.source)}"
        reads: tuple[str, ...] = (column.source,)
    else:
        text = str(column.sql)
        sql, reads = f"(\n{text}\n)", read_expression(text, f"{column.place}: column {column.name}")
    if column.translate is None:
        return Cell(column.name, f"{sql}::{wire_type}", wire_type, reads=reads, place=column.place)
    if wire_type == "uuid[]" or not isinstance(column.translate, str):
        return id_cells.inside(column.name, wire_type, column.translate, sql, reads, column.place)
    cell = id_cells.reference(column.name, column.translate, sql, reads, column.place)
    if wire_type != "uuid":
        raise MigrationError(f"{column.place}: column {column.name}: an id map gives a uuid, the target column is {wire_type}")
    return cell


def _constant(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return literal(json.dumps(value, ensure_ascii=False, default=str))
    return literal(str(value))


def _placeholders(cell: Cell, policies: tuple[m.Policy, ...]) -> Cell:
    for policy in policies:
        if policy.column != cell.name or policy.policy != "placeholder":
            continue
        condition = replaced(policy.rule, cell.sql, cell.type)
        if condition is None:
            raise MigrationError(f"{policy.place}: a placeholder has no meaning for the rule {policy.rule!r} of a {cell.type}; choose block or quarantine")
        if policy.placeholder is None:
            raise MigrationError(f"{policy.place}: write the placeholder as SQL: {{placeholder: \"'user-' || id || '@invalid'\"}}")
        if cell.is_id:
            raise MigrationError(f"{policy.place}: an id cannot have a placeholder")
        reads = read_expression(policy.placeholder, policy.place)
        sql = f"CASE WHEN {condition} THEN (\n{policy.placeholder}\n)::{cell.type} ELSE {cell.sql} END"
        cell = replace(cell, sql=sql, reads=tuple(dict.fromkeys([*cell.reads, *reads])))
    return cell


def _identity_target(identity: m.Identity, mistakes: Mistakes) -> Target:
    """Return the bookkeeping table that keeps an identity's columns: migration.<entity>."""
    cells = [own_cell("id", identity.entity, identity.part)]
    cells += [Cell(name, f"src.{ident(name)}::{kind}", kind, reads=(name,), place=identity.path) for name, kind in identity.keep.items()]
    return Target(
        service=identity.database,
        schema=BOOKKEEPING,
        table=identity.entity,
        identity=("id",),
        columns=("id", *identity.keep),
        column_types=("uuid", *identity.keep.values()),
        parts=(_projection(identity.part, identity.path, identity.entity, tuple(cells), ("id",), mistakes),),
        bookkeeping=True,
    )


def _id_maps(mappings: m.Mappings, targets: list[Target], minters: dict[str, Minter]) -> list[Target]:
    """Return the id map of each database as a target: a part for each entity minted there."""
    paths = {(mapping.service, mapping.table): mapping.path for mapping in mappings.tables}
    paths |= {(identity.database, identity.entity): identity.path for identity in mappings.identities}
    result = []
    for service in dict.fromkeys(service for service, _, _ in minters.values()):
        # Two entities may keep the same UUIDs.
        kept = any(part.key.keep for owner, _, part in minters.values() if owner == service)
        identity = ("source_key", "entity") if kept else ("id",)
        parts = tuple(
            _id_map_part(entity, part, paths[service, table], identity)
            for entity, (owner, table, part) in sorted(minters.items())
            if owner == service
        )
        result.append(
            Target(
                service=service,
                schema=BOOKKEEPING,
                table=ID_MAP,
                identity=identity,
                columns=tuple(name for name, _ in ID_MAP_COLUMNS),
                column_types=tuple(kind for _, kind in ID_MAP_COLUMNS),
                parts=parts,
                bookkeeping=True,
            )
        )
    return result


def _id_map_part(entity: str, part: m.Part, path: str, identity: tuple[str, ...]) -> Part:
    key = part.key.columns[0]
    id_cell = own_cell("id", entity, part)
    cells = (
        Cell("entity", f"{literal(entity)}::text", "text", constant=True, place=part.key.place),
        Cell("source_key", f"(src.{ident(key)})::text", "text", reads=(key,), place=part.key.place),
        id_cell,
    )
    projection = _projection(part, path, entity, cells, identity, Mistakes())  # the part was checked with its target
    return Part(**{**projection.__dict__, "name": entity})


def _no_shared_entities(targets: list[Target], mistakes: Mistakes) -> None:
    seen: dict[str, Part] = {}
    for target in targets:
        if target.bookkeeping:
            continue
        for part in target.parts:
            other = seen.setdefault(part.entity, part)
            if other is not part and not (part.minted and other.minted):  # _minters() has noted what is minted twice
                mistakes.note(MigrationError(f"{part.label}: {part.entity!r} is the entity of {other.label} already; ids would collide"))
