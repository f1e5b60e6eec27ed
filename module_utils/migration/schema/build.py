# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build keys, indexes and constraints of a target database: several at a time, each committed by itself.

A key is built as a unique index (SHARE lock, so that several indexes of a table are built side by side) and then adopted
as a constraint, which takes a moment. A run that is killed leaves finished objects, a unique index that the next run
adopts, or an invalid index that the next run drops and builds again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..contract.model import Contract
from ..errors import DatabaseError, MigrationError
from ..postgres import driver
from ..postgres.quote import literal
from . import catalog, ddl
from .ddl import Action, Step
from .indexes import plan_index

KINDS = ("primary_key", "unique", "index", "check", "foreign_key")
_BUSY = ("55P03", "40P01")  # lock_not_available, deadlock_detected
_STILL = "still locked"
_EXISTS = ("42P07", "42710")  # duplicate_table, duplicate_object: another run was faster


@dataclass(frozen=True)
class Options:
    """How to build; `memory` is maintenance_work_mem, `parallel` max_parallel_maintenance_workers (None: the server's).

    Statements outside CONCURRENTLY give up a lock after `lock_timeout` and try again, `lock_tries` times in all.
    """

    jobs: int = 2
    memory: str = "256MB"
    parallel: int | None = None
    lock_timeout: str = "5s"
    lock_tries: int = 60

    def settings(self) -> dict[str, str]:
        """Return the session settings of a worker's connection."""
        settings = {"maintenance_work_mem": self.memory}
        if self.parallel is not None:
            settings["max_parallel_maintenance_workers"] = str(self.parallel)
        return settings


