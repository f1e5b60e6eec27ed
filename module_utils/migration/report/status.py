# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the migration stands: read from the records and the targets' ledgers, by anybody, at any time. Writes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ..context import Context
from ..errors import MigrationError
from ..postgres import driver
from ..state import control
from ..state.control import Migration, Record
from ..text import clock
from .advice import remedy

APPLICATION_NAME = "edulink-migration status"
PHASES = ("preflight", "snapshot", "schema", "migrate", "index", "validate", "repair", "release", "sessions", "cutover", "rollback", "cleanup", "rehearse")
PER_SERVICE = ("schema", "index")  # phases that leave a record for each service
CARRYING = tuple(f"edulink-migration {part}" for part in ("migrate", "watch", "worker", "files", "closing"))  # sessions that a transfer has in targets
RECENT = 60  # seconds over which the present rate is measured


@dataclass(frozen=True)
class TableState:
    """How far the transfer of one target is: rows of finished chunks, and between which moments (Unix time) they were carried."""

    target: str
    chunks: int
    chunks_done: int
    rows: int
    expected: int
    started: float
    ended: float
    recent_rate: float

    @property
    def seconds(self) -> float:
        """Return how long the copy took."""
        return max(0.0, self.ended - self.started)

    @property
    def rate(self) -> float:
        """Return rows a second over the whole copy."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class ServiceState:
    """What one target database says; `fault` when it could not be asked."""

    service: str
    fault: str = ""
    run_id: str = ""
    finished: bool = False
    tables: tuple[TableState, ...] = ()
    rejects: int = 0
    snapshot_age: float | None = None
    unsettled: int = 0
    sessions: int = 0
    carrying: int = 0  # of the sessions: those of a transfer
    limits: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Step:
    """The last thing that a phase left."""

    phase: str
    outcome: str
    when: datetime
    services: tuple[str, ...]
    ours: bool
    detail: Mapping[str, Any]
    passed_at: datetime | None = None  # when it last passed in this migration


@dataclass(frozen=True)
class Next:
    """What to do next and why."""

    command: str
    why: str


@dataclass(frozen=True)
class Status:
    """Everything that an operator asks for."""

    migration: Migration | None
    plan_digest: str
    steps: tuple[Step, ...]
    services: tuple[ServiceState, ...]
    next: Next

    @property
    def faults(self) -> tuple[str, ...]:
        """Return what could not be read."""
        return tuple(item.fault for item in self.services if item.fault)

    @property
    def at_work(self) -> bool:
        """Return whether the migration's sessions are in any of the targets."""
        return any(item.sessions for item in self.services)


def look(context: Context) -> Status:
    """Return where the migration stands; MigrationError when the control database cannot be reached."""
    with (
        contextlib.closing(control.connect(context.control, readonly=True)) as connection,
        driver.database_errors(context.control.place, "reading the migration's records"),
    ):
        migration = control.newest(connection)
        steps = read_steps(connection, migration)
    services = tuple(_service(context, name) for name in context.plan.services)
    steps = by_ledger(steps, services)
    return Status(migration, context.plan.digest, steps, services, advise(migration, context.plan.digest, steps, services))


def read_steps(connection: driver.Connection, migration: Migration | None) -> tuple[Step, ...]:
    """Return the newest record of each phase, in the phases' order."""
    found = [_step(control.history(connection, kind=phase, limit=20), phase, migration) for phase in PHASES]
    return tuple(step for step in found if step is not None)


def by_ledger(steps: Sequence[Step], services: Sequence[ServiceState]) -> tuple[Step, ...]:
    """Return the steps with the transfer as the ledgers know it.

    One that is complete has passed, whatever a later, needless run of it said; one that carries now is running; one that carried after
    the last record was interrupted, for who is killed leaves none.
    """
    if services and all(item.finished for item in services):
        return tuple(
            replace(step, outcome="passed", when=step.passed_at or step.when) if step.phase == "migrate" and step.ours and step.outcome == "failed" else step
            for step in steps
        )
    begun = [item for item in services if item.tables and not item.finished]
    running = any(item.carrying for item in begun)
    ended = max((table.ended for item in begun for table in item.tables), default=0.0)
    moved = datetime.fromtimestamp(ended, UTC) if ended else None
    last = next((step for step in steps if step.phase == "migrate" and step.ours), None)
    if not running and (moved is None or (last is not None and last.when >= moved)):
        return tuple(steps)
    state = Step("migrate", "running" if running else "interrupted", moved or datetime.now(UTC), (), ours=True, detail={})
    return tuple(sorted([*(step for step in steps if step.phase != "migrate"), state], key=lambda step: PHASES.index(step.phase)))


def _step(records: Sequence[Record], phase: str, migration: Migration | None) -> Step | None:
    if not records:
        return None
    last = records[0]
    ours = [item for item in records if migration is not None and item.migration_id == migration.id]
    passed = {str(item.detail.get("service", "")): item.outcome for item in reversed(ours)} if phase in PER_SERVICE else {}
    services = tuple(sorted(name for name, outcome in passed.items() if outcome == "passed"))
    passed_at = next((item.recorded_at for item in ours if item.outcome == "passed"), None)
    return Step(phase, last.outcome, last.recorded_at, services, bool(ours) and ours[0].id == last.id, last.detail, passed_at)


