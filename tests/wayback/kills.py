# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill -9 at each step: how the services stand at once, and that the same playbook ends the work afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from ansible.module_utils.migration.postgres import clients, content_digest, databases, driver
from ansible.module_utils.migration.rollback import delete_rows, rehearsal, rename
from ansible.module_utils.migration.rollback import run as rollback
from ansible.module_utils.migration.rollback.rehearsal import RehearseOptions
from ansible.module_utils.migration.rollback.run import AS_BEFORE, AS_SNAPSHOT, WITHOUT_ROWS
from ansible.module_utils.migration.snapshot import manifest, restore, take
from ansible.module_utils.migration.state import control, rolled_back

from tests.conftest import PROJECT
from tests.walk.environment import SERVICES, Walk, ask, die_in, dying
from tests.walk.fixtures import project_plan, services_server, walk  # noqa: F401

TABLE = PROJECT / "artifacts" / "wayback" / "kills.md"
BOTH_BEFORE, BOTH_BACK = (AS_BEFORE, AS_BEFORE), (AS_SNAPSHOT, AS_SNAPSHOT)
BOTH_WITHOUT = (WITHOUT_ROWS, WITHOUT_ROWS)


@dataclass(frozen=True)
class Kill:
    """Where to kill: the n-th call of a function, before or after its work; how the services stand then."""

    step: str
    module: Any
    function: str
    call: int
    after: bool
    stand: tuple[str, str] = BOTH_BEFORE


SNAPSHOT = (
    Kill("before pg_dump of the monolith", clients, "run", 1, False),
    Kill("while the tables are digested", content_digest, "read_table", 3, False),
    Kill("after pg_dump of the monolith", clients, "run", 1, True),
    Kill("after the roles of the monolith", clients, "run", 2, True),
    Kill("after the last pg_dump", take, "dump", 3, True),
    Kill("before the manifest is written", manifest, "write", 1, False),
    Kill("after the manifest is written", manifest, "write", 1, True),
    Kill("after the first scratch database is made", databases, "create", 1, True),
    Kill("after pg_restore into the first scratch database", clients, "run", 7, True),
    Kill("after the comparison of the second", take, "prove", 2, True),
    Kill("before the last scratch database is dropped", databases, "drop", 6, False),
    Kill("before the folder's files are compared", manifest, "check_files", 1, False),
    Kill("before the snapshot is recorded", control, "set_snapshot", 1, False),
    Kill("after the snapshot is recorded", control, "set_snapshot", 1, True),
)
DATABASES = (
    Kill("after the first new database is made", databases, "create", 1, True),
    Kill("before pg_restore", restore.clients, "run", 1, False),
    Kill("after pg_restore", restore.clients, "run", 1, True),
    Kill("after the first copy is proven", restore, "prove", 1, True),
    Kill("before grants and settings of the second", databases, "dress", 2, False),
    Kill("after rows of others were looked for", rollback.native, "unaccounted", 2, True),
    Kill("after the first evidence is written", rollback, "export_evidence", 1, True),
    Kill("before the first exchange", rename, "exchange", 1, False),
    Kill("between the two renames of the first exchange", driver, "rows", 1, True),
    Kill("after the first exchange", rename, "exchange", 1, True, (AS_SNAPSHOT, AS_BEFORE)),
    Kill("after the second exchange", rename, "exchange", 2, True, BOTH_BACK),
    Kill("before the migration is closed", control, "close", 1, False, BOTH_BACK),
    Kill("after the migration is closed", control, "close", 1, True, BOTH_BACK),
)
ONE = (
    Kill("after pg_restore", restore.clients, "run", 1, True),
    Kill("before the exchange", rename, "exchange", 1, False),
    Kill("after the exchange", rename, "exchange", 1, True, (AS_BEFORE, AS_SNAPSHOT)),
)
DATA = (
    Kill("when the transfer is shut out", delete_rows, "_shut_out_transfer", 1, True),
    Kill("with the ids of two tables loaded", delete_rows, "_load_ids", 2, True),
    Kill("before the ledger of the first service is renamed", rolled_back, "kept_schema", 4, False),
    Kill("after the first service", delete_rows, "remove", 1, True, (WITHOUT_ROWS, AS_BEFORE)),
    Kill("after the second service", delete_rows, "remove", 2, True, BOTH_WITHOUT),
    Kill("before the migration is closed", control, "close", 1, False, BOTH_WITHOUT),
)
REHEARSAL = (
    Kill("after the first copy", rehearsal, "_copy", 1, True),
    Kill("after the snapshot of the copies", take, "take", 1, True),
    Kill("after the damage", rehearsal, "damage", 1, True),
    Kill("after the first exchange", rename, "exchange", 1, True),
    Kill("before the copies are compared", rehearsal, "check", 1, False),
    Kill("after the copies are dropped", rehearsal, "_drop", 2, True),
)


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """The kill table, written at the end."""
    lines: list[str] = []
    yield lines
    head = "| killed | auth_service | user_service | on record | run again |\n| --- | --- | --- | --- | --- |\n"
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(head + "".join(lines), encoding="utf-8")


