# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back: give the services their state before the migration, and keep everything that tells what happened.

Two scopes. `databases` restores each service into a new database, proves it and exchanges the names; what the migration
made stays under another name. `data` deletes exactly the rows that the migration wrote and leaves the rest alone. Both
find out from the databases how far an earlier attempt has come, so every step can be interrupted and run again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..context import Context
from ..errors import MigrationError
from ..postgres import databases as database
from ..postgres import driver
from ..postgres.driver import Endpoint
from ..snapshot import encryption
from ..snapshot.encryption import Sealing
from ..snapshot.manifest import Dumped, Manifest
from ..snapshot.restore import RestoreOptions, proven_copy, read_back
from ..state import control, rolled_back
from ..state.control import Migration
from ..state.lock import lock
from . import delete_rows, left_over, rename, service_rows
from .evidence import evidence_folder, export_evidence, readable, verified
from .service_rows import Unaccounted

KIND = "rollback"
SCRATCH = ("restored", "proof_source", "proof_target")
AS_BEFORE = "as before the rollback"
AS_SNAPSHOT = "as in the snapshot"
WITHOUT_ROWS = "without the migration's rows"
Note = Callable[[str], None]


@dataclass(frozen=True)
class RollbackOptions:
    """What to roll back: the scope, which services (empty: all), how many rows of others may be left behind."""

    scope: str = "databases"
    services: tuple[str, ...] = ()
    discard_rows: int = 0
    restore: RestoreOptions = field(default_factory=RestoreOptions)
    sealing: Sealing = field(default_factory=Sealing)


@dataclass(frozen=True)
class Names:
    """A service's database, the restored copy that takes its place, and where the migrated state is kept."""

    live: str
    fresh: str
    kept: str


@dataclass(frozen=True)
class RolledBack:
    """What a run came to; `states` says for each service how it stands now."""

    changed: bool
    run_id: str | None
    lines: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    states: tuple[tuple[str, str], ...] = ()
    sessions: bool = False
    complete: bool = True
    evidence: str = ""


def names(endpoint: Endpoint, run_id: str) -> Names:
    """Return the names that a rollback of this migration uses; they are the same in every run."""
    return Names(endpoint.dbname, database.derived(endpoint.dbname, "restored", run_id), database.derived(endpoint.dbname, "migrated", run_id))


def is_exchanged(endpoint: Endpoint, maintenance_db: str, chosen: Names) -> bool:
    """Return whether the service has its old state already; MigrationError when its database is gone, which no rollback leaves behind."""
    with contextlib.closing(database.admin(endpoint, maintenance_db)) as connection, driver.database_errors(endpoint.place, "looking for databases"):
        if not database.exists(connection, chosen.live):
            raise MigrationError(
                f"{endpoint.place}: the database is not there any more; make an empty one of that name with the same owner (CREATE DATABASE ... OWNER ...),"
                " then run this again: the rollback gives it everything that the snapshot holds"
            )
        return database.exists(connection, chosen.kept)


def roll_back(context: Context, options: RollbackOptions, note: Note = lambda text: None) -> RolledBack:
    """Roll the services back; the migration stays open until close()."""
    chosen = services(context, options)
    with (
        contextlib.closing(control.connect(context.control)) as records,
        driver.database_errors(context.control.place, "keeping the migration's records"),
        lock(records, "rollback"),
    ):
        migration = control.current(records)
        if migration is None or migration.state != "open":
            return nothing(migration)
        sessions = has_sessions(records, migration)
        if migration.snapshot is None:
            return RolledBack(False, migration.run_id, ("the migration has no snapshot yet, so nothing was written to the services",), sessions=sessions)
        refuse_after_cutover(records, migration)
        refuse_other_plan(context, options, migration)
        states: dict[str, str] = {}
        try:
            read = verified(context, records, migration) if options.scope == "databases" else readable(records, migration)
            _note_begin(context, options, records, migration, chosen)
            steps = _Steps(context, options, records, migration, read, note, states)
            lines = steps.databases(chosen) if options.scope == "databases" else steps.data(chosen)
        except MigrationError as exc:
            detail: dict[str, Any] = {"error": str(exc), "states": _stand(context, options, migration, states)}
            with contextlib.suppress(Exception):  # the first error matters more than its record
                control.record(records, KIND, "failed", detail, migration=migration, plan_digest=context.plan.digest)
            if any(how in (AS_SNAPSHOT, WITHOUT_ROWS) for how in detail["states"].values()):
                raise MigrationError(f"{exc} (now {', '.join(f'{service} is {how}' for service, how in detail['states'].items())})") from exc
            raise
        now = {service: state(context, options, migration, service) for service in context.plan.services}
        left = [service for service in now if now[service] == AS_BEFORE]
        return RolledBack(
            bool(lines),
            migration.run_id,
            tuple(lines) or tuple(f"{service} is {now[service]} already" for service in chosen),
            tuple(limits(left)),
            tuple(now.items()),
            sessions,
            not left,
            str(evidence_folder(migration)),
        )


