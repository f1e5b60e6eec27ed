# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger: what a target database knows about its own migration, in its schema `migration`.

A chunk is claimed by locking its row (FOR UPDATE SKIP LOCKED) and ends in the same transaction that carries its rows, so
a runner that dies gives its chunks back by dying, and a kill at any instant loses and doubles nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..contract.data import without_places
from ..errors import MigrationError
from ..plan.model import BOOKKEEPING, Plan, Target
from ..postgres import driver
from ..postgres.quote import ident, literal, qualified
from .limits import Limits

_LOCK = "hashtext('edulink-migration ledger')"

_LIMITS = ", ".join(literal(item.name) for item in fields(Limits))
_TABLES = f"""
CREATE SCHEMA IF NOT EXISTS migration;
CREATE TABLE IF NOT EXISTS migration.pin (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    plan_digest text NOT NULL,
    fingerprint text NOT NULL,
    plan_time timestamp NOT NULL,
    run_id text NOT NULL,
    parts jsonb NOT NULL DEFAULT '{{}}',
    pinned_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz
);
CREATE TABLE IF NOT EXISTS migration.chunks (
    id integer PRIMARY KEY,
    target text NOT NULL,
    part text NOT NULL,
    low text,
    high text,
    nulls boolean NOT NULL,
    estimate bigint NOT NULL,
    mode text NOT NULL CHECK (mode IN ('load', 'upsert')),
    stage integer NOT NULL,
    state text NOT NULL DEFAULT 'planned' CHECK (state IN ('planned', 'done')),
    epoch text,
    rows bigint,
    mapped bigint,
    bytes bigint,
    runner text,
    started_at timestamptz,
    finished_at timestamptz
);
CREATE INDEX IF NOT EXISTS chunks_planned ON migration.chunks (stage, id) WHERE state = 'planned';
CREATE INDEX IF NOT EXISTS chunks_planned_target ON migration.chunks (target) WHERE state = 'planned';
CREATE TABLE IF NOT EXISTS migration.epochs (
    id text PRIMARY KEY,
    snapshot text NOT NULL,
    lsn text,
    runner text NOT NULL,
    exported_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lost_at timestamptz,
    reconciled_at timestamptz
);
CREATE TABLE IF NOT EXISTS migration.controls (
    name text PRIMARY KEY CONSTRAINT known_limit CHECK (name IN ({_LIMITS})),
    value double precision CONSTRAINT zero_is_off CHECK (value >= 0 AND value < 'Infinity'),
    set_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS migration.id_map (
    entity text COLLATE "C" NOT NULL,
    source_key text COLLATE "C" NOT NULL,
    id uuid NOT NULL
);
CREATE TABLE IF NOT EXISTS migration.rejects (
    target text NOT NULL,
    part text NOT NULL,
    source_key text NOT NULL,
    id uuid,
    rule text NOT NULL,
    column_name text NOT NULL,
    reason text NOT NULL,
    caused_by text,
    rejected_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (target, part, source_key)
);
"""
ID_MAP_KEY = "ALTER TABLE migration.id_map ADD CONSTRAINT id_map_pkey PRIMARY KEY (source_key, entity)"


@dataclass(frozen=True)
class Chunk:
    """A range of source keys of one part: low <= chunk_by < high; None is open, `nulls` adds rows without a value.

    A chunk waits for those of lower stages: where foreign keys stand already, parents go first.
    """

    id: int
    target: str
    part: str
    low: str | None
    high: str | None
    nulls: bool
    estimate: int
    mode: str
    stage: int = 0


@dataclass(frozen=True)
class Pin:
    """What a target database is pinned to; `parts` are digests of what the plan is made of, by their names."""

    plan_digest: str
    plan_time: str
    run_id: str
    finished: bool
    parts: Mapping[str, str]


def exists(connection: driver.Connection) -> bool:
    """Tell whether this database has a ledger."""
    return driver.scalar(connection, "SELECT to_regclass('migration.pin')") is not None


