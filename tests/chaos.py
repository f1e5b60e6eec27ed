# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill the transfer at random instants and see that running it again ends as an undisturbed run does.

    python -m tests.chaos [--kills 100] [--seed N] [--users 4000]

Victims: the module with its workers, one worker, the source server, a target server, a connection of a worker; in every eighth run
ansible-playbook itself, by SIGKILL or as by Ctrl-C, whose module has to end by itself. A kill counts only while a chunk is open.
After each round (some kills, then a run to the end) both services are compared with those of an undisturbed run, and finished chunks
must not have been carried again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded import server as postgres
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.progress import Progress
from ansible.module_utils.migration.repair.reconcile import reconcile
from ansible.module_utils.migration.schema import build, ddl
from ansible.module_utils.migration.schema.tables import plan_schema
from ansible.module_utils.migration.state import control
from ansible.module_utils.migration.state.limits import Limits
from ansible.module_utils.migration.transfer import run as transfer

from tests.mutation.world import NAMESPACE, SERVICES, fill, read_plan

VICTIMS = ("module", "module", "worker", "source", "auth_service", "user_service", "connection", "connection")
FREE = Limits(cpu_percent=0, memory_percent=0, disk_percent=0)
KILLS_A_ROUND = 5
ANSIBLE_EVERY = 8  # runs
RATE = 30_000  # rows a second, slow enough to be hit
PROJECT = Path(__file__).resolve().parents[1]


@dataclass
class Site:
    """The servers, the context that reaches them, and the content that an undisturbed run gives."""

    servers: dict[str, postgres.PostgresServer]
    context: Context
    wanted: dict[str, str]
    folder: Path
    plan_time: str
    turns: Iterator[int] = field(default_factory=lambda: itertools.count(1))


@contextlib.contextmanager
def site(users: int, seed: int) -> Any:
    """Start three servers (durable, as a kill would show otherwise), fill the monolith, take the reference."""
    account = process.Account.for_servers()
    root = process.new_root("edulink-chaos-")
    bin_dir = postgres.binaries(root, account)
    servers = {
        name: postgres.PostgresServer(name, root / name, bin_dir, "chaos", {"max_connections": "60"}, account) for name in ("source", *SERVICES)
    }
    try:
        for server in servers.values():
            postgres.create(server)
            postgres.start(server)
        fill(servers["source"].endpoint("postgres"), users, seed % 1000 + 1)  # the seed of the data; fill.sql takes small ones
        context = Context(
            plan=read_plan(),
            source=replace(servers["source"].endpoint("postgres"), name="source"),
            targets={name: replace(servers[name].endpoint("postgres"), name=name) for name in SERVICES},
            control=replace(servers["user_service"].endpoint("control"), name="control"),
            namespace=NAMESPACE,
        )
        found = Site(servers, context, {}, root, open_migration(context))
        empty(found)
        carry(found, 500)
        found.wanted = content(context)
        yield found
    finally:
        for server in servers.values():
            with contextlib.suppress(MigrationError):
                postgres.stop(server)
        shutil.rmtree(root, ignore_errors=True)


def open_migration(context: Context) -> str:
    """Record a migration as the phases before the transfer leave it; return its timestamp."""
    driver.rows(driver.connect(replace(context.control, dbname="postgres"), application_name="chaos", autocommit=True), "CREATE DATABASE control")
    with contextlib.closing(control.connect(context.control)) as connection:
        migration = control.plan(connection, context.plan.digest, context.plan.fingerprint)
        control.record(connection, "preflight", "passed", {}, migration=migration, plan_digest=context.plan.digest)
        control.set_snapshot(connection, control.begin(connection, context.plan.digest), "chaos")
    return migration.plan_time


def empty(found: Site) -> None:
    """Drop what a round left and make the tables anew."""
    for name, data in found.context.plan.contracts:
        contract = Contract.from_dict(data)
        connection = ddl.connect(found.context.targets[name], contract)
        driver.rows(connection, f'DROP SCHEMA IF EXISTS migration CASCADE; DROP SCHEMA IF EXISTS "{name}" CASCADE')
        ddl.apply(connection, plan_schema(connection, contract))
        connection.close()


def carry(found: Site, chunk_rows: int) -> transfer.Outcome:
    """Run the transfer to its end in this process."""
    options = transfer.Options("chaos", chunk_rows=chunk_rows, limits=FREE)
    return transfer.run(found.context, found.plan_time, "chaos", options, Progress(None), reconcile)


