# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rehearse the migration and its way back in a throw-away copy of the services, on their own servers.

The copies and a control database of their own have the suffix in their names, and nothing without it is written to but the
record of the rehearsal. The monolith is read as in the real thing.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..context import Context
from ..errors import MigrationError
from ..postgres import clients, content_digest, databases, driver
from ..postgres.content_digest import differences, in_words
from ..postgres.driver import Endpoint
from ..postgres.quote import qualified
from ..snapshot import manifest, retention, take
from ..snapshot.dump import DumpOptions, dump, make_folder
from ..snapshot.restore import RestoreOptions, content, prove, read_back, restore
from ..state import control, gates
from ..state.control import Record
from ..state.lock import lock
from . import delete_rows

KIND = "rehearse"
NAME_LIMIT = 63
_MADE = ("restored", "migrated", "proof_source", "proof_target")  # what snapshots and rollbacks make of a database


@dataclass(frozen=True)
class RehearseOptions:
    """The suffix of the copies' names, a folder for their snapshots, how to dump and restore."""

    suffix: str
    root: Path
    dump: DumpOptions = field(default_factory=DumpOptions)
    restore: RestoreOptions = field(default_factory=RestoreOptions)


def copies(context: Context, suffix: str) -> Context:
    """Return the same context with the copies in place of services and control database."""
    if not suffix:
        raise MigrationError("a rehearsal needs a suffix for the names of its databases; set rehearse_suffix")
    for endpoint in (*context.targets.values(), context.control):
        if len((endpoint.dbname + suffix).encode()) > NAME_LIMIT:
            # PostgreSQL would cut the name, and it would be that of another database.
            raise MigrationError(f"{endpoint.dbname}{suffix} is longer than a database's name may be ({NAME_LIMIT} bytes); choose a shorter rehearse_suffix")
    targets = {name: replace(endpoint, dbname=endpoint.dbname + suffix) for name, endpoint in context.targets.items()}
    return replace(context, targets=targets, control=replace(context.control, dbname=context.control.dbname + suffix))


def would(context: Context, options: RehearseOptions) -> list[str]:
    """Return what begin() would make, or what it would refuse to begin without."""
    scratch = copies(context, options.suffix)
    with (
        contextlib.closing(control.connect(context.control, readonly=True)) as records,
        driver.database_errors(context.control.place, "reading the migration's records"),
    ):
        try:
            _require_none_open(records)
        except MigrationError as exc:
            return [gates.would_refuse(exc)]
    pairs = [*((context.targets[name], scratch.targets[name]) for name in context.plan.services), (context.control, scratch.control)]
    return [f"would make {copy.dbname} beside {real.dbname}, walk the whole migration and its rollback there, then drop it" for real, copy in pairs]


def begin(context: Context, options: RehearseOptions) -> list[str]:
    """Make the copies anew and record that a rehearsal has begun."""
    scratch = copies(context, options.suffix)
    with (
        contextlib.closing(control.connect(context.control)) as records,
        driver.database_errors(context.control.place, "keeping the migration's records"),
        lock(records, KIND),
    ):
        _require_none_open(records)
        _settle(records, scratch, options)
        control.record(records, KIND, "begun", {"suffix": options.suffix}, plan_digest=context.plan.digest)
        _drop(scratch, options)
        lines = [_copy(context.targets[name], scratch.targets[name], options) for name in context.plan.services]
        with contextlib.closing(databases.admin(context.control, options.restore.maintenance_db)) as connection:
            like = databases.read(connection, context.control.dbname)
        databases.create(context.control, options.restore.maintenance_db, scratch.control.dbname, like)
    return lines


def _require_none_open(records: driver.Connection) -> None:
    live = control.current(records)
    if live is not None and live.state == "open":
        raise MigrationError(
            f"migration {live.run_id} is open, so the services are not in the state that a rehearsal starts from;"
            " rehearse before it or after its rollback"
        )


def _settle(records: driver.Connection, scratch: Context, options: RehearseOptions) -> None:
    """Say on record how the rehearsal before ended; MigrationError when databases of these names are not a rehearsal's."""
    last = next((item for item in control.history(records, kind=KIND) if item.outcome in ("begun", "passed", "failed")), None)
    if last is not None and last.outcome == "begun":
        detail = {"error": f"the rehearsal begun at {last.recorded_at:%Y-%m-%d %H:%M} UTC was not walked to its end", "suffix": last.detail["suffix"]}
        control.record(records, KIND, "failed", detail, plan_digest=last.plan_digest)
    if last is not None and last.outcome != "passed" and last.detail.get("suffix") == options.suffix:
        return  # what bears these names is what that rehearsal left
    for endpoint in (*scratch.targets.values(), scratch.control):
        with contextlib.closing(databases.admin(endpoint, options.restore.maintenance_db)) as connection:
            if databases.exists(connection, endpoint.dbname):
                raise MigrationError(
                    f"{endpoint.place}: the database exists already, and no rehearsal has left it: a rehearsal would drop it;"
                    " rename it, or choose another rehearse_suffix"
                )


