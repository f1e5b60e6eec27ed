# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what a target database has: columns, constraints, indexes, and who uses its tables. PostgreSQL 14 to 18.

Nothing is compared as text that PostgreSQL may write in two ways: keys are compared by their parts, and two expressions
are equal when the same server plans and prints them alike (EXPLAIN VERBOSE, which runs nothing and writes nothing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..contract.model import ConstraintSpec, IndexElement, IndexSpec
from ..postgres import driver
from ..postgres.quote import qualified

APPLICATION_PREFIX = "edulink-migration"

_FOREIGN_ACTIONS = {"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}


@dataclass(frozen=True)
class FoundColumn:
    """A column as the catalog has it; `type` is format_type()'s, `bare_type` says whether it has no modifier."""

    name: str
    type: str
    type_oid: int
    bare_type: bool
    not_null: bool
    default: str | None
    generated: str
    identity: str
    collation: str | None


@dataclass(frozen=True)
class FoundConstraint:
    """A constraint as the catalog has it; `kind` is pg_constraint.contype."""

    name: str
    kind: str
    columns: tuple[str, ...]
    foreign: tuple[str, str, tuple[str, ...], str, str, bool] | None
    expression: str | None
    deferrable: bool
    deferred: bool
    valid: bool
    index: str | None


@dataclass(frozen=True)
class FoundIndex:
    """An index as the catalog has it; `building` says that somebody is making it at this moment."""

    name: str
    method: str
    unique: bool
    valid: bool
    elements: tuple[IndexElement, ...]
    include: tuple[str, ...]
    predicate: str | None
    nulls_not_distinct: bool
    constraint: str | None
    building: bool
    size: int


@dataclass(frozen=True)
class FoundTable:
    """A relation under a table's name; `kind` is pg_class.relkind."""

    oid: int
    schema: str
    name: str
    kind: str
    size: int
    columns: tuple[FoundColumn, ...]
    constraints: tuple[FoundConstraint, ...]
    indexes: tuple[FoundIndex, ...]
    persistence: str = "p"


def read_table(connection: driver.Connection, schema: str, name: str) -> FoundTable | None:
    """Return what there is under a name, or None."""
    found = driver.rows(
        connection,
        "SELECT c.oid, c.relkind, CASE WHEN c.relkind IN ('r', 'm') THEN pg_table_size(c.oid) ELSE 0 END, c.relpersistence::text"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        (schema, name),
    )
    if not found:
        return None
    oid, kind, size, persistence = found[0]
    return FoundTable(
        oid=oid,
        schema=schema,
        name=name,
        kind=kind,
        size=int(size or 0),
        columns=tuple(FoundColumn(*row) for row in driver.rows(connection, _COLUMNS, (oid,))),
        constraints=tuple(_constraint(row) for row in driver.rows(connection, _CONSTRAINTS, (oid,))),
        indexes=tuple(_index(row) for row in driver.rows(connection, _INDEXES, (oid,))),
        persistence=persistence,
    )


_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid::int8, a.atttypmod = -1, a.attnotnull,
       pg_get_expr(d.adbin, d.adrelid), a.attgenerated::text, a.attidentity::text,
       CASE WHEN a.attcollation <> t.typcollation THEN l.collname END
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_collation l ON l.oid = a.attcollation
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""

_CONSTRAINTS = """
SELECT c.conname, c.contype::text,
       ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY k(n, i)
             JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n ORDER BY k.i),
       fn.nspname, fc.relname,
       ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY k(n, i)
             JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n ORDER BY k.i),
       c.confupdtype::text, c.confdeltype::text, c.confmatchtype::text,
       pg_get_expr(c.conbin, c.conrelid), c.condeferrable, c.condeferred, c.convalidated, i.relname
FROM pg_constraint c
LEFT JOIN pg_class fc ON fc.oid = c.confrelid
LEFT JOIN pg_namespace fn ON fn.oid = fc.relnamespace
LEFT JOIN pg_class i ON i.oid = c.conindid
WHERE c.conrelid = %s AND c.contype IN ('p', 'u', 'f', 'c', 'x') ORDER BY c.conname
"""

# to_jsonb(): indnullsnotdistinct exists from PostgreSQL 15 on.
_INDEXES = """
SELECT c.relname, m.amname, i.indisunique, i.indisvalid AND i.indisready,
       (SELECT jsonb_agg(jsonb_build_object(
            'column', a.attname, 'expression', CASE WHEN i.indkey[p] = 0 THEN pg_get_indexdef(c.oid, p + 1, false) END,
            'opclass', CASE WHEN NOT o.opcdefault THEN o.opcname END,
            'collation', CASE WHEN i.indcollation[p] NOT IN (0, coalesce(a.attcollation, 100)) THEN l.collname END,
            'option', i.indoption[p]) ORDER BY p)
        FROM generate_series(0, i.indnkeyatts - 1) p
        LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[p] AND i.indkey[p] <> 0
        JOIN pg_opclass o ON o.oid = i.indclass[p]
        LEFT JOIN pg_collation l ON l.oid = i.indcollation[p]),
       ARRAY(SELECT a.attname::text FROM generate_series(i.indnkeyatts, i.indnatts - 1) p
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[p] ORDER BY p),
       pg_get_expr(i.indpred, i.indrelid), coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false),
       (SELECT k.conname FROM pg_constraint k WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x') LIMIT 1),
       EXISTS (SELECT FROM pg_stat_progress_create_index g WHERE g.datname = current_database() AND g.index_relid = c.oid),
       pg_relation_size(c.oid)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
WHERE i.indrelid = %s ORDER BY c.relname
"""


def _constraint(row: Sequence[Any]) -> FoundConstraint:
    name, kind, columns, schema, table, far, on_update, on_delete, match, expression, deferrable, deferred, valid, index = row
    foreign = None
    if kind == "f":
        foreign = (schema, table, tuple(far), _FOREIGN_ACTIONS[on_update], _FOREIGN_ACTIONS[on_delete], match == "f")
    return FoundConstraint(name, kind, tuple(columns), foreign, expression, deferrable, deferred, valid, index)


def _index(row: Sequence[Any]) -> FoundIndex:
    name, method, unique, valid, keys, include, predicate, nulls_not_distinct, constraint, building, size = row
    return FoundIndex(
        name=name,
        method=method,
        unique=unique,
        valid=valid,
        elements=tuple(_element(key) for key in keys or ()),
        include=tuple(include),
        predicate=predicate,
        nulls_not_distinct=nulls_not_distinct,
        constraint=constraint,
        building=building,
        size=size,
    )


def _element(key: Mapping[str, Any]) -> IndexElement:
    return IndexElement(
        column=key["column"],
        expression=key["expression"],
        opclass=key["opclass"],
        collation=key["collation"],
        descending=bool(key["option"] & 1),  # INDOPTION_DESC
        nulls_first=bool(key["option"] & 2),  # INDOPTION_NULLS_FIRST
    )


def normalised(connection: driver.Connection, expression: str, *, table: str | None = None, cast: str | None = None) -> str:
    """Return an expression as this server's planner prints it; nothing is run. `table` is the quoted name it reads from."""
    select = f"SELECT CAST(({expression}) AS {cast})" if cast else f"SELECT ({expression})"
    source = f" FROM ONLY {table}" if table else ""
    plan = driver.scalar(connection, f"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) {select}{source}")
    text = str(plan[0]["Plan"]["Output"][0])
    return text.replace("CURRENT_TIMESTAMP", "now()").replace("transaction_timestamp()", "now()")


def same_expression(connection: driver.Connection, one: str | None, two: str | None, *, table: str | None = None, cast: str | None = None) -> bool:
    """Return whether two expressions mean the same to this server."""
    if one is None or two is None:
        return one is two
    return one == two or normalised(connection, one, table=table, cast=cast) == normalised(connection, two, table=table, cast=cast)


def same_index(connection: driver.Connection, table: FoundTable, found: FoundIndex, spec: IndexSpec) -> bool:
    """Return whether an index is what the contract asks for, whatever its name."""
    return (
        (found.method, found.unique, found.include, found.nulls_not_distinct) == (spec.method, spec.unique, spec.include, spec.nulls_not_distinct)
        and len(found.elements) == len(spec.elements)
        and all(_same_element(connection, table, mine, theirs) for mine, theirs in zip(found.elements, spec.elements, strict=True))
        and same_expression(connection, found.predicate, spec.predicate, table=qualified(table.schema, table.name))
    )


def _same_element(connection: driver.Connection, table: FoundTable, found: IndexElement, spec: IndexElement) -> bool:
    return (
        found.column == spec.column
        and (found.descending, found.nulls_first) == (spec.descending, spec.nulls_first)
        and _last(found.opclass) == _last(spec.opclass)
        and _same_collation(connection, table, found, spec)
        and same_expression(connection, found.expression, spec.expression, table=qualified(table.schema, table.name))
    )


def _same_collation(connection: driver.Connection, table: FoundTable, found: IndexElement, spec: IndexElement) -> bool:
    """Return whether two elements sort alike; an expression without COLLATE has the collation that its parts give it."""
    if found.expression is None or found.collation is None or spec.collation is not None:
        return _last(found.collation) == _last(spec.collation)
    source = qualified(table.schema, table.name)
    derived = driver.scalar(connection, f"SELECT pg_collation_for((SELECT ({found.expression}) FROM ONLY {source} LIMIT 0))")
    return _last(derived) == _last(found.collation)


def _last(name: str | None) -> str | None:
    """Return the last part of a dotted, perhaps quoted name."""
    return None if name is None else name.rsplit(".", 1)[-1].strip('"')


def key_columns(found: FoundIndex) -> tuple[str, ...] | None:
    """Return the columns of an index that could back a key: unique, of plain columns in plain order, on all rows."""
    plain = all(
        element.column is not None and not element.descending and not element.nulls_first and not element.opclass and not element.collation
        for element in found.elements
    )
    if not (found.unique and plain and found.predicate is None and found.method == "btree"):
        return None
    return tuple(str(element.column) for element in found.elements)


def backs(found: FoundIndex, spec: ConstraintSpec) -> bool:
    """Return whether an index is the one that a primary key or UNIQUE constraint of the contract needs."""
    return key_columns(found) == spec.columns and (found.include, found.nulls_not_distinct) == (spec.include, spec.nulls_not_distinct)


def same_constraint(connection: driver.Connection, table: FoundTable, found: FoundConstraint, spec: ConstraintSpec) -> bool:
    """Return whether a constraint is what the contract asks for, whatever its name."""
    if {"primary_key": "p", "unique": "u", "foreign_key": "f", "check": "c"}[spec.kind] != found.kind:
        return False
    if spec.kind == "check":
        return same_expression(connection, found.expression, spec.expression, table=qualified(table.schema, table.name))
    if (found.columns, found.deferrable, found.deferred) != (spec.columns, spec.deferrable, spec.deferred):
        return False
    if spec.foreign is not None:
        foreign = spec.foreign
        return found.foreign == (
            foreign.schema,
            foreign.table,
            foreign.columns,
            foreign.on_update,
            foreign.on_delete,
            foreign.full_match,
        )
    return any(backs(index, spec) for index in table.indexes if index.name == found.index)


def in_use(connection: driver.Connection, oids: Sequence[int]) -> Mapping[int, str]:
    """Return those tables that somebody else uses, each with how that shows.

    Somebody else is a session of another role, or one of ours that is not this project's. A table is in use when such a
    session holds or awaits a lock on it, or may use it: is connected to the database, holds a privilege on the table and
    is no superuser (an administrator's idle session is not traffic; it shows by its locks once it is).
    """
    if not oids:
        return {}
    # What other sessions are called is shown to pg_monitor only, which the owner role may not be: look as the login role.
    driver.rows(connection, "SET ROLE NONE")
    try:
        found = driver.rows(connection, _IN_USE, {"oids": list(oids), "ours": f"{APPLICATION_PREFIX}%"})
    finally:
        driver.rows(connection, "RESET ROLE")
    return {oid: f"{role} {how}" for oid, role, how in found}


_IN_USE = """
WITH other AS (
    SELECT a.pid, a.usesysid, a.usename FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL
      AND (a.backend_type IS NULL OR a.backend_type = 'client backend')
      AND coalesce(a.application_name, CASE WHEN a.usename = session_user THEN %(ours)s ELSE '' END) NOT LIKE %(ours)s
)
SELECT DISTINCT ON (t.oid) t.oid, o.usename, CASE WHEN l.pid IS NOT NULL THEN 'holds a lock on it' ELSE 'is connected' END
FROM unnest(%(oids)s::oid[]) t(oid)
CROSS JOIN other o
JOIN pg_roles r ON r.oid = o.usesysid
LEFT JOIN pg_locks l ON l.pid = o.pid AND l.locktype = 'relation' AND l.relation = t.oid
WHERE l.pid IS NOT NULL OR NOT r.rolsuper AND has_table_privilege(o.usesysid, t.oid, 'SELECT, INSERT, UPDATE, DELETE')
ORDER BY t.oid, l.pid NULLS LAST
"""


def needs_analyze(connection: driver.Connection, oid: int) -> bool:
    """Return whether a table has no statistics, or has changed since they were taken.

    The counters of changes are lost in a crash, the statistics are not; an empty table has none, but its last ANALYZE is noted.
    """
    return bool(
        driver.scalar(
            connection,
            "SELECT coalesce(s.n_mod_since_analyze, 0) > 0 OR coalesce(s.last_analyze, s.last_autoanalyze) IS NULL"
            " AND NOT EXISTS (SELECT FROM pg_stats p WHERE (p.schemaname, p.tablename) = (n.nspname, c.relname))"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid"
            " WHERE c.oid = %s",
            (oid,),
        )
    )