def _service(context: Context, service: str) -> ServiceState:
    try:
        with (
            contextlib.closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as connection,
            driver.database_errors(context.targets[service].place, "reading the ledger"),
        ):
            return read_service(connection, service)
    except MigrationError as exc:
        return ServiceState(service, fault=str(exc))


def read_service(connection: driver.Connection, service: str) -> ServiceState:
    """Return what a target's ledger says; an empty state where there is none yet."""
    sessions, carrying = driver.rows(
        connection,
        "SELECT count(*), count(*) FILTER (WHERE application_name = ANY (%s)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'edulink-migration%%'",
        (list(CARRYING),),
    )[0]
    if driver.scalar(connection, "SELECT to_regclass('migration.pin')") is None:
        return ServiceState(service, sessions=sessions, carrying=carrying)
    pin = driver.rows(connection, "SELECT run_id, finished_at IS NOT NULL FROM migration.pin")
    tables = driver.rows(
        connection,
        "SELECT target, count(*), count(*) FILTER (WHERE state = 'done'), coalesce(sum(rows), 0)::bigint,"
        " sum(CASE WHEN state = 'done' THEN rows ELSE estimate END)::bigint,"
        " coalesce(extract(epoch FROM min(started_at)), 0)::float8, coalesce(extract(epoch FROM max(finished_at)), 0)::float8,"
        " coalesce(sum(rows) FILTER (WHERE finished_at > clock_timestamp() - make_interval(secs => %(recent)s)), 0)::float8"
        " / coalesce(least(%(recent)s, greatest(1, extract(epoch FROM clock_timestamp() - min(started_at)))), 1)::float8"
        " FROM migration.chunks GROUP BY target ORDER BY min(id)",
        {"recent": RECENT},
    )
    epochs = driver.rows(
        connection,
        "SELECT extract(epoch FROM clock_timestamp() - min(exported_at) FILTER (WHERE lost_at IS NULL AND reconciled_at IS NULL))::float8,"
        " count(*) FILTER (WHERE reconciled_at IS NULL) FROM migration.epochs",
    )[0]
    finished = bool(pin) and pin[0][1]
    return ServiceState(
        service,
        run_id=pin[0][0] if pin else "",
        finished=finished,
        tables=tuple(TableState(*row) for row in tables),
        rejects=driver.scalar(connection, "SELECT count(*) FROM migration.rejects"),
        snapshot_age=None if finished else epochs[0],
        unsettled=0 if finished else epochs[1],
        sessions=sessions,
        carrying=carrying,
        limits=tuple(
            (name, value) for name, value in driver.rows(connection, "SELECT name, value FROM migration.controls ORDER BY 1") if value is not None
        ),
    )


def advise(migration: Migration | None, plan_digest: str, steps: Sequence[Step], services: Sequence[ServiceState]) -> Next:
    """Return the next step of the story, by what the records and the ledgers say."""
    last = {step.phase: step for step in steps}
    ours = {step.phase: step for step in steps if step.ours}
    preflight = last.get("preflight")
    gone = [item.service for item in services if item.fault]
    if gone:
        return Next("playbooks/status.yml", f"mend the connection to {' and '.join(gone)} first; what is there is not known")
    if migration is None or migration.state == "rolled_back":
        if preflight is not None and preflight.outcome == "failed":
            return Next("playbooks/preflight.yml", "the last preflight found what stops a migration; mend it and run it again")
        over = "nothing has been migrated" if migration is None else f"migration {migration.run_id} was rolled back; a new one can start"
        return Next("playbooks/preflight.yml", over)
    if migration.state == "finished":
        return Next("playbooks/status.yml", f"migration {migration.run_id} is finished; there is nothing left to do")
    if migration.plan_digest != plan_digest:
        return Next(
            "playbooks/preflight.yml" if migration.state == "planned" else "playbooks/rollback.yml",
            f"the mappings, the schema SQL or the namespace are not those of migration {migration.run_id}"
            + ("" if migration.state == "planned" else "; restore them and go on, or start over with this"),
        )
    if migration.state == "planned" or migration.snapshot is None:
        if preflight is not None and preflight.outcome != "passed":
            return Next("playbooks/preflight.yml", "the last preflight did not pass")
        return Next("playbooks/snapshot.yml", "no byte has moved; the snapshot is the way back")
    names = {item.service for item in services}
    rollback = ours.get("rollback")
    if rollback is not None and not any(step.when > rollback.when for step in ours.values()):
        why = f"a rollback was begun (last step: {rollback.outcome}); run it again to end it, or schema.yml if one service alone was to go back"
        return Next("playbooks/rollback.yml", why)
    if not names <= set(ours["schema"].services if "schema" in ours else ()):
        return Next("playbooks/schema.yml", "the tables are not there yet")
    if not all(item.finished for item in services):
        left = sum(table.chunks - table.chunks_done for item in services for table in item.tables)
        busy = sum(item.sessions for item in services)
        why = f"{left:,} {'chunk is' if left == 1 else 'chunks are'} left" if left else "the transfer is not complete"
        at_work = f"{busy} {'session is' if busy == 1 else 'sessions are'} at work now: wait, or run it on another runner too"
        who = at_work if busy else "nobody is at work, run it to go on"
        return Next("playbooks/migrate.yml", f"{why}; {who}")
    if not names <= set(ours["index"].services if "index" in ours else ()):
        return Next("playbooks/index.yml", "keys and indexes are not complete")
    validate = ours.get("validate")
    if validate is None or validate.when < max(ours[name].when for name in ("migrate", "index", "repair", "release") if name in ours):
        return Next("playbooks/validate.yml", "what was carried has not been proven")
    if validate.outcome == "error":
        return Next("playbooks/validate.yml", "the last validation could not run")
    if validate.outcome == "partial":
        return Next("playbooks/validate.yml", "the last validation compared some tables only, which is no proof of the whole")
    if validate.outcome != "passed":
        helps = remedy(validate.detail)
        return Next(helps.command, f"the last validation failed: {helps.why}")
    sessions = ours.get("sessions")
    if sessions is None and preflight is not None and preflight.detail.get("sessions") is False:
        why = "every row is proven, and there are no sessions to carry; prove it once more when the monolith has been stopped"
        return Next("playbooks/validate.yml", why)
    if sessions is None or sessions.outcome == "removed":
        return Next("playbooks/sessions.yml", "every row is proven; the live sessions are still in the monolith only")
    if sessions.outcome != "passed":
        return Next("playbooks/sessions.yml", "carrying the sessions was begun and not ended; run it again, it goes on where it stopped")
    return Next("playbooks/validate.yml", "every row is proven and the sessions are carried; prove it once more when the monolith has been stopped")


