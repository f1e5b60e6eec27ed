# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The performance baseline: a slow service fails it, and what cannot be timed says so."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.validate import latency

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.database.test_verify import run
from tests.mutation import world as w


@pytest.fixture
def world(postgres: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    return w.cloned_world(postgres, databases)


def program(folder: Path, text: str, mode: int = 0o755) -> str:
    """Make a program that stands in for pgbench; return its folder."""
    path = folder / "pgbench"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(stat.S_IFREG | mode)
    return str(folder)


def test_a_missing_pgbench_is_one_clear_line(world: w.World, tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match=r"pgbench is missing on this runner; set pg_bin_dir"):
        latency.measure(world.context, str(tmp_path), seconds=1)


def test_a_service_that_lost_an_index_fails_and_the_question_is_named(world: w.World, postgres: PostgresServer) -> None:
    service = world.targets["auth_service"]
    run(service, "ALTER TABLE auth_service.users DROP CONSTRAINT idx_users_email")
    run(
        service,
        "INSERT INTO auth_service.users (id, username, email, password_hash)"
        " SELECT gen_random_uuid(), 'more' || n, 'more' || n || '@example.org', '!' FROM generate_series(1, 150000) AS n",
        "ANALYZE auth_service.users",
    )
    run(world.source, "CREATE INDEX ON auth_user (email)")
    found = latency.measure(world.context, str(postgres.bin_dir), seconds=1, most=3.0)
    assert "log in by email" in [timing.question for timing in found.slower]
    assert not found.passed
    assert any(line.startswith("log in by email: ") and line.endswith(" ms now") for line in found.lines)
    told = json.loads(json.dumps(found.to_dict()))
    assert [(item["question"], item["monolith_ms"] > 0, item["service_ms"] > 0) for item in told["timings"]] == [
        (question, True, True) for question in latency.QUESTIONS
    ]


def test_no_users_are_no_passed_baseline(world: w.World, postgres: PostgresServer) -> None:
    run(world.targets["auth_service"], "TRUNCATE auth_service.users CASCADE")
    found = latency.measure(world.context, str(postgres.bin_dir), seconds=1)
    assert not found.passed
    assert found.verdict == "performance not compared: there are no users"
    assert found.lines == (found.verdict,)


@pytest.mark.parametrize(
    ("text", "mode", "fault"),
    [
        ("exit 3", 0o755, "pgbench ended with 3"),
        ("echo hello", 0o755, "pgbench told no latency"),
        ("exit 0", 0o644, "pgbench cannot be run on this runner (Permission denied)"),
    ],
)
def test_a_pgbench_that_does_not_work_is_one_clear_line(world: w.World, tmp_path: Path, text: str, mode: int, fault: str) -> None:
    with pytest.raises(MigrationError) as refused:
        latency.measure(world.context, program(tmp_path, text, mode), seconds=1)
    assert fault in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_role_that_may_not_read_is_told_by_the_server_that_refuses(world: w.World, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        latency, "QUESTIONS", {"odd": ("SELECT 1 FROM {s}.auth_user WHERE id = {one};", "auth_service", "SELECT 1 / 0 FROM {users} WHERE id = {one};")}
    )
    with pytest.raises(MigrationError, match=r"master_120_auth_service.*pgbench ended with 2") as refused:
        latency.measure(world.context, str(postgres.bin_dir), seconds=1)
    assert "\n" not in str(refused.value)
