# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The DDL of a target database: what there is to make, and the making in one transaction.

ddl_schema.py, ddl_index.py and ddl_epilogue.py plan: they only read. What exists and is equal is left; what exists and
differs is an error that names both sides; what is missing becomes an Action. Keys and indexes are built by build.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..contract.model import Contract
from ..errors import MigrationError
from ..plan.model import Plan
from ..postgres import driver
from ..postgres.quote import ident, literal
from . import catalog
from .catalog import FoundTable

APPLICATION_NAME = f"{catalog.APPLICATION_PREFIX} ddl"
ORDER = ("drop", "primary_key", "unique", "index", "check", "foreign_key", "analyze")

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


def database(connection: driver.Connection) -> str:
    """Return the database's name as an error names it."""
    return f"database {connection.info.dbname}"


def exists(connection: driver.Connection, schema: str, name: str, *, kind: str) -> bool:
    """Return whether a relation of that kind (pg_class.relkind) is there."""
    words = "SELECT true FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s AND c.relkind = %s"
    return driver.scalar(connection, words, (schema, name, kind)) is not None


def apply(connection: driver.Connection, actions: Sequence[Action], *, lock_timeout: str = "5s") -> None:
    """Apply actions in one transaction: all of them or none; MigrationError otherwise."""
    if not any(action.steps for action in actions):
        return
    place = database(connection)
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
        with driver.database_errors(database(connection), "committing"):
            connection.commit()
    except BaseException:
        connection.rollback()
        raise