def to_dict(status: Status) -> dict[str, Any]:
    """Return the status as data; times in UTC, durations in seconds. Rates and the snapshot's age are of now: only while somebody is at work."""
    migration = status.migration
    stands = migration is not None and migration.state != "rolled_back"  # else a validation speaks of rows that are gone
    validated = next((step.detail for step in status.steps if stands and step.phase == "validate" and step.ours), {})
    return {
        "run_id": migration.run_id if migration else "",
        "state": migration.state if migration else "none",
        "plan_time": migration.plan_time if migration else "",
        "opened_at": clock(migration.opened_at) if migration else "",
        "plan_digest": migration.plan_digest if migration else "",
        "plan_matches": migration is None or migration.plan_digest == status.plan_digest,
        "snapshot": bool(migration and migration.snapshot),
        "phases": [
            {
                "phase": step.phase,
                "outcome": step.outcome,
                "when": clock(step.when),
                "services": list(step.services),
                "this_migration": step.ours,
                "remark": remark(step, datetime.now(UTC)),
            }
            for step in status.steps
        ],
        "services": [
            {
                "service": item.service,
                "fault": item.fault,
                "finished": item.finished,
                "rejects": item.rejects,
                "sessions": item.sessions,
                "snapshot_age": item.snapshot_age if status.at_work else None,
                "unsettled": item.unsettled,
                "limits": dict(item.limits),
            }
            for item in status.services
        ],
        "tables": [item if status.at_work or "recent_rate" not in item else {**item, "recent_rate": 0} for item in tables(status.services, validated)],
        "faults": list(status.faults),
        "next": {"command": status.next.command, "why": status.next.why},
    }


def remark(step: Step, now: datetime) -> str:
    """Return what a phase says of itself; of a rehearsal, which belongs to no migration, how old it is and how long it took."""
    if step.phase != "rehearse":
        return str(step.detail.get("remark", ""))
    age = (now - step.when).total_seconds()
    unit, size = next(((name, size) for name, size in (("day", 86400), ("hour", 3600), ("minute", 60)) if age >= size), ("second", 1))
    number = int(age // size)
    took = f", took {step.detail['seconds']:,.0f} s" if step.outcome == "passed" and "seconds" in step.detail else ""
    return f"{number} {unit}{'' if number == 1 else 's'} ago{took}"


def tables(services: Sequence[ServiceState], validated: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a line for each target table: the ledger's figures joined with the last validation's."""
    judged = {str(item.get("target") or item.get("name")): item for item in validated.get("tables", []) if isinstance(item, Mapping)}
    lines: dict[str, dict[str, Any]] = {}
    for item in services:
        for table in item.tables:
            lines[table.target] = {
                "target": table.target,
                "chunks": table.chunks,
                "chunks_done": table.chunks_done,
                "rows": table.rows,
                "expected": table.expected,
                "started": table.started,
                "ended": table.ended,
                "seconds": round(table.seconds, 2),
                "rate": round(table.rate),
                "recent_rate": round(table.recent_rate),
            }
    for name, verdict in judged.items():
        line = lines.setdefault(name, {"target": name})
        line |= {key: verdict.get(key) for key in ("source_rows", "target_rows", "differences")}
    return list(lines.values())
