# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two servers as a company has them: a read-only role on the monolith's; on the services' a login for each service and one for the records.

None of these logins is a member of two owners, none can connect to another's database, and so no story needs that.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.postgres.quote import ident, literal
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair import reconcile
from ansible.module_utils.migration.rollback.run import RollbackOptions
from ansible.module_utils.migration.schema import ddl
from ansible.module_utils.migration.schema.tables import plan_schema
from ansible.module_utils.migration.snapshot.dump import DumpOptions
from ansible.module_utils.migration.snapshot.restore import RestoreOptions
from ansible.module_utils.migration.snapshot.take import TakeOptions
from ansible.module_utils.migration.state import control
from ansible.module_utils.migration.state.control import Migration, Record
from ansible.module_utils.migration.state.limits import Limits
from ansible.module_utils.migration.transfer import run as transfer

from tests.mutation.world import NAMESPACE, SERVICES, fill

USERS = 60
FREE = Limits(cpu_percent=0, memory_percent=0, disk_percent=0)


@dataclass(frozen=True)
class Walk:
    """One environment: its databases, the snapshots' folder, the superusers' ways in."""

    context: Context
    root: Path
    bin_dir: str
    monolith: Endpoint
    superuser: Endpoint

    def taking(self, **changes: Any) -> TakeOptions:
        """Return options for a snapshot."""
        chosen = {"root": self.root, "runner": "runner1", "dump": DumpOptions(2, "gzip:1", self.bin_dir), "restore": self.restoring(), **changes}
        return TakeOptions(**chosen)

    def restoring(self) -> RestoreOptions:
        """Return options for restores."""
        return RestoreOptions(2, self.bin_dir, "postgres")

    def rolling(self, **changes: Any) -> RollbackOptions:
        """Return options for a rollback."""
        return RollbackOptions(**{"restore": self.restoring(), **changes})

    def service(self, name: str) -> Endpoint:
        """Return a superuser's way into a service's database."""
        return replace(self.superuser, dbname=self.context.targets[name].dbname)

    def pass_preflight(self) -> Migration:
        """Leave the record that a passed preflight leaves."""
        records = control.connect(self.context.control)
        digest = self.context.plan.digest
        migration = control.plan(records, digest, self.context.plan.fingerprint)
        control.record(records, "preflight", "passed", {}, migration=migration, plan_digest=digest)
        records.close()
        return migration

    def migration(self) -> Migration | None:
        """Return the live migration."""
        records = control.connect(self.context.control)
        try:
            return control.current(records)
        finally:
            records.close()

    def history(self, kind: str) -> list[Record]:
        """Return records, newest first."""
        records = control.connect(self.context.control)
        try:
            return control.history(records, kind=kind)
        finally:
            records.close()

    def carry(self) -> None:
        """Make the services' tables and carry everything."""
        for name, contract in self.context.plan.contracts:
            connection = ddl.connect(self.context.targets[name], Contract.from_dict(contract))
            ddl.apply(connection, plan_schema(connection, Contract.from_dict(contract)))
            connection.close()
        migration = self.migration()
        assert migration is not None
        options = transfer.Options(runner="runner1", workers=1, chunk_rows=100_000, limits=FREE)
        transfer.run(self.context, migration.plan_time, migration.run_id, options, Progress(None), reconcile.reconcile)

    def content(self, name: str, dbname: str | None = None) -> dict[str, str]:
        """Return a digest of every table of a service, made by PostgreSQL alone; {} when it has none."""
        endpoint = replace(self.superuser, dbname=dbname or self.context.targets[name].dbname)
        names = "SELECT array_agg(format('%I.%I', schemaname, tablename) ORDER BY 1) FROM pg_tables"
        tables = ask(endpoint, f"{names} WHERE schemaname !~ '^(pg_|information_schema)'")
        digest = "SELECT count(*) || ' ' || md5(coalesce(string_agg(md5(t::text), '' ORDER BY md5(t::text)), '')) FROM {} AS t"
        return {table: ask(endpoint, digest.format(table)) for table in tables or []}

    def superuser_drops(self, role: str | None, dbname: str) -> None:
        """Drop a database and those derived from it, then the role that has something in it."""
        for name in [name for name in self.databases() if name.startswith(dbname)]:
            ask(self.superuser, f"DROP DATABASE {ident(name)} WITH (FORCE)")
        if role:
            ask(self.superuser, f"DROP ROLE {ident(role)}")

    def databases(self) -> set[str]:
        """Return the names of the services' server's databases that belong to this environment."""
        own = [endpoint.dbname for endpoint in self.context.targets.values()]
        found = ask(self.superuser, "SELECT array_agg(datname::text) FROM pg_database")
        return {name for name in found if any(name.startswith(prefix) for prefix in own)}