def _copy(real: Endpoint, scratch: Endpoint, options: RehearseOptions) -> str:
    """Make a copy of a service by dump and restore, since others may be connected to it."""
    with contextlib.closing(databases.admin(real, options.restore.maintenance_db)) as connection:
        major = connection.server_version // 10000
    chosen = clients.choose(clients.candidates(options.dump.bin_dir), major, real.place, options.dump.bin_dir)
    make_folder(options.root)
    with retention.passing(options.root) as place:
        dumped = dump(real, "target", place, chosen, options.dump, lambda table, done, total: None)
        restore(real, dumped, place / real.name, scratch.dbname, options.restore)
        lines = prove(real, dumped, place / real.name, scratch.dbname, options.restore)
    if lines:
        raise MigrationError(
            f"{real.place}: its copy {scratch.dbname} is not the same: {in_words(lines)}"
            "; see whether somebody writes to the original, then run playbooks/rehearse.yml again"
        )
    return f"{scratch.dbname} is a copy of {real.dbname}"


def damage(context: Context, options: RehearseOptions) -> list[str]:
    """Break the migrated copies as a bad day would: a table is dropped, another emptied, in each service."""
    scratch = copies(context, options.suffix)
    lines = []
    for service in context.plan.services:
        endpoint = scratch.targets[service]
        with (
            contextlib.closing(scratch.connect_target(service, databases.APPLICATION_NAME)) as connection,
            driver.database_errors(endpoint.place, "breaking tables"),
        ):
            _only_a_copy(connection, options.suffix)
            ordered = delete_rows.children_first(connection, [item for item in context.plan.of(service) if not item.bookkeeping])
            driver.rows(connection, f"DROP TABLE {ordered[0].qualified} CASCADE")
            lines.append(f"{endpoint.dbname}: {ordered[0].schema}.{ordered[0].table} dropped")
            for item in ordered[1:2]:
                driver.rows(connection, f"TRUNCATE {item.qualified} CASCADE")
                lines.append(f"{endpoint.dbname}: {item.schema}.{item.table} emptied")
            connection.commit()
    return lines


def check(context: Context, options: RehearseOptions) -> list[str]:
    """Compare the rolled back copies with the manifest of their snapshot."""
    scratch = copies(context, options.suffix)
    with contextlib.closing(control.connect(scratch.control, readonly=True)) as records:
        taken = next((item for item in control.history(records, kind=take.KIND) if item.outcome == "passed"), None)
        if taken is None or control.current(records) is not None:
            raise MigrationError("the rehearsal's rollback has not ended its migration; look at the play before this one")
    read = manifest.read(Path(taken.detail["folder"]), taken.detail["manifest_sha256"])
    lines = []
    for service in context.plan.services:
        wanted, found = read.database(service), content(scratch.targets[service])
        faults = differences(wanted.content, found)
        if faults:
            raise _failed(context, f"{scratch.targets[service].dbname} after the rollback is not as in its snapshot: {in_words(faults)}", options.suffix)
        lines.append(f"{scratch.targets[service].dbname} is as in its snapshot, {len(found.tables)} tables")
    return lines


def finish(context: Context, options: RehearseOptions) -> list[str]:
    """Judge the whole, record it, drop the copies."""
    scratch = copies(context, options.suffix)
    with contextlib.closing(control.connect(scratch.control, readonly=True)) as records:
        walked = list(reversed(control.history(records, limit=1000)))
        ended = next((item for item in walked if (item.kind, item.outcome) == ("rollback", "passed")), None)
        validated = [item for item in walked if item.kind.startswith("valid")]
        first = driver.scalar(records, "SELECT run_id FROM migration.migrations WHERE state = 'rolled_back' ORDER BY id DESC LIMIT 1")
    if ended is None or first is None:
        raise _failed(context, "no rollback was rehearsed", options.suffix)
    if not validated or validated[-1].outcome != "passed" or validated[-1].id < ended.id:
        raise _failed(context, "the migration after the rollback was not validated", options.suffix)
    rows = 0
    for service in context.plan.services:
        rows += _same_ids(context, scratch, service, first, options.suffix)
    with contextlib.closing(control.connect(context.control)) as records:
        begun = next((item for item in control.history(records, kind=KIND) if item.outcome == "begun"), None)
        if begun is None:
            raise MigrationError("no rehearsal was begun; run playbooks/rehearse.yml from its start")
        seconds = float(driver.scalar(records, "SELECT extract(epoch FROM clock_timestamp() - %s)", (begun.recorded_at,)))
        detail = {"seconds": round(seconds, 1), "ids": rows, "suffix": options.suffix, "steps": steps(begun, walked)}
        _drop(scratch, options)
        control.record(records, KIND, "passed", detail, plan_digest=context.plan.digest)
    return [f"rehearsed in {seconds:.0f} s: migrated, broken, rolled back, proven, migrated again with the same {rows:,} ids"]