def content(context: Context) -> dict[str, str]:
    """Return each target's rows as one digest, made by PostgreSQL and this file alone; the ledger is not part of it."""
    found = {}
    for service in context.plan.services:
        connection = driver.connect(context.targets[service], application_name="chaos", autocommit=True)
        for target in context.plan.of(service):
            texts = driver.rows(connection, f"SELECT t::text FROM {target.qualified} AS t ORDER BY t::text COLLATE \"C\"")
            found[target.name] = f"{len(texts)} {hashlib.sha256(repr(texts).encode()).hexdigest()}"
        connection.close()
    return found


def finished_chunks(context: Context) -> dict[tuple[str, int], str]:
    """Return when each finished chunk was finished."""
    found: dict[tuple[str, int], str] = {}
    for service in context.plan.services:
        with contextlib.suppress(Exception):
            connection = driver.connect(context.targets[service], application_name="chaos", autocommit=True)
            for number, at in driver.rows(connection, "SELECT id, finished_at::text FROM migration.chunks WHERE state = 'done'"):
                found[service, number] = at
            connection.close()
    return found


def open_chunk(context: Context) -> list[tuple[str, int]]:
    """Return (service, server process) of workers that are inside a chunk's transaction."""
    found = []
    for service in context.plan.services:
        with contextlib.suppress(Exception):
            connection = driver.connect(context.targets[service], application_name="chaos", autocommit=True)
            found += [
                (service, pid)
                for (pid,) in driver.rows(
                    connection,
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'edulink-migration worker' AND query LIKE 'COPY%%' AND state <> 'idle'",
                )
            ]
            connection.close()
    return found


def attempt(found: Site, chunk_rows: int) -> None:
    """Be the module's process: a group of its own with its workers; slow enough to be hit."""
    os.setpgrp()
    limits = replace(FREE, rows_per_second=RATE)
    with contextlib.suppress(MigrationError):
        transfer.run(found.context, found.plan_time, "chaos", transfer.Options("chaos", chunk_rows=chunk_rows, limits=limits), Progress(None), reconcile)
    os._exit(0)


class AnsibleRun:
    """The same attempt through ansible-playbook; it looks like a process of multiprocessing."""

    def __init__(self, found: Site, chunk_rows: int) -> None:
        plan, play = found.folder / "plan.json", found.folder / "play.yml"
        plan.write_text(json.dumps(found.context.plan.to_dict()), encoding="utf-8")
        context = found.context
        task = {
            "plan": f"{{{{ lookup('ansible.builtin.file', '{plan}') | from_json }}}}",
            "connections": {
                "source": _connection(context.source),
                "targets": [_connection(endpoint) for endpoint in context.targets.values()],
                "control": _connection(context.control),
                "namespace": context.namespace,
            },
            "runner": "ansible",
            "chunk_rows": chunk_rows,
            "limits": {"cpu_percent": 0, "memory_percent": 0, "disk_percent": 0, "rows_per_second": RATE},
        }
        play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [{"name": "Carry", "migration_copy": task}]}]), encoding="utf-8")
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        self._process = subprocess.Popen(
            [program, "-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}", str(play)],
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_LOCAL_TEMP": str(found.folder / "ansible")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pid = self._process.pid
        self.left: list[psutil.Process] = []

    def is_alive(self) -> bool:
        """Tell whether ansible-playbook runs."""
        return self._process.poll() is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for ansible-playbook."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def strike(self, rng: random.Random) -> None:
        """Kill ansible-playbook, or press Ctrl-C."""
        with contextlib.suppress(psutil.Error):
            self.left = psutil.Process(self.pid).children(recursive=True)
        self._process.send_signal(rng.choice((signal.SIGKILL, signal.SIGINT)))


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.status()} {' '.join(process.cmdline())[-200:]}"
    return "a process that has ended since"


def _connection(endpoint: driver.Endpoint) -> dict[str, object]:
    login = {"login_host": endpoint.host, "login_port": endpoint.port, "login_db": endpoint.dbname, "login_user": endpoint.user}
    return {"name": endpoint.name, **login, "login_password": endpoint.password, "ssl_mode": endpoint.sslmode}