def pinned(connection: driver.Connection) -> Pin | None:
    """Return what this database is pinned to, or None."""
    if not exists(connection):
        return None
    found = driver.rows(connection, "SELECT plan_digest, plan_time::text, run_id, finished_at IS NOT NULL, parts FROM migration.pin")
    return Pin(*found[0]) if found else None


def require_same_plan(pin: Pin, plan: Plan, service: str) -> None:
    """Raise when a ledger belongs to another plan; say which mapping, whose schema SQL, or that the namespace has changed."""
    if pin.plan_digest != plan.digest:
        raise MigrationError(
            f"{service}: its ledger was begun with plan {pin.plan_digest[:12]} (migration {pin.run_id}), this run has plan {plan.digest[:12]}:"
            f" changed: {', '.join(changed(pin, plan)) or 'a mapping, the schema SQL or the namespace'}. Restore what was changed, or start over"
            " with playbooks/rollback.yml"
        )


def changed(pin: Pin, plan: Plan) -> list[str]:
    """Return the names of what differs between the pinned plan and this one."""
    now = parts_of(plan)
    return sorted(name for name in now.keys() | pin.parts.keys() if now.get(name) != pin.parts.get(name))


def parts_of(plan: Plan) -> dict[str, str]:
    """Return a digest of each mapping file, each service's schema SQL and the namespace, by what an operator calls them."""
    essence: dict[str, list[object]] = {}
    for target in plan.targets:
        for part in target.parts:
            essence.setdefault(part.path, []).append([target.name, part.name, part.entity, part.select("source"), part.key_text, part.chunk_by])
        for policy in target.policies:
            if target.parts:
                essence[target.parts[0].path].append([policy.column, policy.rule, policy.policy, policy.placeholder])
    for service, contract in plan.contracts:
        essence[f"the schema SQL of {service}"] = [without_places(contract)]
    essence["migration_namespace"] = [plan.fingerprint]
    return {name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16] for name, value in essence.items()}


def create(connection: driver.Connection, plan: Plan, service: str, plan_time: str, run_id: str) -> None:
    """Make the ledger's tables and pin the plan, in one transaction that only one runner enters at a time."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        cursor.execute(_TABLES)
        for target in plan.of(service):
            if target.bookkeeping and target.table != "id_map":
                columns = ", ".join(
                    f"{ident(name)} {kind}{' NOT NULL' if name in target.identity else ''}"
                    for name, kind in zip(target.columns, target.column_types, strict=True)
                )
                cursor.execute(f"CREATE TABLE IF NOT EXISTS {target.qualified} ({columns})")
        cursor.execute(
            "INSERT INTO migration.pin (plan_digest, fingerprint, plan_time, run_id, parts) VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            (plan.digest, plan.fingerprint, plan_time, run_id, json.dumps(parts_of(plan))),
        )


def has_chunks(connection: driver.Connection) -> bool:
    """Tell whether this database's chunks are planned."""
    return bool(driver.scalar(connection, "SELECT EXISTS (SELECT FROM migration.chunks)"))


def add_chunks(connection: driver.Connection, chunks: Sequence[Chunk]) -> None:
    """Write the planned chunks; the caller commits."""
    with connection.cursor() as cursor:
        for chunk in chunks:
            cursor.execute(
                "INSERT INTO migration.chunks (id, target, part, low, high, nulls, estimate, mode, stage) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (chunk.id, chunk.target, chunk.part, chunk.low, chunk.high, chunk.nulls, chunk.estimate, chunk.mode, chunk.stage),
            )


def claim(connection: driver.Connection, runner: str) -> Chunk | None:
    """Lock and return a planned chunk that no other worker holds, or None; the lock lasts until the transaction ends."""
    found = driver.rows(
        connection,
        "SELECT id, target, part, low, high, nulls, estimate, mode, stage FROM migration.chunks WHERE state = 'planned'"
        " AND stage = (SELECT min(stage) FROM migration.chunks WHERE state = 'planned')"
        " ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED",
    )
    return Chunk(*found[0]) if found else None


