# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What validation is measured against: the cheapest scan of both sides, sorted streams compared by hand, and itself with differences.

The targets are filled and have their keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.migration.plan.model import Part, Target
from ansible.module_utils.migration.postgres.driver import Connection, connect, rows
from ansible.module_utils.migration.postgres.quote import ident
from ansible.module_utils.migration.validate.readers import SETTINGS

from tests.bench.cases import Result, phase
from tests.bench.world import PLAN_TIME, World, statement

# A flag of each large table: inverting it twice leaves the row as it was.
FLAGS = (
    ("auth_service", "auth_service.users", "is_active"),
    ("user_service", "user_service.profiles", "is_public"),
    ("user_service", "user_service.roles", "is_active"),
    ("user_service", "user_service.student_profiles", "is_seeking_internship"),
)


def differing(found: World, count: int) -> Result:
    """Validate while so many rows, spread over the large tables, have a wrong flag."""
    with _wrong(found, count):
        result = phase(found, "validate-auto")
    if result["findings"] != count:
        raise SystemExit(f"bench: {result['findings']:.0f} of {count} differences were found")
    return result


@contextlib.contextmanager
def _wrong(found: World, count: int) -> Iterator[None]:
    def invert() -> None:
        for number, (service, table, flag) in enumerate(FLAGS):
            share = count // len(FLAGS) + (number < count % len(FLAGS))
            statement(found.context.targets[service], f"UPDATE {table} SET {flag} = NOT {flag} WHERE id IN (SELECT id FROM {table} ORDER BY id LIMIT {share})")

    invert()
    try:
        yield
    finally:
        invert()


def scan(found: World) -> Result:
    """Count the last column of every table that is read, on both sides, two at a time: every page and row is read, nothing is compared."""
    source = found.context.source
    read = sorted({table for target in found.context.plan.targets for part in target.parts for table in part.tables})
    last = "SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = {relation}::regclass AND NOT a.attisdropped ORDER BY a.attnum DESC LIMIT 1"
    jobs = [(source, f"{ident(source.schema)}.{ident(table)}") for table in read]
    jobs += [(found.context.targets[target.service], target.qualified) for target in found.context.plan.targets]

    def run(job: tuple[object, str]) -> int:
        endpoint, relation = job
        with contextlib.closing(connect(endpoint, application_name="bench", settings={"max_parallel_workers_per_gather": "0"})) as connection:  # type: ignore[arg-type]
            column = rows(connection, last.format(relation="'" + relation + "'"))[0][0]
            return int(rows(connection, f"SELECT count(*) FROM {relation} WHERE {ident(column)} IS NULL OR {ident(column)} IS NOT NULL")[0][0])

    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(run, jobs))
    return {"seconds": time.monotonic() - start, "rows": sum(counts[len(read) :])}


def sorted_streams(found: World) -> Result:
    """What one does by hand: COPY each table's projection and the table itself in the order of the id, as text, and compare a hash of both.

    It tells which tables differ and no more.
    """
    start = time.monotonic()
    count = sum(_streams(found, target) for target in found.context.plan.targets)
    return {"seconds": time.monotonic() - start, "rows": count}


class _Hashed:
    """A file for COPY to write into."""

    def __init__(self) -> None:
        self.rows = 0
        self.hash = hashlib.blake2b()

    def write(self, row: bytes) -> int:
        """Take one row."""
        self.rows += 1
        self.hash.update(row)
        return len(row)


def _streams(found: World, target: Target) -> int:
    context = found.context
    order = f"ORDER BY {ident(target.identity[0])}"

    def projected(part: Part) -> str:
        ids = {cell.name for cell in part.cells if cell.is_id and cell.type == "bytea"}
        cells = ", ".join(f"encode(s.{ident(name)}, 'hex')::uuid AS {ident(name)}" if name in ids else f"s.{ident(name)}" for name in target.columns)
        return f"SELECT {cells} FROM ({part.select(context.source.schema)}) AS s"

    columns = ", ".join(f"t.{ident(name)}" for name in target.columns)
    sides: list[tuple[Connection, str]] = [
        (
            context.connect_source("bench", plan_time=PLAN_TIME, settings=SETTINGS),
            f"SELECT * FROM ({' UNION ALL '.join(projected(part) for part in target.parts)}) AS u {order}",
        ),
        (context.connect_target(target.service, "bench", readonly=True, settings=SETTINGS), f"SELECT {columns} FROM {target.qualified} AS t {order}"),
    ]
    files = (_Hashed(), _Hashed())

    def read(number: int) -> None:
        connection, select = sides[number]
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.copy_expert(f"COPY ({select}) TO STDOUT", files[number])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, (0, 1)))
    if files[0].hash.digest() != files[1].hash.digest():
        raise SystemExit(f"bench: {target.name} differs")
    return files[0].rows