def steps(begun: Record, walked: list[Record]) -> list[Mapping[str, Any]]:
    """Return each step of the rehearsal with the seconds since its begin."""
    return [{"step": item.kind, "outcome": item.outcome, "at": round((item.recorded_at - begun.recorded_at).total_seconds(), 1)} for item in walked]


def _same_ids(context: Context, scratch: Context, service: str, first: str, suffix: str) -> int:
    """Compare the id maps of the migration before the rollback, in the kept database, and of the one after; return their rows."""
    if not any(item.bookkeeping and item.table == "id_map" for item in context.plan.of(service)):
        return 0
    endpoint = scratch.targets[service]
    kept = replace(endpoint, dbname=databases.derived(endpoint.dbname, "migrated", first))
    found = []
    for place in (kept, endpoint):
        with contextlib.closing(driver.connect(place, application_name=databases.APPLICATION_NAME, readonly=True)) as connection:
            columns = f"(SELECT entity, source_key, id FROM {qualified('migration', 'id_map')}) AS src"
            found.append(driver.rows(connection, content_digest.digest_sql("convert_to(ROW(src.*)::text, 'UTF8')", columns))[0])
    if found[0] != found[1]:
        raise _failed(context, f"the second migration gave {service} other ids than the first; did the monolith's users change meanwhile?", suffix)
    return int(found[0][0])


def _failed(context: Context, text: str, suffix: str) -> MigrationError:
    with contextlib.suppress(Exception), contextlib.closing(control.connect(context.control)) as records:
        control.record(records, KIND, "failed", {"error": text, "suffix": suffix}, plan_digest=context.plan.digest)
    return MigrationError(f"the rehearsal failed: {text}; its databases stay until the next rehearsal")


def _only_a_copy(connection: driver.Connection, suffix: str) -> None:
    name = str(driver.scalar(connection, "SELECT current_database()"))
    if not name.endswith(suffix):
        raise MigrationError(f"{name} is not a copy (its name does not end in {suffix}); a rehearsal breaks only copies")


def _drop(scratch: Context, options: RehearseOptions) -> None:
    """Drop the copies, what rollbacks made of them, and their snapshots, which hold personal data; the control database, which knows them, last."""
    walked = _walked(scratch, options)
    run_ids = [run_id for run_id, _ in walked]
    for run_id, snapshot in walked:
        for root in {options.root, *([Path(snapshot).parent] if snapshot else [])}:
            for folder in root.glob(f"{run_id}*"):
                shutil.rmtree(folder, ignore_errors=True)
    for endpoint in (*scratch.targets.values(), scratch.control):
        own = {databases.derived(name, what, run_id) for name in (endpoint.dbname, scratch.source.dbname) for what in _MADE for run_id in run_ids}
        own |= {read_back(name) for name in own}
        with contextlib.closing(databases.admin(endpoint, options.restore.maintenance_db)) as connection:
            found = driver.rows(connection, "SELECT datname FROM pg_database WHERE datname = ANY(%s)", ([*own, endpoint.dbname],))
        for (name,) in sorted(found, reverse=True):
            databases.drop(endpoint, options.restore.maintenance_db, name)


def _walked(scratch: Context, options: RehearseOptions) -> list[tuple[str, str | None]]:
    """Return the migrations of the last rehearsal and where their snapshots are, from its own control database."""
    with contextlib.closing(databases.admin(scratch.control, options.restore.maintenance_db)) as connection:
        if not databases.exists(connection, scratch.control.dbname):
            return []
    with contextlib.closing(control.connect(scratch.control, readonly=True)) as records:
        if driver.scalar(records, "SELECT to_regclass('migration.migrations')") is None:
            return []
        walked = driver.rows(records, "SELECT run_id, snapshot FROM migration.migrations")
        return [(control.checked_run_id(str(run_id)), snapshot) for run_id, snapshot in walked]
