# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who a session belongs to: from the integer of the monolith to the UUID of a user that really is in the target."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import MigrationError
from ..plan import ids
from ..plan.model import Entity, Plan
from ..postgres import driver
from ..postgres.quote import ident, qualified


@dataclass(frozen=True)
class User:
    """A user in the target: the UUID as text, and the password string when it was asked for."""

    uuid: str
    password: str | None = field(default=None, repr=False)


class Users(Protocol):
    """Look users up by their integer ids."""

    def find(self, numbers: Collection[int], *, passwords: bool) -> Mapping[int, User]:
        """Return those that exist."""

    def known(self, entity: str, keys: Sequence[str]) -> Mapping[str, str]:
        """Return the UUIDs of those keys of another entity that exist."""


Find = Callable[[str, Sequence[str]], Mapping[str, str]]  # as known()


class _WithIds:
    """Looks other ids up by a function that it is given."""

    ids: Find | None = None

    def known(self, entity: str, keys: Sequence[str]) -> Mapping[str, str]:
        """Return the UUIDs of those keys of another entity that exist."""
        return self.ids(entity, keys) if self.ids is not None else {}


class MigratedUsers(_WithIds):
    """Users that are in the target now: an entry in the id map and a row in its table."""

    def __init__(self, connection: driver.Connection, plan: Plan, namespace: str, *, entity: str = "users", password_column: str = "password_hash") -> None:
        self._connection = connection
        found = entity_of(plan, entity)
        target = next(item for item in plan.targets if (item.service, item.table) == (found.service, found.target))
        self._place = f"{found.service}: {target.name}"
        self._prefix = None if found.keep else ids.prefix(namespace, entity)
        joined = (
            f" FROM migration.id_map m JOIN {target.qualified} u ON u.{ident(target.identity[0])} = m.id"
            " WHERE m.entity = %s AND m.source_key = ANY(%s)"
        )
        self._ids = "SELECT m.source_key, m.id::text, NULL" + joined
        self._passwords = f"SELECT m.source_key, m.id::text, u.{ident(password_column)}" + joined
        self._entity = entity

    def find(self, numbers: Collection[int], *, passwords: bool) -> Mapping[int, User]:
        """Return those that are in the target; MigrationError when their ids are not those of this namespace."""
        if not numbers:
            return {}
        with driver.database_errors(self._place, "looking up the sessions' users"):
            found = driver.rows(
                self._connection,
                self._passwords if passwords else self._ids,
                (self._entity, [str(number) for number in numbers]),
            )
        users = {int(key): User(uuid, password) for key, uuid, password in found}
        for number, user in users.items():
            if self._prefix is not None and str(ids.compute(self._prefix, [number])) != user.uuid:
                raise MigrationError(f"{self._place}: its ids were made in another namespace; use the migration_namespace that it was migrated with")
        return users


class ForeseenUsers(_WithIds):
    """Users that the migration would carry: for a check mode in which nothing has been migrated yet."""

    def __init__(self, connection: driver.Connection, schema: str, plan: Plan, namespace: str, *, entity: str = "users") -> None:
        self._connection = connection
        found = entity_of(plan, entity)
        kept = "NULL" if found.keep is None else f"{ident(found.keep)}::uuid::text"
        self._statement = f"SELECT {ident(found.key)}, password, {kept} FROM {rows_of(plan, found, schema)} WHERE {ident(found.key)} = ANY(%s)"
        self._prefix = ids.prefix(namespace, entity)
        self._place = found.source

    def find(self, numbers: Collection[int], *, passwords: bool) -> Mapping[int, User]:
        """Return those that the source has."""
        if not numbers:
            return {}
        with driver.database_errors(self._place, "looking up the sessions' users"):
            found = driver.rows(self._connection, self._statement, (list(numbers),))
        return {number: User(kept or str(ids.compute(self._prefix, [number])), password) for number, password, kept in found}


def rows_of(plan: Plan, entity: Entity, schema: str) -> str:
    """Return the FROM item of the rows that have an entity's ids, for a statement with parameters."""
    home = next((part for target in plan.targets for part in target.parts if part.minted and part.entity == entity.name and part.table), None)
    return home.source(schema).replace("%", "%%") if home is not None else qualified(schema, entity.source)


def entity_of(plan: Plan, name: str, option: str = "sessions_users_entity") -> Entity:
    """Return the entity that an option names; MigrationError when the mappings have none of that name."""
    for entity in plan.entities:
        if entity.name == name:
            return entity
    known = ", ".join(entity.name for entity in plan.entities)
    raise MigrationError(f"{option}: no mapping mints {name!r}; name one of {known}")
