# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions carried against the same rows piped as they are: `cases(world)`, or alone

    python -m tests.bench.sessions [SESSIONS ...]        (BENCH_REPEATS, 3)

The limit is 3 times the piping, and memory that does not grow with the number of sessions.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis
import yaml

from tests.bench.meter import Peak
from tests.bench.world import NAMESPACE, PLAN_TIME, World, empty_targets, world  # makes the modules importable

# isort: split
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair.reconcile import reconcile
from ansible.module_utils.migration.sessions.cache_layout import Layout
from ansible.module_utils.migration.sessions.carry import Rules, carry
from ansible.module_utils.migration.sessions.ledger import Ledger
from ansible.module_utils.migration.sessions.store import Address, StoreOptions, open_store
from ansible.module_utils.migration.sessions.users import MigratedUsers
from ansible.module_utils.migration.state.limits import Limits
from ansible.module_utils.migration.transfer import run as transfer

BATCH = 2000
REPEATS = int(os.environ.get("BENCH_REPEATS", "3"))
Job = Callable[[World, StoreOptions, str], int]


def raw(found: World, options: StoreOptions, secret: str) -> int:
    """Pipe key, text and end as they are: a server-side cursor into pipelines of SET ... EXAT."""
    del secret
    source = driver.connect(found.context.source, application_name="bench", readonly=True)
    store = redis.Redis(options.hosts[0].host, options.hosts[0].port, password=options.password, db=options.db)
    count = 0
    with contextlib.closing(source), contextlib.closing(store), source.cursor(name="bench") as cursor:
        cursor.execute("SELECT session_key, session_data, floor(extract(epoch FROM expire_date))::bigint FROM django_session WHERE expire_date > now()")
        while batch := cursor.fetchmany(BATCH):
            pipe = store.pipeline(transaction=False)
            for key, data, ends in batch:
                pipe.set(key, data, exat=ends)
            pipe.execute()
            count += len(batch)
    return count


def carried(found: World, options: StoreOptions, secret: str) -> int:
    """The phase."""
    return _phase(found, options, Rules(secret))


def carried_anew(found: World, options: StoreOptions, secret: str) -> int:
    """The phase for a service with another secret: every hash is checked and made again."""
    return _phase(found, options, Rules(secret, service_secret_key="another secret of the service"))


def _phase(found: World, options: StoreOptions, rules: Rules) -> int:
    @contextlib.contextmanager
    def crew() -> Iterator[tuple[MigratedUsers, Ledger]]:
        target = driver.connect(found.context.targets["auth_service"], application_name="bench", readonly=True, autocommit=True)
        with contextlib.closing(target), contextlib.closing(open_store(options)) as store:
            yield MigratedUsers(target, found.context.plan, NAMESPACE), Ledger(store, Layout())

    source = driver.connect(found.context.source, application_name="bench", readonly=True)
    with contextlib.closing(source), crew() as (users, ledger):
        return carry(source, "public", users, ledger, rules, write=True, crew=crew).carried


def _child(job: Job, found: World, options: StoreOptions, secret: str, answers: Any) -> None:
    started = time.monotonic()
    count = job(found, options, secret)
    answers.put((count, time.monotonic() - started))


def measure(job: Job, found: World, options: StoreOptions, secret: str, *, flush: bool = True) -> tuple[int, float, float]:
    """Run a job in a process of its own, into an empty store; return sessions, seconds and MiB at the peak, of all its processes together."""
    if flush:
        with contextlib.closing(redis.Redis(options.hosts[0].host, options.hosts[0].port, password=options.password, db=options.db)) as store:
            store.flushdb()
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=_child, args=(job, found, options, secret, answers))
    child.start()
    peak = Peak(child.pid or 0)
    try:
        count, seconds = answers.get(timeout=3600)
    finally:
        peak.stop()
        child.join()
    return count, seconds, peak.mib


def cases(found: World, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Return a row for each case: sessions, median seconds, rate, peak MiB, and the time against the piping. The users are migrated already."""
    lab = yaml.safe_load((found.inventory / "group_vars" / "all" / "lab.yml").read_text(encoding="utf-8"))
    address = lab["session_store_hosts"][0]
    options = StoreOptions((Address(address["host"], address["port"]),), password=lab["session_store_password"])
    made = []
    plain = 0.0
    jobs: tuple[tuple[str, Job, bool], ...] = (
        ("raw values piped", raw, True),
        ("sessions carried, other secret", carried_anew, True),
        ("sessions carried", carried, True),
        ("sessions carried, again (nothing to do)", carried, False),
    )
    secret = lab["sessions_secret_key"]
    measure(raw, found, options, secret)  # not counted: it warms the source's cache
    rounds = [[measure(job, found, options, secret, flush=flush) for _, job, flush in jobs] for _ in range(repeats)]
    for index, (name, _, _) in enumerate(jobs):
        runs = [done[index] for done in rounds]
        seconds = statistics.median(run[1] for run in runs)
        plain = plain or seconds
        made.append(
            {
                "case": name,
                "rows": runs[0][0],
                "seconds": round(seconds, 3),
                "rows_per_second": round(runs[0][0] / seconds),
                "peak_rss_mib": round(max(run[2] for run in runs)),
                "against_raw": round(seconds / plain, 2),
            }
        )
    return made


def main() -> None:
    """Measure alone."""
    for sessions in map(int, sys.argv[1:] or ["100000"]):
        with world(users=5000, group_permissions=3, sessions=sessions) as found:
            empty_targets(found)
            unlimited = Limits(cpu_percent=0, memory_percent=0, disk_percent=0)
            transfer.run(found.context, PLAN_TIME, "bench", transfer.Options("bench", limits=unlimited), Progress(None), reconcile)
            for row in cases(found):
                print(row, flush=True)


if __name__ == "__main__":
    main()
