# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the mapping files. Controller only.

read_mappings() lists the tree, and names file and line of every mistake; nothing here looks at a database or a schema.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import MigrationError
from ..mistakes import Mistakes
from ..yaml_tree import Node, read, suggest
from .accounts import read_accounts
from .mapping import EVERY, PLAN_TIME, Column, Identity, Key, Mapping, Mappings, Part, Policy, Touch

POLICIES = ("block", "quarantine", "placeholder", "null")
RULES = ("not_null", "blank", "length", "range", "check", "unique", "foreign_key", "encoding", "changed", "type", "infinity", "year")
KEY_TYPES = ("integer", "text")
KEEP_TYPES = ("text", "jsonb", "boolean", "smallint", "integer", "bigint", "numeric", "date", "timestamp without time zone", "uuid")
RESERVED = ("pin", "chunks", "epochs", "controls", "id_map", "rejects")
Source = tuple[str | None, str | None, str | None, tuple[Touch, ...]]  # table, query, the query's path, touches
_PART_KEYS = ("source", "where", "key", "columns", "dropped", "chunk_by", "parents", "counted")


def read_mappings(root: Path, services: tuple[str, ...], mistakes: Mistakes | None = None) -> Mappings:
    """Return what the tree below `root` says; MigrationError names file and line of every mistake.

    `services` are the inventory's target databases: a folder with another name is an error, as is a service without one.
    With `mistakes` they are noted there, and what could be read is returned.
    """
    own = mistakes if mistakes is not None else Mistakes()
    if not root.is_dir():
        raise MigrationError(f"{root}: no such folder of mappings; set migration_mappings_dir")
    top = _shown(root)
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != "_ids")
    for name in folders:
        if name not in services:
            own.note(MigrationError(f"{top}/{name}: the inventory has no target database of this name{suggest(name, services)}"))
    for name in services:
        if name not in folders:
            own.note(MigrationError(f"{top}: there is no folder for the target database {name!r} of the inventory"))
    tables: list[Mapping] = []
    for service in folders:
        for path in _yaml_files(root / service, f"{top}/{service}", own):
            with own:
                tables.append(_mapping(service, path, f"{top}/{service}/{path.name}", own))
    if not tables and not own.noted:
        own.note(MigrationError(f"{top}: no mapping in any folder of a target database"))
    identities: list[Identity] = []
    for path in _yaml_files(root / "_ids", f"{top}/_ids", own):
        with own:
            identities.append(_identity(path, f"{top}/_ids/{path.name}", services, own))
    accounts = read_accounts(root, top, own)
    if mistakes is None:
        own.settle()
    files = sum(len(list((root / folder).glob("*.yml"))) for folder in (*folders, "_ids"))
    if len(tables) + len(identities) < files:
        own.unread.add("mappings")
    return Mappings(tuple(tables), tuple(identities), accounts)


def _shown(root: Path) -> str:
    """Return how messages name the folder: from the working directory where it lies below that, else in full."""
    here = Path.cwd()
    whole = Path(os.path.abspath(root))
    return str(whole.relative_to(here)) if whole != here and whole.is_relative_to(here) else str(whole)


def _yaml_files(folder: Path, shown: str, mistakes: Mistakes) -> list[Path]:
    if not folder.is_dir():
        return []
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".yml", ".sql"):
            mistakes.note(MigrationError(f"{shown}/{path.name}: only .yml and .sql files belong here"))
    return sorted(path for path in folder.iterdir() if path.suffix == ".yml")


def _mapping(service: str, path: Path, shown: str, mistakes: Mistakes) -> Mapping:
    root = read(path, shown)
    known = (*_PART_KEYS, "parts", "policies")
    found = root.mapping("a mapping")
    if "parts" in found:
        root.only("a mapping", known, mistakes=mistakes)
        mixed = [key for key in _PART_KEYS if key in found]
        if mixed:
            mistakes.note(found[mixed[0]].fail(f"{mixed[0]!r} belongs into each of the parts"))
        named = found["parts"].mapping("parts")
        if not named:
            raise found["parts"].fail("parts must not be empty")
        parts = [(name, node) for name, node in named.items()]
    else:
        parts = [("", root)]
    read_parts: list[Part] = []
    for name, node in parts:
        with mistakes:
            read_parts.append(_part(name, node, path.parent, shown, mistakes))
    policies = tuple(_policies(found["policies"], mistakes)) if "policies" in found else ()
    return Mapping(service, path.stem, shown, tuple(read_parts), policies)