def finish(
    connection: driver.Connection, chunk: Chunk, *, epoch: str, rows: int, mapped: int, size: int, runner: str, seconds: float
) -> None:
    """Mark a chunk as done in the transaction that carried it."""
    driver.rows(
        connection,
        "UPDATE migration.chunks SET state = 'done', epoch = %s, rows = %s, mapped = %s, bytes = %s, runner = %s,"
        " started_at = clock_timestamp() - %s * interval '1 second', finished_at = clock_timestamp() WHERE id = %s",
        (epoch, rows, mapped, size, runner, seconds, chunk.id),
    )


def remaining(connection: driver.Connection) -> int:
    """Return how many chunks are not done."""
    return int(driver.scalar(connection, "SELECT count(*) FROM migration.chunks WHERE state = 'planned'"))


def limits(connection: driver.Connection) -> dict[str, float]:
    """Return the limits that an operator has set for the running transfer."""
    return {name: value for name, value in driver.rows(connection, "SELECT name, value FROM migration.controls") if value is not None}


def epochs(connection: driver.Connection) -> list[str]:
    """Return the epochs that the done chunks were read in."""
    return [row[0] for row in driver.rows(connection, "SELECT DISTINCT epoch FROM migration.chunks WHERE state = 'done' ORDER BY 1")]


def progress(connection: driver.Connection) -> list[tuple[Any, ...]]:
    """Return target, chunks done, chunks, rows done, rows estimated, first start, last finish for each target."""
    return driver.rows(
        connection,
        "SELECT target, count(*) FILTER (WHERE state = 'done'), count(*), coalesce(sum(rows), 0)::bigint,"
        " sum(CASE WHEN state = 'done' THEN rows ELSE estimate END)::bigint, min(started_at), max(finished_at)"
        " FROM migration.chunks GROUP BY target ORDER BY target",
    )


def carried(connection: driver.Connection, targets: Sequence[Target]) -> dict[str, int]:
    """Return how many rows each target was given by the chunks that are done; the id map's came with the rows that mint them, and by themselves."""
    found = {target: int(rows) for target, _, _, rows, *_ in progress(connection)}
    mapped = int(driver.scalar(connection, "SELECT coalesce(sum(mapped), 0)::bigint FROM migration.chunks"))
    return found | {target.name: found.get(target.name, 0) + mapped for target in targets if target.bookkeeping and target.table == "id_map"}


def load_mode(connection: driver.Connection, target: Target) -> str:
    """Return `load` for a table that is empty and bare, `upsert` for one with rows or a unique index already; MigrationError when there is none."""
    relation = qualified(target.schema, target.table)
    if driver.scalar(connection, "SELECT to_regclass(%s)", (relation,)) is None:
        raise MigrationError(f"{target.name}: the table {relation} does not exist yet; run playbooks/schema.yml first")
    has_index = driver.scalar(
        connection, "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass(%s) AND indisunique)", (relation,)
    )
    return "upsert" if has_index or driver.scalar(connection, f"SELECT EXISTS (SELECT FROM {relation})") else "load"


def rejected(connection: driver.Connection, target: str, part: str) -> tuple[str, ...]:
    """Return the source keys of a part that are quarantined."""
    found = driver.rows(connection, "SELECT source_key FROM migration.rejects WHERE target = %s AND part = %s", (target, part))
    return tuple(row[0] for row in found)


def all_rejected(connection: driver.Connection) -> list[tuple[str, str, str]]:
    """Return target, part and source key of every quarantined row."""
    return [(target, part, key) for target, part, key in driver.rows(connection, "SELECT target, part, source_key FROM migration.rejects")]


def add_rejects(connection: driver.Connection, rejects: Sequence[Mapping[str, Any]]) -> None:
    """Write quarantined rows (target, part, source_key, id, rule, column_name, reason, caused_by); the caller commits."""
    with connection.cursor() as cursor:
        for reject in rejects:
            cursor.execute(
                f"INSERT INTO {ident(BOOKKEEPING)}.rejects (target, part, source_key, id, rule, column_name, reason, caused_by)"
                " VALUES (%(target)s, %(part)s, %(source_key)s, %(id)s, %(rule)s, %(column_name)s, %(reason)s, %(caused_by)s)"
                " ON CONFLICT DO NOTHING",
                dict(reject),
            )
