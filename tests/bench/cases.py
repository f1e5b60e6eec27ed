# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is timed: the transfer, its limits, and what a user would reach for instead."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2.extensions
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan.model import Target
from ansible.module_utils.migration.postgres.driver import PINNED, Endpoint, connect, rows, scalar
from ansible.module_utils.migration.postgres.quote import ident
from ansible.module_utils.migration.schema import build
from ansible.module_utils.migration.state import ledger
from ansible.module_utils.migration.transfer.chunks import units

from tests.bench.meter import Peak
from tests.bench.world import (
    NAMESPACE,
    PLAN_TIME,
    PROJECT,
    World,
    empty_targets,
    statement,
)

SOURCE_TABLES = (
    *("auth_user", "auth_permission", "django_content_type", "auth_group", "auth_group_permissions", "auth_user_groups"),
    *("auth_user_user_permissions", "institutions", "users_profile", "students", "companies", "users_role"),
)
Result = dict[str, float]


def phase(found: World, name: str) -> Result:
    """Run a phase in a process of its own; its time is its modules', its memory that of all its processes together."""
    path = found.folder / "context.pickle"
    path.write_bytes(pickle.dumps(found.context))
    child = subprocess.Popen([sys.executable, "-m", "tests.bench.child", name, str(path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    peak = Peak(child.pid)
    output, _ = child.communicate()
    peak.stop()
    if child.returncode != 0:
        raise SystemExit(f"bench: {name} failed")
    return {**json.loads(output.splitlines()[-1]), "peak_rss_mib": peak.mib}


def migrate(found: World) -> Result:
    """The transfer into empty tables, with all keys and indexes."""
    empty_targets(found)
    return phase(found, "migrate")


def limit(found: World) -> Result:
    """Bare psql COPY pipes, two tables at a time, no chunks and no ledger; then the same keys and indexes, two at a time."""
    empty_targets(found)
    context = found.context
    for service in context.plan.services:
        bookkeeping = [target for target in context.plan.of(service) if target.bookkeeping]
        statement(context.targets[service], "CREATE SCHEMA migration", *(_bare_table(target) for target in bookkeeping))
    pipes = []
    for service in context.plan.services:
        for unit in units(context.plan, service):
            for target, part in ((unit.target, unit.part), (unit.id_map, unit.id_map_part)):
                if target is not None and part is not None:
                    columns = ", ".join(ident(name) for name in target.columns)
                    copy_in = f"COPY {target.qualified} ({columns}) FROM STDIN (FORMAT binary)"
                    pipes.append((part.select(context.source.schema), copy_in, context.targets[service]))
    sizes = {select: scalar_of(context.source, f"SELECT count(*) FROM ({select}) AS s", _settings(found)) for select, _, _ in pipes}
    pipes.sort(key=lambda pipe: -sizes[pipe[0]])
    start = time.monotonic()
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda pipe: _psql_pipe(found, *pipe), pipes))
    _keys_and_indexes(found)
    return {"seconds": time.monotonic() - start, "rows": sum(sizes.values())}


def _bare_table(target: Target) -> str:
    columns = ", ".join(f"{ident(name)} {kind}" for name, kind in zip(target.columns, target.column_types, strict=True))
    return f"CREATE TABLE {target.qualified} ({columns})"


def scalar_of(endpoint: Endpoint, text: str, settings: dict[str, str] | None = None) -> int:
    """Return one number."""
    connection = connect(endpoint, application_name="bench", settings=settings, autocommit=True)
    try:
        return int(scalar(connection, text))
    finally:
        connection.close()


def _settings(found: World) -> dict[str, str]:
    return {**ids.settings(NAMESPACE, found.context.plan.entity_names), "migration.plan_time": PLAN_TIME}


def _environment(endpoint: Endpoint, settings: dict[str, str]) -> dict[str, str]:
    chosen = {**PINNED, **settings}
    blank = "\\ "
    escaped = " ".join(f"-c {name}={value.replace(' ', blank)}" for name, value in chosen.items())
    return {
        **os.environ,
        "PGHOST": endpoint.host,
        "PGPORT": str(endpoint.port),
        "PGUSER": endpoint.user,
        "PGPASSWORD": endpoint.password or "",
        "PGDATABASE": endpoint.dbname,
        "PGCLIENTENCODING": "UTF8",
        "PGOPTIONS": escaped,
    }


def _psql_pipe(found: World, select: str, copy_in: str, target: Endpoint) -> None:
    psql = str(found.bin_dir / "psql")
    flags = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
    copy_out = f"COPY ({select}) TO STDOUT (FORMAT binary)"
    sender = subprocess.Popen([psql, *flags, "-c", copy_out], env=_environment(found.context.source, _settings(found)), stdout=subprocess.PIPE)
    receiver = subprocess.run([psql, *flags, "-c", copy_in], env=_environment(target, {}), stdin=sender.stdout, check=False)
    if sender.wait() or receiver.returncode:
        raise SystemExit("bench: a psql pipe failed")


def _keys_and_indexes(found: World) -> None:
    """Make the primary keys, then unique constraints and indexes, then foreign keys; two tables at a time."""
    first: list[tuple[Endpoint, str]] = []
    second: list[tuple[Endpoint, str]] = []
    third: list[tuple[Endpoint, str]] = []
    for service, data in found.context.plan.contracts:
        endpoint = found.context.targets[service]
        for target in found.context.plan.of(service):
            if target.bookkeeping:
                first.append((endpoint, ledger.ID_MAP_KEY if target.table == "id_map" else f"ALTER TABLE {target.qualified} ADD PRIMARY KEY (id)"))
        for table in Contract.from_dict(data).tables:
            for constraint in table.constraints:
                text = f"ALTER TABLE {table.qualified} ADD CONSTRAINT {ident(constraint.name)} {constraint.definition}"
                {"primary_key": first, "foreign_key": third}.get(constraint.kind, second).append((endpoint, text))
            second += [(endpoint, index.create(table.schema, table.name)) for index in table.indexes]
    for stage in (first, second, third):
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(lambda item: _with_memory(*item), stage))