def _identity(path: Path, shown: str, services: tuple[str, ...], mistakes: Mistakes) -> Identity:
    root = read(path, shown)
    found = root.only("an identity", ("source", "where", "key", "database", "keep", "dropped", "chunk_by", "parents"), ("source", "key", "database"), mistakes)
    database = root.part(found, "database").text("database")
    if database not in services:
        raise found["database"].fail(f"no target database is called {database!r}{suggest(database, services)}")
    if path.stem in RESERVED:
        mistakes.note(root.fail(f"migration.{path.stem} is a table of the migration itself; give the entity another name"))
    keep: dict[str, str] = {}
    for name, node in (found["keep"].mapping("keep") if "keep" in found else {}).items():
        with mistakes:
            keep[name] = node.text(f"keep.{name}")
            if name == "id":
                raise node.fail("'id' is kept always; leave it out of 'keep'")
            if keep[name] not in KEEP_TYPES:
                raise node.fail(f"keep.{name}: type {keep[name]!r} is not known{suggest(keep[name], KEEP_TYPES)}")
    if "mints" in root.part(found, "key").mapping("key"):
        raise found["key"].fail("an identity mints the entity that its file is named after; leave 'mints' out")
    own = Node({k: v for k, v in found.items() if k not in ("database", "keep")}, root.place)
    return Identity(path.stem, shown, database, _part("", own, path.parent, shown, mistakes, identity=path.stem), keep)


def _part(name: str, node: Node, folder: Path, shown: str, mistakes: Mistakes, identity: str | None = None) -> Part:
    """Return a source of a target; what cannot be read of it is noted and left out, so that the rest is checked all the same."""
    what = f"part {name!r}" if name else "a mapping"
    known = _PART_KEYS if name or identity else (*_PART_KEYS, "policies")
    required = ("source", "key") if identity else ("source", "key", "columns")
    found = node.only(what, known, required, mistakes)
    source: Source = (None, None, None, ())
    with mistakes:
        source = _source(node.part(found, "source"), folder, shown)
    table, query, query_path, touches = source
    where = None
    with mistakes:
        where = found["where"].text("where") if "where" in found else None
        if where is not None and query is not None:
            raise found["where"].fail(f"'where' selects rows of a table; write the condition into {query_path}")
    key = Key((), (), identity, node.place)
    with mistakes:
        key = _key(node.part(found, "key"), identity, mistakes)
    chunk_by, plain = "", len(key.columns) == 1 and query is None
    with mistakes:
        chunk_by = found["chunk_by"].text("chunk_by") if "chunk_by" in found else key.columns[0] if plain else _chunk_by(key, query, touches)
        if not chunk_by and key.columns:
            wanted = "a column of the result that 'refresh' ties to a table" if query is not None else "an indexed column with many values"
            raise node.fail(f"{what}: no integer column of the key can cut it into chunks; write chunk_by: with {wanted}")
    columns: list[Column] = []
    unread: set[str] = set()
    with mistakes:
        for column, rule in (found["columns"].mapping("columns") if "columns" in found else {}).items():
            unread.add(column)
            with mistakes:
                columns.append(_column(column, rule))
                unread.remove(column)
    return Part(
        name=name,
        place=node.place,
        table=table,
        query=query,
        query_path=query_path,
        touches=touches,
        key=key,
        chunk_by=chunk_by,
        columns=tuple(columns),
        dropped=_reasons(found, "dropped", mistakes),
        parents=_reasons(found, "parents", mistakes),
        counted=_reasons(found, "counted", mistakes),
        unread=frozenset(unread) if "columns" in found else frozenset((EVERY,)),
        where=where if query is None else None,
        where_place=found["where"].place if "where" in found else "",
        cut_by_default="chunk_by" not in found and not plain,
    )


def _chunk_by(key: Key, query: str | None, touches: tuple[Touch, ...]) -> str:
    """Return the first integer column of a key by which chunks can be cut: in a query one that a table can be walked along; "" where none is."""
    tied = {touch.result for touch in touches}
    fitting = (name for name, kind in zip(key.columns, key.types, strict=True) if kind == "integer" and (query is None or name in tied))
    return next(fitting, "")


def _reasons(found: dict[str, Node], key: str, mistakes: Mistakes) -> dict[str, str]:
    result: dict[str, str] = {}
    with mistakes:
        for name, node in (found[key].mapping(key) if key in found else {}).items():
            with mistakes:
                result[name] = node.text(f"{key}.{name}")
    return result


def _source(node: Node, folder: Path, shown: str) -> Source:
    if isinstance(node.value, str):
        return node.text("source"), None, None, ()
    found = node.only("source", ("query", "refresh"), ("query", "refresh"))
    name = found["query"].text("source.query")
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise found["query"].fail(f"there is no file {name!r} beside {shown}")
    touches = tuple(_touch(table, touch) for table, touch in found["refresh"].mapping("source.refresh").items())
    if not touches:
        raise found["refresh"].fail("source.refresh must name every table that the query reads")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise found["query"].fail(f"{name} is not UTF-8 text (byte {exc.start})") from exc
    return None, text, f"{shown.rpartition('/')[0]}/{name}", touches