def named(kills: tuple[Kill, ...]) -> Any:
    return pytest.mark.parametrize("kill", kills, ids=lambda kill: kill.step)


def struck(kill: Kill, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
    """Run the work in a process that is killed there."""
    with monkeypatch.context() as patch:
        deadly = dying(getattr(kill.module, kill.function), kill.call, after=kill.after)
        if kill.module is driver:  # the rename and nothing else
            real = driver.rows
            patch.setattr(driver, "rows", lambda place, text, *more: (deadly if " RENAME TO " in text else real)(place, text, *more))
        else:
            patch.setattr(kill.module, kill.function, deadly)
        die_in(work)


def stand(place: Walk, run_id: str) -> tuple[str, ...]:
    """Return how the services stand, by their tables alone."""
    found = []
    for service in SERVICES:
        content = place.content(service)
        mapped = {target.qualified.replace('"', "") for target in place.context.plan.of(service) if not target.bookkeeping}
        rows = sum(int(text.split()[0]) for name, text in content.items() if name in mapped)
        ledger = any(name.startswith("migration.") for name in content)
        found.append(AS_SNAPSHOT if not content else AS_BEFORE if rows and ledger else WITHOUT_ROWS if not rows and not ledger else "between")
    return tuple(found)


def whole(place: Walk) -> dict[str, dict[str, str]]:
    return {service: place.content(service) for service in SERVICES}


def on_record(place: Walk, kind: str) -> str:
    return ", ".join(dict.fromkeys(item.outcome for item in reversed(place.history(kind)))) or "nothing"


def clean(place: Walk) -> None:
    """Nothing is left but snapshots, evidence, services and the kept databases."""
    assert not [name for name in place.databases() if "_proof_" in name or "_restored_" in name]
    assert ask(place.superuser, f"SELECT count(*) FROM pg_database WHERE datname ~ '^{place.monolith.dbname}_proof'") == 0
    assert not [path for path in place.root.rglob("*") if ".partial-" in path.name or ".passing-" in path.name]


@named(SNAPSHOT)
def test_snapshot(walk: Walk, monkeypatch: pytest.MonkeyPatch, table: list[str], kill: Kill) -> None:  # noqa: F811
    before = whole(walk)
    struck(kill, monkeypatch, lambda: take.take(walk.context, walk.taking(proof=True)))
    assert whole(walk) == before
    migration = walk.migration()
    assert migration is not None
    pinned = migration.snapshot is not None
    assert pinned == (kill.function == "set_snapshot" and kill.after)
    recorded = on_record(walk, take.KIND)
    taken = take.take(walk.context, walk.taking(proof=True))
    assert walk.history(take.PROOF)[0].outcome == "passed"
    assert not take.take(walk.context, walk.taking(proof=True)).changed
    clean(walk)
    table.append(f"| snapshot: {kill.step} | untouched | untouched | {recorded} | {'verified' if pinned or not taken.changed else 'taken and proven'} |\n")


def carried(place: Walk) -> str:
    """Snapshot and transfer; return the migration's name."""
    run_id = take.take(place.context, place.taking()).run_id
    place.carry()
    return run_id


def back(place: Walk, **changes: Any) -> rollback.RolledBack:
    done = rollback.roll_back(place.context, place.rolling(**changes))
    if done.complete:
        rollback.close(place.context, place.rolling(**changes))
    return done


def strike_rollback(place: Walk, monkeypatch: pytest.MonkeyPatch, table: list[str], kill: Kill, what: str, end: tuple[str, str], **changes: Any) -> None:
    run_id = carried(place)
    before = whole(place)
    struck(kill, monkeypatch, lambda: back(place, **changes))
    found = stand(place, run_id)
    assert found == kill.stand
    now = whole(place)
    assert all(now[service] == before[service] for service, how in zip(SERVICES, found, strict=True) if how == AS_BEFORE)
    recorded = on_record(place, rollback.KIND)
    back(place, **changes)
    assert stand(place, run_id) == end
    if changes.get("services"):
        back(place)
    assert place.migration() is None
    clean(place)
    states = next(item for item in place.history(rollback.KIND) if item.outcome == "passed").detail["states"]
    assert tuple(states.values()) == stand(place, run_id)
    table.append(f"| {what}: {kill.step} | {found[0]} | {found[1]} | {recorded} | {' / '.join(dict.fromkeys(end))} |\n")


@named(DATABASES)
def test_rollback(walk: Walk, monkeypatch: pytest.MonkeyPatch, table: list[str], kill: Kill) -> None:  # noqa: F811
    strike_rollback(walk, monkeypatch, table, kill, "rollback", BOTH_BACK)


@named(ONE)
def test_rollback_of_one_service(walk: Walk, monkeypatch: pytest.MonkeyPatch, table: list[str], kill: Kill) -> None:  # noqa: F811
    strike_rollback(walk, monkeypatch, table, kill, "rollback of user_service", (AS_BEFORE, AS_SNAPSHOT), services=("user_service",))


@named(DATA)
def test_rollback_of_data(walk: Walk, monkeypatch: pytest.MonkeyPatch, table: list[str], kill: Kill) -> None:  # noqa: F811
    strike_rollback(walk, monkeypatch, table, kill, "rollback_scope=data", BOTH_WITHOUT, scope="data")


def options(place: Walk) -> RehearseOptions:
    return RehearseOptions("_rehearsal", place.root / "rehearsal", place.taking().dump, place.restoring())


def rehearsed(place: Walk) -> None:
    """Walk a rehearsal as its playbook does."""
    chosen = options(place)
    rehearsal.begin(place.context, chosen)
    copy = replace(place, context=rehearsal.copies(place.context, chosen.suffix), root=chosen.root)
    for last in (False, True):
        copy.pass_preflight()
        take.take(copy.context, copy.taking(proof=True))
        copy.carry()
        if not last:
            rehearsal.damage(place.context, chosen)
            back(copy)
            rehearsal.check(place.context, chosen)
    records = control.connect(copy.context.control)
    control.record(records, "validate", "passed", {})
    records.close()
    rehearsal.finish(place.context, chosen)


@named(REHEARSAL)
def test_rehearsal(walk: Walk, monkeypatch: pytest.MonkeyPatch, table: list[str], kill: Kill) -> None:  # noqa: F811
    before = whole(walk)
    struck(kill, monkeypatch, lambda: rehearsed(walk))
    assert whole(walk) == before
    recorded = on_record(walk, rehearsal.KIND)
    rehearsed(walk)
    assert [item.outcome for item in reversed(walk.history(rehearsal.KIND))] == ["begun", "failed", "begun", "passed"]
    assert whole(walk) == before
    assert not [name for name in walk.databases() if "_rehearsal" in name]
    assert ask(walk.superuser, f"SELECT count(*) FROM pg_database WHERE datname = '{walk.context.control.dbname}_rehearsal'") == 0
    assert list((walk.root / "rehearsal").iterdir()) == [], "no personal data is left"
    table.append(f"| rehearsal: {kill.step} | untouched | untouched | {recorded} | rehearsed anew |\n")