def _with_memory(endpoint: Endpoint, text: str) -> None:
    settings = {"maintenance_work_mem": "256MB", "search_path": "auth_service, user_service, public"}
    connection = connect(endpoint, application_name="bench", settings=settings, autocommit=True)
    try:
        rows(connection, text)
    finally:
        connection.close()


def dump_restore(found: World) -> Result:
    """pg_dump and pg_restore of the same source tables, two jobs each, into an empty database."""
    source = found.context.source
    target = found.context.targets["user_service"]
    maintenance = Endpoint(**{**target.__dict__, "dbname": "postgres"})
    statement(maintenance, "DROP DATABASE IF EXISTS bench_restore WITH (FORCE)", "CREATE DATABASE bench_restore", "CHECKPOINT")
    with tempfile.TemporaryDirectory(dir=found.folder) as scratch:
        folder = Path(scratch) / "dump"
        dump = [str(found.bin_dir / "pg_dump"), "-Fd", "-j2", "-f", str(folder), *(f"--table=public.{table}" for table in SOURCE_TABLES)]
        restore = [str(found.bin_dir / "pg_restore"), "-j2", "--no-owner", "--no-privileges", "-d", "bench_restore", str(folder)]
        start = time.monotonic()
        subprocess.run(dump, env=_environment(source, {}), check=True)
        subprocess.run(restore, env=_environment(maintenance, {"maintenance_work_mem": "256MB"}), check=True)
        seconds = time.monotonic() - start
    restored = Endpoint(**{**target.__dict__, "dbname": "bench_restore"})
    count = sum(scalar_of(restored, f"SELECT count(*) FROM public.{table}") for table in SOURCE_TABLES)
    statement(maintenance, "DROP DATABASE bench_restore WITH (FORCE)")
    return {"seconds": seconds, "rows": count}


def row_by_row(found: World) -> Result:
    """All rows read into Python and inserted one by one, into tables that have their keys and indexes."""
    empty_targets(found)
    context = found.context
    for service, data in context.plan.contracts:
        build.build(context.targets[service], Contract.from_dict(data), kinds=("primary_key", "unique", "index"))
    as_text = psycopg2.extensions.new_type((114, 3802, 1082, 1114, 1184), "AS_TEXT", lambda value, _cursor: value)  # Python has no years BC
    count = 0
    start = time.monotonic()
    for service in context.plan.services:
        target_connection = connect(context.targets[service], application_name="bench")
        source_connection = context.connect_source("bench", plan_time=PLAN_TIME)
        psycopg2.extensions.register_type(as_text, source_connection)
        for unit in units(context.plan, service):
            if unit.target.bookkeeping:
                continue
            columns = ", ".join(ident(name) for name in unit.target.columns)
            insert = f"INSERT INTO {unit.target.qualified} ({columns}) VALUES ({', '.join(['%s'] * len(unit.target.columns))})"
            with source_connection.cursor() as reader, target_connection.cursor() as writer:
                reader.execute(unit.part.select(context.source.schema))
                for row in reader.fetchall():
                    writer.execute(insert, [bytes(value).hex() if isinstance(value, memoryview) else value for value in row])
                    count += 1
        target_connection.commit()
        target_connection.close()
        source_connection.close()
    return {"seconds": time.monotonic() - start, "rows": count}


def medians(results: Sequence[Result]) -> Result:
    """Return the run with the median time, with the largest memory of all."""
    ordered = sorted(results, key=lambda result: result["seconds"])
    middle = dict(ordered[(len(ordered) - 1) // 2])
    middle["peak_rss_mib"] = max(result.get("peak_rss_mib", 0.0) for result in results)
    return middle