def strike(found: Site, module: Any, rng: random.Random) -> bool:
    """Wait for an open chunk, kill somebody, tell whether the kill counts (a chunk was open)."""
    deadline = time.monotonic() + rng.uniform(0.05, 1.2)
    while time.monotonic() < deadline and module.is_alive():
        time.sleep(0.01)
    while module.is_alive():
        open_now = open_chunk(found.context)
        if not open_now:
            continue
        victim = rng.choice(VICTIMS)
        if isinstance(module, AnsibleRun):
            module.strike(rng)
        elif victim == "module":
            os.killpg(module.pid, signal.SIGKILL) if rng.random() < 0.5 else os.kill(module.pid, signal.SIGKILL)
        elif victim == "worker":
            children = Path(f"/proc/{module.pid}/task/{module.pid}/children").read_text(encoding="ascii").split()
            if not children:
                continue
            os.kill(int(rng.choice(children)), signal.SIGKILL)
        elif victim == "connection":
            service, pid = rng.choice(open_now)
            connection = driver.connect(found.context.targets[service], application_name="chaos", autocommit=True)
            driver.rows(connection, "SELECT pg_terminate_backend(%s)", (pid,))
            connection.close()
        else:
            crash(found.servers[victim])
        return True
    return False


def crash(server: postgres.PostgresServer) -> None:
    """Kill -9 a server's postmaster and start it again when its processes are gone."""
    number = postgres.pid(server)
    if number is not None:
        os.kill(number, signal.SIGKILL)
        while postgres.pid(server) == number:
            time.sleep(0.01)
    for _ in range(200):
        with contextlib.suppress(MigrationError):
            postgres.start(server)
            return
        time.sleep(0.1)
    raise SystemExit(f"chaos: {server.name} did not start again")


def round_of_kills(found: Site, kills: int, rng: random.Random) -> tuple[int, int, int]:
    """Kill that often, then run to the end; return kills, resumes and differences."""
    empty(found)
    chunk_rows = rng.choice((100, 300, 1000))
    done = resumes = 0
    before: dict[tuple[str, int], str] = {}
    repeated = 0
    left: list[psutil.Process] = []
    while done < kills:
        module: Any
        if next(found.turns) % ANSIBLE_EVERY == 0:
            module = AnsibleRun(found, chunk_rows)
        else:
            module = multiprocessing.get_context("fork").Process(target=attempt, args=(found, chunk_rows))
            module.start()
        hit = strike(found, module, rng)
        module.join(timeout=60)
        if module.is_alive():
            os.kill(module.pid, signal.SIGKILL) if isinstance(module, AnsibleRun) else os.killpg(module.pid, signal.SIGKILL)
            module.join()
            repeated += 1
            print("chaos: the module hung after a kill", flush=True)
        left += module.left if isinstance(module, AnsibleRun) else []
        now = finished_chunks(found.context)
        repeated += sum(now.get(key, at) != at for key, at in before.items())
        before = {**before, **now}
        if not hit:
            break
        done += 1
        resumes += 1
    carry(found, chunk_rows)
    _, staying = psutil.wait_procs(left, timeout=60)
    if staying:
        print(f"chaos: of a killed Ansible did not end: {[_name(process) for process in staying]}", flush=True)
        repeated += len(staying)
    now = finished_chunks(found.context)
    repeated += sum(now.get(key) != at for key, at in before.items())
    for name, data in found.context.plan.contracts:
        build.build(found.context.targets[name], Contract.from_dict(data))
    after = content(found.context)
    differing = [name for name, digest in found.wanted.items() if after.get(name) != digest]
    if differing or repeated:
        print(f"chaos: differing tables {differing}, chunks carried again {repeated}", flush=True)
    return done, resumes, len(differing) + repeated


def campaign(kills: int, seed: int, users: int) -> int:
    """Run the campaign and print its closing line; return the differences."""
    rng = random.Random(seed)
    print(f"chaos: {kills} kills, seed {seed}, {users} users", flush=True)
    total = resumes = differences = 0
    with site(users, seed) as found:
        while total < kills:
            done, again, different = round_of_kills(found, min(KILLS_A_ROUND, kills - total), rng)
            total, resumes, differences = total + done, resumes + again, differences + different
            print(f"chaos: {total} of {kills} kills, {differences} differences", flush=True)
    print(f"{total} kills, {resumes} resumes, {differences} differences")
    return differences


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--users", type=int, default=4000)
    chosen = parser.parse_args()
    raise SystemExit(1 if campaign(chosen.kills, chosen.seed, chosen.users) else 0)


if __name__ == "__main__":
    main()
