# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time the same questions on the monolith and on the services with pgbench: is anybody served slower than before?

A user is picked by key among some hundred, and the user name or email is looked up by that key in the same statement on
both sides, so no personal value leaves a database.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..context import Context
from ..errors import MigrationError
from ..postgres import driver
from ..postgres.clients import access
from ..postgres.driver import Endpoint
from ..postgres.quote import ident, literal

APPLICATION_NAME = "edulink-migration baseline"
SAMPLE = 200
LEAST_MS = 0.001  # pgbench tells three digits: what took less is taken for that
NEEDED = ("auth_service.users", "auth_service.user_permissions", "auth_service.permissions", "user_service.profiles", "user_service.roles")

# name -> (statement on the monolith, service, statement there); {one} is one of the sampled keys, {s} the monolith's schema.
QUESTIONS: Mapping[str, tuple[str, str, str]] = {
    "log in by user name": (
        "SELECT id, password, is_active FROM {s}.auth_user WHERE username = (SELECT username FROM {s}.auth_user WHERE id = {one});",
        "auth_service",
        "SELECT id, password_hash, is_active FROM {users} WHERE username = (SELECT username FROM {users} WHERE id = {one});",
    ),
    "log in by email": (
        "SELECT id, password, is_active FROM {s}.auth_user WHERE email = (SELECT email FROM {s}.auth_user WHERE id = {one});",
        "auth_service",
        "SELECT id, password_hash, is_active FROM {users} WHERE email = (SELECT email FROM {users} WHERE id = {one});",
    ),
    "load a profile with roles": (
        "SELECT * FROM {s}.users_profile AS p LEFT JOIN {s}.users_role AS r ON r.user_id = p.user_id WHERE p.user_id = {one};",
        "user_service",
        "SELECT * FROM {profiles} AS p LEFT JOIN {roles} AS r ON r.user_id = p.user_id WHERE p.user_id = {one};",
    ),
    "a user's permissions": (
        "SELECT p.codename, t.app_label FROM {s}.auth_permission AS p JOIN {s}.django_content_type AS t ON t.id = p.content_type_id WHERE p.id IN"
        " (SELECT permission_id FROM {s}.auth_user_user_permissions WHERE user_id = {one} UNION SELECT g.permission_id FROM {s}.auth_group_permissions AS g"
        " JOIN {s}.auth_user_groups AS m ON m.group_id = g.group_id WHERE m.user_id = {one});",
        "auth_service",
        "SELECT p.codename, p.content_type FROM {user_permissions} AS h JOIN {permissions} AS p ON p.id = h.permission_id WHERE h.user_id = {one};",
    ),
}


@dataclass(frozen=True)
class Timing:
    """One question's mean latency on both sides, in milliseconds."""

    question: str
    monolith_ms: float
    service_ms: float

    @property
    def ratio(self) -> float:
        """Return how many times as long the service takes."""
        return self.service_ms / max(self.monolith_ms, LEAST_MS)


@dataclass(frozen=True)
class Baseline:
    """All timings; a question fails when the service takes more than `most` times as long and over `floor_ms`."""

    timings: tuple[Timing, ...]
    most: float
    floor_ms: float = 1.0
    unavailable: str = ""

    def in_time(self, timing: Timing) -> bool:
        """Tell whether the service answers a question fast enough."""
        return timing.ratio <= self.most or timing.service_ms <= self.floor_ms

    @property
    def slower(self) -> tuple[Timing, ...]:
        """Return the questions that the services answer too slowly."""
        return tuple(timing for timing in self.timings if not self.in_time(timing))

    @property
    def passed(self) -> bool:
        """Tell whether every question was timed and none is too slow."""
        return not self.slower and not self.unavailable

    @property
    def verdict(self) -> str:
        """Return one line."""
        if self.unavailable:
            return self.unavailable
        limit = f"at most {self.most:g} times the monolith's time, or {self.floor_ms:g} ms"
        return f"{len(self.timings) - len(self.slower)} of {len(self.timings)} questions are answered in time ({limit})"

    @property
    def lines(self) -> tuple[str, ...]:
        """Return a line for each question that fails, or why nothing was timed."""
        return ((self.unavailable,) if self.unavailable else ()) + tuple(
            f"{timing.question}: {timing.monolith_ms:.2f} ms before, {timing.service_ms:.2f} ms now" for timing in self.slower
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what validation.json keeps."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "threshold": self.most,
            "floor_ms": self.floor_ms,
            "timings": [{**asdict(item), "ratio": round(item.ratio, 2), "in_time": self.in_time(item)} for item in self.timings],
        }