def _stand(context: Context, options: RollbackOptions, migration: Migration, known: dict[str, str]) -> dict[str, str]:
    """Return how the services stand after a failure: what an earlier run has rolled back is not as before."""
    now = {}
    for service in context.plan.services:
        try:
            now[service] = known.get(service) or state(context, options, migration, service)
        except MigrationError:
            now[service] = "not known, its server does not tell"
    return now


def _note_begin(context: Context, options: RollbackOptions, records: driver.Connection, migration: Migration, chosen: Sequence[str]) -> None:
    """Record how the services stand before the first step, so that a killed run is not one that nobody knows of."""
    now = {service: state(context, options, migration, service) for service in context.plan.services}
    if any(now[service] == AS_BEFORE for service in chosen):
        detail = {"scope": options.scope, "services": list(chosen), "states": now}
        control.record(records, KIND, "begun", detail, migration=migration, plan_digest=context.plan.digest)


def close(context: Context, options: RollbackOptions) -> RolledBack:
    """End the migration as rolled back, when every service is; it can start again afterwards."""
    with (
        contextlib.closing(control.connect(context.control)) as records,
        driver.database_errors(context.control.place, "keeping the migration's records"),
        lock(records, "rollback"),
    ):
        migration = control.current(records)
        if migration is None or migration.state != "open":
            return nothing(migration)
        now: dict[str, str] = {}
        if migration.snapshot is not None:
            now = {service: state(context, options, migration, service) for service in context.plan.services}
            left = [service for service in now if now[service] == AS_BEFORE]
            if left:
                line = f"the migration stays open: {', '.join(left)} is not rolled back"
                return RolledBack(False, migration.run_id, (line,), tuple(limits(left)), complete=False)
            without = [service for service in now if now[service] == WITHOUT_ROWS]
            left_over.refuse(context, without, migration, readable(records, migration) if without else None, options.discard_rows)
        drop_scratch(context, options, migration)
        control.record(records, KIND, "passed", {"scope": options.scope, "states": now}, migration=migration, plan_digest=context.plan.digest)
        control.close(records, migration, "rolled_back")
        return RolledBack(True, migration.run_id, (f"migration {migration.run_id} is closed as rolled back; playbooks/preflight.yml starts the next one",))


def drop_scratch(context: Context, options: RollbackOptions, migration: Migration) -> None:
    """Drop what killed proofs and rollbacks of this migration left beside the services; the kept databases stay."""
    for endpoint in context.targets.values():
        names_of = [database.derived(name, what, migration.run_id) for name in (endpoint.dbname, context.source.dbname) for what in SCRATCH]
        names_of += [read_back(name) for name in names_of]
        with contextlib.closing(database.admin(endpoint, options.restore.maintenance_db)) as connection:
            left = [name for name in names_of if database.exists(connection, name)]
        for name in left:
            database.drop(endpoint, options.restore.maintenance_db, name)


def services(context: Context, options: RollbackOptions) -> tuple[str, ...]:
    """Return the services to roll back; MigrationError when one is not known."""
    for service in options.services:
        if service not in context.plan.services:
            raise MigrationError(f"rollback_services names {service!r}, the services are {', '.join(context.plan.services)}; name one of them")
    return tuple(service for service in context.plan.services if not options.services or service in options.services)


def limits(left: Sequence[str]) -> Iterator[str]:
    """Yield what it means that some services stay migrated."""
    for service in left:
        yield (
            f"{service} stays migrated: its rows and those of the services rolled back refer to each other by ids that are on one side only now;"
            " the migration stays open until playbooks/rollback.yml has rolled back every service"
        )