def _touch(table: str, node: Node) -> Touch:
    if isinstance(node.value, str):
        return Touch(table, node.value, node.value)
    found = node.mapping(f"refresh of {table}")
    if len(found) != 1:
        raise node.fail(f"refresh of {table}: one column, or one pair 'table column: result column'")
    ((column, result),) = found.items()
    return Touch(table, column, result.text(f"refresh of {table}"))


def _key(node: Node, identity: str | None, mistakes: Mistakes) -> Key:
    keeps = isinstance(node.value, dict) and "keep" in node.value  # which is the key where none is named beside it
    found = node.only("key", ("from", "mints", "type", "keep", "map"), () if keeps else ("from",), mistakes)
    mints = identity
    columns: tuple[str, ...] = ()
    with mistakes:
        mints = identity or (found["mints"].text("key.mints") if "mints" in found else None)
    with mistakes:
        columns = node.part(found, "from" if "from" in found or not keeps else "keep").texts("key.from")
    keep = translate = None
    with mistakes:
        keep = found["keep"].text("key.keep") if keeps else None
        translate = found["map"].text("key.map") if "map" in found else None
        if keep and mints is None:
            raise found["keep"].fail("a kept id is remembered in the id map, so 'mints' names its entity (key: {from: id, keep: ..., mints: ...})")
        if translate and (mints or keep):
            raise found["map"].fail(f"the id is one of {translate!r} already, so nothing is minted or kept here; others refer to it with 'map: {translate}'")
        if translate and len(columns) > 1:
            raise found["map"].fail("one column holds the parent's key; the columns of a composite primary key are in 'columns', each with its 'map'")
    types: tuple[str, ...] = ("text" if keeps and "from" not in found else "integer",) * len(columns)
    with mistakes:
        types = found["type"].texts("key.type") if "type" in found else types
        for kind in types:
            if kind not in KEY_TYPES:
                raise found["type"].fail(f"key.type {kind!r} is not known{suggest(kind, KEY_TYPES)}")
        if columns and len(types) != len(columns):
            raise node.fail("key.type must name one type for each column of key.from")
        if mints and len(columns) > 1:
            raise node.fail("only a key of one column can mint an entity that others refer to")
    return Key(columns, types if len(types) == len(columns) else ("integer",) * len(columns), mints, node.place, keep, translate)


def _column(name: str, node: Node) -> Column:
    if isinstance(node.value, str):
        return Column(name, node.place, source=node.text(name))
    found = node.only(f"column {name}", ("from", "sql", "value", "map"))
    kinds = [kind for kind in ("from", "sql", "value") if kind in found]
    if len(kinds) != 1:
        raise node.fail(f"column {name}: exactly one of 'from', 'sql' and 'value' says where the value comes from")
    translate = found["map"].text_or_texts(f"{name}.map") if "map" in found else None
    if "value" in found:
        if translate:
            raise found["map"].fail(f"column {name}: a constant cannot go through an id map")
        value = found["value"].value
        if isinstance(value, (list, dict)):
            value = _plain(found["value"])
        return Column(name, node.place, value=value, plan_time=value == PLAN_TIME)
    if "sql" in found:
        return Column(name, node.place, sql=found["sql"].text(f"{name}.sql"), translate=translate)
    return Column(name, node.place, source=found["from"].text(f"{name}.from"), translate=translate)


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(value) for value in node.value]
    return node.value


def _policies(node: Node, mistakes: Mistakes) -> list[Policy]:
    result: list[Policy] = []
    with mistakes:
        for column, rules in node.mapping("policies").items():
            with mistakes:
                for rule, chosen in rules.mapping(f"policies of {column}").items():
                    with mistakes:
                        result.append(_policy(column, rule, chosen))
    return result


def _policy(column: str, rule: str, chosen: Node) -> Policy:
    if rule not in RULES:
        raise chosen.fail(f"policies of {column}: unknown rule {rule!r}{suggest(rule, RULES)}")
    placeholder = None
    policy = "null" if chosen.value is None else chosen.value  # YAML reads the word as nothing
    if isinstance(policy, dict):
        found = chosen.only(f"policy {column}.{rule}", ("placeholder",), ("placeholder",))
        policy, placeholder = "placeholder", found["placeholder"].text("placeholder")
    if not isinstance(policy, str) or policy not in POLICIES:
        policy = policy if isinstance(policy, str) else "this"
        raise chosen.fail(f"policy {column}.{rule}: {policy!r} is not known{suggest(str(policy), POLICIES)}")
    if policy == "null" and rule != "foreign_key":
        raise chosen.fail(f"policy {column}.{rule}: 'null' is for foreign_key alone: a reference to a row that is not there becomes NULL")
    return Policy(column, rule, policy, placeholder, chosen.place)