@dataclass(frozen=True)
class Built:
    """One object that was made, with the wall seconds that it took."""

    kind: str
    object: str
    seconds: float
    undo: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a build made, in the order in which it was finished."""

    made: tuple[Built, ...]
    seconds: float


def build(
    endpoint: driver.Endpoint,
    contract: Contract,
    *,
    tables: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    mode: str = "auto",
    options: Options | None = None,
    announce: Callable[[Built], None] | None = None,
) -> Outcome:
    """Build what is missing of those kinds on those tables (`schema.name`; default all); return what was made.

    Calling it again makes nothing. MigrationError on the first failure; what was made until then stays.
    """
    started = time.monotonic()
    chosen = options or Options()
    made: list[Built] = []

    def note(built: Built) -> None:
        made.append(built)
        if announce:
            announce(built)

    for attempt in range(3):
        with contextlib.closing(ddl.connect(endpoint, contract, readonly=True)) as connection:
            actions = plan_index(connection, contract, mode, kinds=kinds, tables=tables)
        try:
            run(endpoint, contract, actions, chosen, note)
            break
        except DatabaseError as exc:
            if exc.state not in (*_EXISTS, *_BUSY) or attempt == 2 or exc.step.startswith(_STILL):
                raise
            # Otherwise a killed run's server process finished its index meanwhile, or a CONCURRENTLY lost a deadlock: plan again.
    return Outcome(tuple(made), time.monotonic() - started)


def analyze(
    endpoint: driver.Endpoint,
    contract: Contract,
    *,
    touched: Sequence[str] = (),
    options: Options | None = None,
    announce: Callable[[Built], None] | None = None,
) -> Outcome:
    """ANALYZE the tables that were `touched` (`schema.name`), have changed since, or have no statistics."""
    started = time.monotonic()
    made: list[Built] = []

    def note(built: Built) -> None:
        made.append(built)
        if announce:
            announce(built)

    with contextlib.closing(ddl.connect(endpoint, contract, readonly=True)) as connection:
        actions = plan_analyze(connection, contract, touched)
    run(endpoint, contract, actions, options or Options(), note)
    return Outcome(tuple(made), time.monotonic() - started)


def plan_analyze(connection: driver.Connection, contract: Contract, touched: Sequence[str] = ()) -> tuple[Action, ...]:
    """Return an ANALYZE for each table that needs one; a table that does not exist (check mode) needs one."""
    actions = []
    for table in contract.tables:
        oid = driver.scalar(connection, "SELECT to_regclass(%s)::oid::int8", (table.qualified,))
        if table.key in touched or oid is None or catalog.needs_analyze(connection, oid):
            actions.append(Action("analyze", table.key, (Step(f"ANALYZE {table.qualified}", True),), (table.key,)))
    return tuple(actions)


def run(
    endpoint: driver.Endpoint,
    contract: Contract,
    actions: Sequence[Action],
    options: Options,
    announce: Callable[[Built], None],
) -> None:
    """Run actions on `options.jobs` connections; raise the first failure after the others have finished their step."""
    if not actions:
        return
    schedule = _Schedule(actions, announce)
    workers = [
        threading.Thread(target=_work, args=(endpoint, contract, options, schedule), name=f"build-{number}")
        for number in range(max(1, min(options.jobs, len(actions))))
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except BaseException:
        schedule.stop()
        raise
    if schedule.failure is not None:
        raise schedule.failure


@dataclass
class _Task:
    """An action on its way: the step that comes next, and the time its steps took."""

    action: Action
    next_step: int = 0
    seconds: float = 0.0
    running: bool = False

    @property
    def step(self) -> Step:
        return self.action.steps[self.next_step]


@dataclass
class _Schedule:
    """Hands out the first step whose locks do not collide with those of running steps."""

    actions: Sequence[Action]
    announce: Callable[[Built], None]
    failure: BaseException | None = None
    condition: threading.Condition = field(default_factory=threading.Condition)
    tasks: list[_Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tasks = [_Task(action) for action in self.actions if action.steps]

    def take(self) -> _Task | None:
        """Return the next task to run a step of, waiting for one; None when there is none left."""
        with self.condition:
            while self.tasks and self.failure is None:
                for task in self.tasks:
                    if not task.running and self._free(task):
                        task.running = True
                        return task
                self.condition.wait()
            return None

    def done(self, task: _Task, seconds: float) -> None:
        """Note that a step has finished; the action is made when it was its last."""
        with self.condition:
            task.running = False
            task.seconds += seconds
            task.next_step += 1
            if task.next_step == len(task.action.steps):
                self.tasks.remove(task)
                self.announce(Built(task.action.kind, task.action.object, round(task.seconds, 3), task.action.undo))
            self.condition.notify_all()

    def fail(self, failure: BaseException) -> None:
        """Note the first failure; nothing more is handed out."""
        with self.condition:
            self.failure = self.failure or failure
            self.condition.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        self.fail(MigrationError("building was interrupted; run again to go on"))

    def _free(self, task: _Task) -> bool:
        if task.action.kind == "foreign_key" and any(
            other.action.kind in ("primary_key", "unique") and set(other.action.tables) & set(task.action.tables) for other in self.tasks
        ):
            return False  # a foreign key needs the far key
        for other in self.tasks:
            if other.running and set(other.action.tables) & set(task.action.tables) and not (other.step.shared and task.step.shared):
                return False
        return True


def _work(endpoint: driver.Endpoint, contract: Contract, options: Options, schedule: _Schedule) -> None:
    try:
        with contextlib.closing(ddl.connect(endpoint, contract, settings=options.settings())) as connection:
            # A server process whose client was killed ends its statement instead of working on.
            driver.rows(connection, "SELECT set_config('client_connection_check_interval', '2s', false) WHERE version() !~* 'msvc|visual|mingw'")
            while (task := schedule.take()) is not None:
                started = time.monotonic()
                _run_step(connection, endpoint.place, task, options)
                schedule.done(task, time.monotonic() - started)
    except BaseException as exc:
        schedule.fail(exc)


def _run_step(connection: driver.Connection, place: str, task: _Task, options: Options) -> None:
    """Run one step; outside CONCURRENTLY, which blocks nobody while it waits, give up locks in time and try again."""
    step = task.step
    timeout = options.lock_timeout if step.transactional else "0"
    doing = f"making the {task.action.kind.replace('_', ' ')} {task.action.object}"
    with driver.database_errors(place, doing):
        driver.rows(connection, f"SET lock_timeout = {literal(timeout)}")
    for attempt in range(1, options.lock_tries + 1):
        try:
            with driver.database_errors(place, doing):
                driver.rows(connection, step.sql)
            return
        except DatabaseError as exc:
            if exc.state == "23505":
                raise exc.instead("two rows have the same key: run playbooks/preflight.yml, which names them") from exc.__cause__
            if exc.state == "23503":
                raise exc.instead("a row refers to one that is not there: run playbooks/validate.yml, which names it") from exc.__cause__
            if exc.state not in _BUSY or not step.transactional:
                raise
            if attempt == options.lock_tries:
                raise exc.instead(
                    f"{_STILL} after {attempt} tries of {options.lock_timeout}: see pg_locks for who holds {', '.join(task.action.tables)},"
                    " end that session and run again"
                ) from exc.__cause__
        time.sleep(min(0.2 * attempt, 5.0))


# Undo.


def plan_drop(connection: driver.Connection, contract: Contract, made: Sequence[Mapping[str, str]]) -> tuple[Action, ...]:
    """Return what drops those objects (each a record of a Built) that still exist, foreign keys first."""
    found = ddl.read(connection, contract)
    present: set[str] = set()
    for table in found.values():
        key = f"{table.schema}.{table.name}"
        names = [item.name for item in table.constraints] + [item.name for item in table.indexes]
        present |= {f"{name} on {key}" for name in names}
    unique = {item["object"]: item for item in made if item["object"] in present and item.get("undo")}
    ordered = sorted(unique.values(), key=lambda item: (-ddl.ORDER.index(item["kind"]), item["object"]))
    return tuple(Action("drop", item["object"], (Step(item["undo"], False),), (item["object"].split(" on ", 1)[1],), undo="") for item in ordered)


def drop(endpoint: driver.Endpoint, contract: Contract, actions: Sequence[Action], options: Options | None = None) -> Outcome:
    """Drop what plan_drop() named, one after the other."""
    started = time.monotonic()
    made: list[Built] = []
    chosen = options or Options()
    for action in actions:  # one by one: a foreign key goes before the key it needs
        run(endpoint, contract, (action,), chosen, made.append)
    return Outcome(tuple(made), time.monotonic() - started)