class _Steps:
    """The steps of one rollback; each leaves a record."""

    def __init__(
        self,
        context: Context,
        options: RollbackOptions,
        records: driver.Connection,
        migration: Migration,
        read: Manifest | None,
        note: Note,
        states: dict[str, str],
    ) -> None:
        self.context = context
        self.options = options
        self.records = records
        self.migration = migration
        self.read = read
        self.note = note
        self.states = states
        self.folder = Path(str(migration.snapshot))

    def databases(self, chosen: Sequence[str]) -> list[str]:
        """Restore and prove every service first, exchange names last, so that the time between two services is short."""
        todo = []
        for service in chosen:
            endpoint = self.context.targets[service]
            own = names(endpoint, self.migration.run_id)
            if own.live == self.options.restore.maintenance_db:
                raise MigrationError(f"{endpoint.place}: rollback_maintenance_db is the database that is to be renamed; name another one on that server")
            if is_exchanged(endpoint, self.options.restore.maintenance_db, own):
                self.found(service, "exchanged", AS_SNAPSHOT, kept=own.kept)
            else:
                todo.append((service, endpoint, own))
        for service, endpoint, own in todo:
            self.refuse_early(service, endpoint, own)
        for service, endpoint, own in todo:
            self.note(f"restoring beside {service}")
            started = time.monotonic()
            read, dumped = self.dumped(service)
            with encryption.opened(self.folder, service, self.options.sealing, read.encryption) as place:
                proven_copy(endpoint, dumped, place, own.fresh, self.options.restore)
            self.record("restored", service, database=own.fresh, seconds=round(time.monotonic() - started, 3))
        strangers = [item for service, _, own in todo for item in self.strangers(service, own.fresh)]
        service_rows.refuse_strangers(strangers, self.options.discard_rows, same_plan=self.migration.plan_digest == self.context.plan.digest)
        for service, endpoint, _own in todo:
            export_evidence(endpoint, evidence_folder(self.migration))
            self.record("archived", service, folder=str(evidence_folder(self.migration)))
        lines = []
        for service, endpoint, own in todo:
            self.note(f"exchanging {service}")
            started = time.monotonic()
            slots = self.slots(endpoint, own.live)
            ended = rename.exchange(
                endpoint, self.options.restore.maintenance_db, own.live, own.fresh, own.kept, f"rollback of migration {self.migration.run_id}"
            )
            self.states[service] = AS_SNAPSHOT
            self.record(
                "exchanged", service, kept=own.kept, ended=[asdict(item) for item in ended], state=AS_SNAPSHOT,
                discarded={item.table: item.rows for item in strangers}, slots=slots, seconds=round(time.monotonic() - started, 3),
            )  # fmt: skip
            lines.append(
                f"{service}: {own.live} is as in the snapshot, proven against its manifest; {sum(item.sessions for item in ended)} sessions ended;"
                f" the migrated state is kept as {own.kept}"
                + (f" with its logical slots {', '.join(slots)}: drop them there, their readers begin anew" if slots else "")
                + (self.late(service, own, strangers) if ended else "")
            )
        return lines

    def slots(self, endpoint: Endpoint, dbname: str) -> list[str]:
        """Return the logical slots that a database takes with it."""
        with (
            contextlib.closing(database.admin(endpoint, self.options.restore.maintenance_db)) as connection,
            driver.database_errors(endpoint.place, "looking for logical slots"),
        ):
            return rename.slots(connection, dbname)

    def late(self, service: str, own: Names, before: Sequence[Unaccounted]) -> str:
        """Say how many rows the sessions that were ended have written since rows were counted: they are in the kept database only."""
        try:
            rows = service_rows.written_since(self.context, service, own.kept, own.live, self.migration.plan_time, self.dumped(service)[1], before)
        except MigrationError as exc:
            return f"; whether rows were written while it was exchanged is not known ({exc})"
        if not rows:
            return ""
        self.record("late", service, kept=own.kept, rows=rows)
        where = ", ".join(f"{number:,} in {table}" for table, number in rows.items())
        return f"; rows were written while it was exchanged and are in {own.kept} only: {where}"

    def refuse_early(self, service: str, endpoint: Endpoint, own: Names) -> None:
        """Stop before anything is restored when the exchange could not be done anyway."""
        with (
            contextlib.closing(database.admin(endpoint, self.options.restore.maintenance_db)) as connection,
            driver.database_errors(endpoint.place, "looking for what stands in the way"),
        ):
            faults = rename.standing(connection, own.live)
        if faults:
            raise MigrationError(f"{service} cannot be rolled back: {'; '.join(faults)}; it is as before, then run this again")

    def strangers(self, service: str, fresh: str | None) -> list[Unaccounted]:
        """Return the rows that are neither in the snapshot nor migrated."""
        return service_rows.unaccounted(self.context, service, self.migration.plan_time, self.dumped(service)[1], fresh)

    def dumped(self, service: str) -> tuple[Manifest, Dumped]:
        """Return the manifest and what it says of a service; MigrationError without one, which only the removal of rows can do without."""
        if self.read is None:
            raise MigrationError(
                f"{self.folder} has no readable manifest, so the state before the migration is not known"
                "; put its manifest.json back from your backup of it, or use -e rollback_scope=data"
            )
        return self.read, self.read.database(service)

    def data(self, chosen: Sequence[str]) -> list[str]:
        """Delete what the migration wrote, a transaction for each service."""
        lines = []
        for service in chosen:
            now = state(self.context, self.options, self.migration, service)
            if now != AS_BEFORE:
                self.found(service, "removed" if now == WITHOUT_ROWS else "exchanged", now)
                continue
            self.note(f"removing from {service}")
            started = time.monotonic()
            export_evidence(self.context.targets[service], evidence_folder(self.migration))
            self.record("archived", service, folder=str(evidence_folder(self.migration)))
            removed = delete_rows.remove(self.context, service, self.migration)
            left = self.strangers(service, None) if self.read else []
            self.states[service] = WITHOUT_ROWS
            self.record(
                "removed", service, rows=removed, left={item.table: item.rows for item in left}, state=self.states[service],
                seconds=round(time.monotonic() - started, 3),
            )  # fmt: skip
            gone = sum(item.computed for item in left)
            kept = f"; {sum(item.rows for item in left):,} rows of its own were left alone" if left else ""
            kept += f" ({gone:,} of them look migrated from source rows that are gone since)" if gone else ""
            kept += "" if self.read else f"; other rows were left alone, but not counted: {self.folder} has no readable manifest"
            schema = rolled_back.kept_schema(self.migration)
            lines.append(f"{service}: {sum(removed.values()):,} migrated rows removed{kept}; the ledger is kept as schema {schema}")
        return lines

    def found(self, service: str, outcome: str, now: str, **detail: Any) -> None:
        """Note how an earlier run has left a service; one that was killed could not record it."""
        self.states[service] = now
        known = control.history(self.records, kind=KIND, migration=self.migration, limit=1000)
        if not any((item.outcome, item.detail.get("service")) == (outcome, service) for item in known):
            self.record(outcome, service, state=now, found=True, **detail)

    def record(self, outcome: str, service: str, **detail: Any) -> None:
        """Leave a record of a step."""
        whole = {"service": service, "scope": self.options.scope, **detail}
        control.record(self.records, KIND, outcome, whole, migration=self.migration, plan_digest=self.context.plan.digest)