def ask(endpoint: Endpoint, statement: str) -> Any:
    """Return the first value of a statement."""
    connection = connect(endpoint, application_name="tests", autocommit=True)
    try:
        return driver.scalar(connection, statement)
    finally:
        connection.close()


def build(source: PostgresServer, target: PostgresServer, plan: Plan, root: Path) -> Walk:
    """Make an environment with names of its own."""
    mark = secrets.token_hex(3)
    password = secrets.token_urlsafe(18)
    reader, recorder, monolith = f"reader_{mark}", f"recorder_{mark}", f"monolith_{mark}"
    ask(source.endpoint(), f"CREATE ROLE {ident(reader)} LOGIN PASSWORD {literal(password)}")
    ask(source.endpoint(), f"CREATE DATABASE {ident(monolith)} TEMPLATE template0")
    fill(source.endpoint(monolith), USERS, 5)
    for kind in ("TABLES", "SEQUENCES"):
        ask(source.endpoint(monolith), f"GRANT SELECT ON ALL {kind} IN SCHEMA public TO {ident(reader)}")
    ask(target.endpoint(), f"CREATE ROLE {ident(recorder)} LOGIN CREATEDB PASSWORD {literal(password)}")
    targets = {}
    for service in SERVICES:
        owner, migrator = f"{service}_{mark}", f"{service}_migrator_{mark}"
        ask(target.endpoint(), f"CREATE ROLE {ident(owner)} NOLOGIN")
        ask(target.endpoint(), f"CREATE ROLE {ident(migrator)} LOGIN CREATEDB PASSWORD {literal(password)}")
        ask(target.endpoint(), f"GRANT {ident(owner)}, pg_signal_backend, pg_monitor TO {ident(migrator)}")
        _database(target, owner, owner)
        targets[service] = replace(target.endpoint(owner, user=migrator, password=password, session_role=owner), name=service)
    _database(target, f"control_{mark}", recorder)
    context = Context(
        plan=plan,
        source=replace(source.endpoint(monolith, user=reader, password=password), name="monolith"),
        targets=targets,
        control=replace(target.endpoint(f"control_{mark}", user=recorder, password=password), name="migration_control"),
        namespace=NAMESPACE,
    )
    return Walk(context, root, str(target.bin_dir), source.endpoint(monolith), target.endpoint())


def _database(server: PostgresServer, name: str, owner: str) -> None:
    """Make a database that nobody but its owner's members can connect to."""
    ask(server.endpoint(), f"CREATE DATABASE {ident(name)} OWNER {ident(owner)} TEMPLATE template0")
    ask(server.endpoint(), f"REVOKE CONNECT, TEMPORARY ON DATABASE {ident(name)} FROM PUBLIC")


def remove(walk: Walk) -> None:
    """Drop the environment's databases."""
    for name in walk.databases() | {walk.context.control.dbname}:
        ask(walk.superuser, f"DROP DATABASE IF EXISTS {ident(name)} WITH (FORCE)")
    ask(replace(walk.monolith, dbname="postgres"), f"DROP DATABASE {ident(walk.monolith.dbname)} WITH (FORCE)")


def die_in(work: Callable[[], Any]) -> None:
    """Run something in a process of its own that is expected to kill itself."""
    process = multiprocessing.get_context("fork").Process(target=_quiet, args=(work,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"it ended with {process.exitcode} instead of being killed"


def _quiet(work: Callable[[], Any]) -> None:
    os.setpgrp()
    work()


def dying(function: Callable[..., Any], call: int, *, after: bool) -> Callable[..., Any]:
    """Return the function as one that kills its own process at its n-th call (from 1), before or after its work."""
    seen = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if seen == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped
