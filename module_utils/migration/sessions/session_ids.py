# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ids of other rows than the user in session data: declared keys of a session, from the monolith's integers to the UUIDs that were carried.

A key whose id has no row in the service leaves the session, which is carried without it: the service then acts as for a new session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..plan import ids
from ..plan.model import Plan
from ..postgres import driver
from ..postgres.quote import ident
from .users import Find, Users, entity_of, rows_of


def migrated(connections: Mapping[str, driver.Connection], plan: Plan) -> Find:
    """Return a look-up in the id maps of what has its row, too: a quarantined one has an id and no row.

    `connections` has one for each service that mints what is declared.
    """
    tables = {(target.service, target.table): target for target in plan.targets if not target.bookkeeping}

    def find(entity: str, keys: Sequence[str]) -> Mapping[str, str]:
        service = entity_of(plan, entity).service
        home = tables.get((service, entity_of(plan, entity).target))
        joined = f" JOIN {home.qualified} AS home ON home.{ident(home.identity[0])} = m.id" if home else ""
        with driver.database_errors(entity, "looking up the ids in sessions"):
            statement = f"SELECT m.source_key, m.id::text FROM migration.id_map AS m{joined} WHERE m.entity = %s AND m.source_key = ANY (%s)"
            return dict(driver.rows(connections[service], statement, (entity, list(keys))))

    return find


def foreseen(connection: driver.Connection, schema: str, plan: Plan, namespace: str) -> Find:
    """Return a look-up of what the migration would carry, for a check mode in which nothing has been migrated yet."""

    def find(entity: str, keys: Sequence[str]) -> Mapping[str, str]:
        found = entity_of(plan, entity)
        if not found.source:  # a query mints it: what it yields is not known before
            return {}
        key, kept = ident(found.key), "NULL" if found.keep is None else f"{ident(found.keep)}::text"
        statement = f"SELECT {key}::text, {kept} FROM {rows_of(plan, found, schema)} WHERE {key}::text = ANY (%s)"
        prefix = ids.prefix(namespace, entity)
        with driver.database_errors(found.source, "looking up the ids in sessions"):
            held = driver.rows(connection, statement, (list(keys),))
        return {text: uuid or str(ids.compute(prefix, [int(text)])) for text, uuid in held}

    return find


class Translator:
    """Translate the declared keys of sessions, a batch at a time."""

    def __init__(self, declared: Mapping[str, str], users: Users) -> None:
        self._declared, self._users = declared, users

    def batch(self, sessions: Sequence[dict[str, Any]]) -> int:
        """Change the sessions in place; return how many keys were dropped."""
        wanted: dict[str, set[str]] = {}
        for session in sessions:
            for name, entity in self._declared.items():
                wanted.setdefault(entity, set()).update(text for text in map(_text, _each(session.get(name))) if text is not None)
        known = {entity: self._users.known(entity, sorted(keys)) for entity, keys in wanted.items() if keys}
        return sum(self._one(session, name, known.get(entity, {})) for session in sessions for name, entity in self._declared.items())

    @staticmethod
    def _one(session: dict[str, Any], name: str, known: Mapping[str, str]) -> int:
        value = session.get(name)
        if value is None:
            return 0
        found = [known.get(_text(item) or "") if item is not None else None for item in _each(value)]
        if any(new is None and old is not None for new, old in zip(found, _each(value), strict=True)):
            del session[name]
            return 1
        session[name] = found if isinstance(value, list) else found[0]
        return 0


def _each(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, list) else (value,)


def _text(value: Any) -> str | None:
    """Return an integer key as the id map writes it, None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    text = str(value)
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        return None
    return str(int(text))
