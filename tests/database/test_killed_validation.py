# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A validation that is killed for good, by its process, a backend or the server, is gone on with from what it had recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded import server as lab_postgres
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.postgres.quote import ident
from ansible.module_utils.migration.state import control
from ansible.module_utils.migration.validate import run as verify
from ansible.module_utils.migration.validate import slices as scanned
from ansible.module_utils.migration.validate.readers import APPLICATION_NAME
from ansible.modules import migration_validate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.database.test_resumed_validation import same
from tests.database.test_verify import QUICK, ask, lines, run
from tests.mutation import world as w

SMALL = dataclasses.replace(QUICK, piece_rows=10)
ENOUGH = 8  # pieces
PATIENCE = 60.0  # seconds, after which something is broken


@pytest.fixture(scope="module")
def mortal(server_root: Path) -> Iterator[PostgresServer]:
    """A server that may be killed: what it has committed, asynchronously too, it settles as servers in use do."""
    account = process.Account.for_servers()
    settings = {"synchronous_commit": "off", "autovacuum": "off"}
    server = PostgresServer("mortal", server_root / "mortal", lab_postgres.binaries(server_root, account), secrets.token_urlsafe(18), settings, account)
    lab_postgres.create(server)
    lab_postgres.start(server)
    yield server
    lab_postgres.stop(server)


@pytest.fixture
def world(mortal: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    """A world on that server; its records are on another, with an open migration."""

    def make(name: str, template: str) -> Endpoint:
        made = f"{name}_{secrets.token_hex(4)}"
        run(mortal.endpoint(), f"CREATE DATABASE {ident(made)} TEMPLATE {ident(template)}")
        return mortal.endpoint(made)

    world = w.cloned_world(mortal, make)
    for endpoint in (world.source, *world.targets.values()):
        run(endpoint, "ANALYZE")
    context = dataclasses.replace(world.context, control=databases("control"))
    with contextlib.closing(control.connect(context.control)) as records:
        control.plan(records, context.plan.digest, context.plan.fingerprint)
        control.begin(records, context.plan.digest)
    return dataclasses.replace(world, context=context)


def validate(context: Context) -> verify.Verification:
    """Validate as the module does, keeping every piece."""
    with contextlib.closing(control.connect(context.control)) as records:
        live = control.require_open(records, context.plan.digest)
        kept = migration_validate._kept(context, records, live)

        def keep(piece: verify.KeptPiece) -> None:
            control.record(records, migration_validate.PIECE, "read", asdict(piece), migration=live, plan_digest=context.plan.digest)

        return verify.compare(context, w.PLAN_TIME, options=SMALL, keeping=verify.Keeping(kept, keep, seconds=0))


def child(context: Context, outcome: multiprocessing.connection.Connection) -> None:
    """Validate so slowly that it can be hit; this process has the module to itself."""
    read = scanned._read

    def slowly(*given: Any) -> Any:
        time.sleep(0.2)
        return read(*given)

    scanned._read = slowly
    try:
        validate(context)
        outcome.send("ended")
    except MigrationError as exc:
        outcome.send(str(exc))


def pieces(context: Context) -> int:
    return int(ask(context.control, f"SELECT count(*) FROM migration.records WHERE kind = '{migration_validate.PIECE}'"))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def answers(endpoint: Endpoint) -> bool:
    with contextlib.suppress(MigrationError):
        connect(endpoint, application_name="tests").close()
        return True
    return False


def kill(victim: str, module: multiprocessing.process.BaseProcess, server: PostgresServer) -> None:
    if victim == "module":
        os.kill(int(module.pid or 0), signal.SIGKILL)
    elif victim == "backend":
        pid = ask(server.endpoint(), f"SELECT max(pid) FROM pg_stat_activity WHERE application_name = '{APPLICATION_NAME}'")
        os.kill(int(pid), signal.SIGKILL)
    else:
        os.kill(int((server.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)


def wake(victim: str, server: PostgresServer) -> None:
    """Have the server back."""
    if victim == "server":
        until(lambda: not answers(server.endpoint()))
        until(lambda: start(server))
    until(lambda: answers(server.endpoint()))


def start(server: PostgresServer) -> bool:
    with contextlib.suppress(MigrationError):  # while a child of the killed one still lives
        lab_postgres.start(server)
        return True
    return False


@pytest.mark.parametrize("victim", ["module", "backend", "server"])
def test_a_killed_validation_is_gone_on_with_and_tells_the_truth(world: w.World, mortal: PostgresServer, victim: str) -> None:
    fork = multiprocessing.get_context("fork")
    mine, theirs = fork.Pipe()
    module = fork.Process(target=child, args=(world.context, theirs))
    module.start()
    theirs.close()  # so that recv() ends when the child has died
    until(lambda: pieces(world.context) >= ENOUGH)
    kill(victim, module, mortal)
    module.join(PATIENCE)
    assert not module.is_alive()
    if victim != "module":
        said = mine.recv()
        assert "\n" not in said
        assert said.startswith(("mortal", "source", "auth_service", "user_service")), said
    wake(victim, mortal)
    had = pieces(world.context)

    run(world.targets["auth_service"], "UPDATE auth_service.users SET is_active = NOT is_active WHERE username = 'ada'")
    run(world.targets["user_service"], "UPDATE user_service.roles SET is_active = NOT is_active", "UPDATE user_service.roles SET is_active = NOT is_active")
    run(world.targets["user_service"], "VACUUM FULL user_service.profiles")
    run(world.source, "UPDATE users_profile SET city = 'elsewhere' WHERE id = (SELECT max(id) FROM users_profile)")
    found = validate(world.context)
    assert sorted(finding.columns for finding in found.findings) == [("city",), ("is_active",)], lines(found)
    assert " pieces were read by an interrupted run" in found.consistency
    wanted = verify.compare(world.context, w.PLAN_TIME, options=SMALL)
    assert same(found, wanted)
    assert had < pieces(world.context)