def measure(context: Context, bin_dir: str | None, *, seconds: int = 2, most: float = 1.5) -> Baseline:
    """Time every question for some seconds on each side."""
    tables = {target.name: target for target in context.plan.targets}
    if any(name not in tables for name in NEEDED):
        return Baseline((), most, unavailable="performance not compared: the plan does not have the tables that the questions ask")
    program = Path(bin_dir) / "pgbench" if bin_dir else Path("pgbench")
    names = {tables[name].table: tables[name].qualified for name in NEEDED}
    keys = _sample(context.source, f"SELECT id FROM {ident(context.source.schema)}.auth_user ORDER BY id LIMIT {SAMPLE}")
    users = _sample(context.targets["auth_service"], f"SELECT id FROM {tables[NEEDED[0]].qualified} ORDER BY id LIMIT {SAMPLE}")
    if not keys or not users:
        return Baseline((), most, unavailable="performance not compared: there are no users")
    timings = []
    for question, (before, service, now) in QUESTIONS.items():
        one = f"(ARRAY[{','.join(keys)}])[:n]"
        other = f"(ARRAY[{','.join(map(literal, users))}]::uuid[])[:n]"
        first = _pgbench(program, context.source, before.format(s=ident(context.source.schema), one=one), len(keys), seconds)
        second = _pgbench(program, context.targets[service], now.format(one=other, **names), len(users), seconds)
        timings.append(Timing(question, first, second))
    return Baseline(tuple(timings), most)


def _sample(endpoint: Endpoint, statement: str) -> list[str]:
    connection = driver.connect(endpoint, application_name=APPLICATION_NAME, readonly=True, autocommit=True)
    try:
        with driver.database_errors(endpoint.place, "picking users to time"):
            return [str(row[0]) for row in driver.rows(connection, statement)]
    finally:
        connection.close()


def _pgbench(program: Path, endpoint: Endpoint, statement: str, keys: int, seconds: int) -> float:
    """Return the mean latency of a statement in milliseconds."""
    options = "-c default_transaction_read_only=on" + (f" -c role={endpoint.session_role}" if endpoint.session_role else "")
    with tempfile.TemporaryDirectory(prefix="edulink-baseline-") as folder, access(endpoint, APPLICATION_NAME) as way:
        script = Path(folder) / "question.sql"
        script.write_text(f"\\set n random(1, {keys})\n{statement}\n", encoding="utf-8")
        argv = [str(program), "--no-vacuum", "--protocol=prepared", "--client=1", f"--time={seconds}", f"--file={script}"]
        try:
            done = subprocess.run(
                argv,
                env={**way.env, "PGOPTIONS": options},
                pass_fds=way.descriptors,
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds + 60,
            )
        except OSError as exc:
            why = "is missing on this runner" if isinstance(exc, FileNotFoundError) else f"cannot be run on this runner ({exc.strerror})"
            raise MigrationError(f"{program} {why}; set pg_bin_dir to a folder with pgbench, or validate_baseline to false") from exc
        except subprocess.TimeoutExpired as exc:
            raise MigrationError(f"{endpoint.place}: pgbench did not end; the server may be overloaded") from exc
    found = re.search(r"latency average = ([0-9.]+) ms", done.stdout)
    if done.returncode != 0:
        raise MigrationError(f"{endpoint.place}: pgbench ended with {done.returncode}; the role must be able to read the tables that are timed")
    if found is None:
        raise MigrationError(f"{program} told no latency; set pg_bin_dir to a folder with PostgreSQL's own pgbench, or validate_baseline to false")
    return float(found[1])
