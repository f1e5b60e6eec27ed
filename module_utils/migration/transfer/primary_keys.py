# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Primary keys of bare loaded tables, each as soon as its table's last chunk is in, while other tables are still copied.

    worker.work -> Keys.add_one        files.import_files -> add_all -> Keys.add_one

One session at a time builds a key: it holds an advisory lock, which it gives back by dying. What a killed one left, the
next one adopts or builds again (see build).
"""

from __future__ import annotations

import contextlib
import time

from ..context import Context
from ..contract.model import Contract
from ..plan import row_id
from ..plan.model import Target
from ..postgres import driver
from ..postgres.driver import database_errors
from ..schema import build
from ..state import ledger
from .chunks import units

APPLICATION_NAME = "edulink-migration keys"
_IDLE = 0.2  # seconds between two looks at a key that others add
_LOCK = "hashtext('edulink-migration key'), hashtext(%s)"
_MISSING = "SELECT name FROM unnest(%s::text[]) AS name WHERE NOT EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass(name) AND indisprimary)"
_LOADED = "SELECT NOT EXISTS (SELECT FROM migration.chunks WHERE state = 'planned' AND target = ANY (%s))"


class Keys:
    """The primary keys of one target database that are missing; `memory` is maintenance_work_mem as PostgreSQL writes it."""

    def __init__(self, context: Context, service: str, memory: str) -> None:
        self.context, self.service, self.memory = context, service, memory
        self.contract = Contract.from_dict(dict(context.plan.contracts)[service])
        keyed = {table.key for table in self.contract.tables if any(item.kind == "primary_key" for item in table.constraints)}
        mapped = {unit.target.name for unit in units(context.plan, service) if unit.id_map is not None}
        self.targets = [target for target in context.plan.of(service) if target.bookkeeping or _key(target) in keyed]
        self.writers = {target.name: [target.name, *(mapped if target.table == "id_map" else ())] for target in self.targets}

    def left(self, connection: driver.Connection) -> bool:
        """Tell whether a key is missing still, whoever adds it; leaves no transaction open."""
        found = {row[0] for row in driver.rows(connection, _MISSING, ([target.qualified for target in self.targets],))}
        connection.rollback()
        self.targets = [target for target in self.targets if target.qualified in found]
        return bool(self.targets)

    def add_one(self, connection: driver.Connection) -> bool:
        """Add one key whose table is loaded and that nobody else is adding; tell whether there was one.

        Leaves no transaction open. MigrationError when the key cannot be made.
        """
        for target in list(self.targets):
            if not driver.scalar(connection, _LOADED, (self.writers[target.name],)):
                continue
            if not driver.scalar(connection, f"SELECT pg_try_advisory_lock({_LOCK})", (target.name,)):
                continue
            added = self.left(connection) and target in self.targets
            if added:
                self._add(target)
                self.targets.remove(target)
            driver.rows(connection, f"SELECT pg_advisory_unlock({_LOCK})", (target.name,))  # after a fault, the session's end unlocks
            connection.rollback()
            if added:
                return True
        connection.rollback()
        return False

    def _add(self, target: Target) -> None:
        endpoint = self.context.targets[self.service]
        if not target.bookkeeping:
            options = build.Options(jobs=1, memory=self.memory)
            build.build(endpoint, self.contract, tables=[_key(target)], kinds=("primary_key",), options=options)
            return
        settings = {"maintenance_work_mem": self.memory}
        with (
            contextlib.closing(self.context.connect_target(self.service, APPLICATION_NAME, settings=settings, autocommit=True)) as own,
            database_errors(f"{endpoint.place}: {target.qualified}", "adding its primary key"),
        ):
            driver.rows(own, ledger.ID_MAP_KEY if target.table == "id_map" else f"ALTER TABLE {target.qualified} ADD PRIMARY KEY ({row_id.columns(target)})")


def add_all(context: Context, memory: str) -> int:
    """Add every key that is missing of tables that are loaded, one after the other; return how many."""
    added = 0
    for service in context.plan.services:
        keys = Keys(context, service, memory)
        with contextlib.closing(context.connect_target(service, APPLICATION_NAME)) as connection:
            while keys.left(connection):
                if keys.add_one(connection):
                    added += 1
                else:
                    time.sleep(_IDLE)  # another runner is at it
    return added


def _key(target: Target) -> str:
    return f"{target.schema}.{target.table}"