def state(context: Context, options: RollbackOptions, migration: Migration, service: str) -> str:
    """Return how a service stands, by what its server says: as before the rollback, as in the snapshot, or without the migration's rows."""
    endpoint = context.targets[service]
    if is_exchanged(endpoint, options.restore.maintenance_db, names(endpoint, migration.run_id)):
        return AS_SNAPSHOT
    return WITHOUT_ROWS if delete_rows.is_removed(endpoint, migration) else AS_BEFORE


def has_sessions(records: driver.Connection, migration: Migration) -> bool:
    """Return whether the session store holds sessions of the migration."""
    return any(item.outcome != "removed" for item in [control.latest(records, "sessions", migration=migration)] if item is not None)


def refuse_after_cutover(records: driver.Connection, migration: Migration) -> None:
    """MigrationError when the services are what users work with."""
    latest = control.latest(records, "cutover", migration=migration)
    if latest is not None and latest.outcome == "passed":
        raise MigrationError(
            f"migration {migration.run_id} was cut over at {latest.recorded_at:%Y-%m-%d %H:%M} UTC: the services hold what users did since, which a"
            " restore would lose; see docs/operations.md, \"The way back after cutover\""
        )


def refuse_other_plan(context: Context, options: RollbackOptions, migration: Migration) -> None:
    """Databases can be exchanged under any plan; which rows were migrated is only known to the plan that carried them."""
    if options.scope == "data" and migration.plan_digest != context.plan.digest:
        raise MigrationError(
            f"migration {migration.run_id} was made with plan {migration.plan_digest[:12]}, this run has plan {context.plan.digest[:12]}: the mappings,"
            " the schema SQL or the namespace have changed, so its rows cannot be told; restore them, or use rollback_scope=databases"
        )


def nothing(migration: Migration | None) -> RolledBack:
    """Return what a run comes to that finds no open migration."""
    if migration is None:
        return RolledBack(False, None, ("no migration is open, so there is nothing to roll back",))
    return RolledBack(False, migration.run_id, (f"migration {migration.run_id} is only planned and has written nothing, so there is nothing to roll back",))
