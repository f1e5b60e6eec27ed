# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The records of the migration itself, in the control database: what must outlive a rollback.

A migration is `planned` by preflight, becomes `open` when its snapshot is begun, and ends `rolled_back` or `finished`.
While it is planned a later preflight may pin another plan; once it is open its plan, namespace, timestamp and snapshot
stay. Every phase adds records (kind, outcome, detail); nothing here is ever deleted or updated but a migration's state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..errors import MigrationError
from ..postgres import driver

APPLICATION_NAME = "edulink-migration control"

_RUN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,39}")
_TABLES = """
CREATE SCHEMA IF NOT EXISTS migration;
CREATE TABLE IF NOT EXISTS migration.migrations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text NOT NULL UNIQUE CONSTRAINT run_id_is_a_name CHECK (run_id ~ '^[0-9A-Za-z][0-9A-Za-z_-]{0,39}$'),
    state text NOT NULL CHECK (state IN ('planned', 'open', 'rolled_back', 'finished')),
    plan_digest text NOT NULL,
    namespace_fingerprint text NOT NULL,
    plan_time timestamp NOT NULL,
    snapshot text,
    opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at timestamptz
);
CREATE UNIQUE INDEX IF NOT EXISTS one_live_migration ON migration.migrations ((true)) WHERE state IN ('planned', 'open');
CREATE TABLE IF NOT EXISTS migration.records (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration_id bigint REFERENCES migration.migrations,
    kind text NOT NULL,
    outcome text NOT NULL,
    plan_digest text,
    detail jsonb NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS records_kind ON migration.records (kind, id);
"""


def checked_run_id(run_id: str) -> str:
    """Return a run id that may name a folder, a schema and a database; MigrationError for what somebody else has written there."""
    if not _RUN_ID.fullmatch(run_id):
        raise MigrationError(
            "the control database holds a migration whose run_id is no name (letters, digits, - and _, at most 40), so nothing is read or written under it;"
            " this program never writes such a one: find out who did, and correct migration.migrations"
        )
    return run_id


@dataclass(frozen=True)
class Migration:
    """One attempt to carry the monolith over; `plan_time` is a UTC timestamp as PostgreSQL writes it."""

    id: int
    run_id: str
    state: str
    plan_digest: str
    namespace_fingerprint: str
    plan_time: str
    snapshot: str | None
    opened_at: datetime

    def __post_init__(self) -> None:
        checked_run_id(self.run_id)


@dataclass(frozen=True)
class Record:
    """What a phase left: its kind (the phase), its outcome (`passed`, `failed` or a step's name) and the details."""

    id: int
    migration_id: int | None
    kind: str
    outcome: str
    plan_digest: str | None
    detail: Mapping[str, Any]
    recorded_at: datetime


def connect(endpoint: driver.Endpoint, *, readonly: bool = False) -> driver.Connection:
    """Connect to the control database in autocommit; tables are made unless `readonly` (check mode)."""
    connection = driver.connect(endpoint, application_name=APPLICATION_NAME, readonly=readonly, autocommit=True)
    if not readonly and not _ready(connection):
        with driver.database_errors(endpoint.place, "making the tables of the migration's records"):
            driver.rows(connection, "SELECT pg_advisory_lock(hashtext('edulink-migration control'))")
            driver.rows(connection, _TABLES)
            driver.rows(connection, "SELECT pg_advisory_unlock(hashtext('edulink-migration control'))")
    return connection


def current(connection: driver.Connection) -> Migration | None:
    """Return the migration that is planned or open, or None."""
    if not _ready(connection):
        return None
    found = driver.rows(connection, f"{_SELECT} WHERE state IN ('planned', 'open')")
    return Migration(*found[0]) if found else None


def newest(connection: driver.Connection) -> Migration | None:
    """Return the migration that was planned last, whatever became of it, or None."""
    if not _ready(connection):
        return None
    found = driver.rows(connection, f"{_SELECT} ORDER BY id DESC LIMIT 1")
    return Migration(*found[0]) if found else None


def run_ids(connection: driver.Connection) -> list[str]:
    """Return the names of all migrations, the newest first."""
    return [checked_run_id(str(run_id)) for (run_id,) in driver.rows(connection, "SELECT run_id FROM migration.migrations ORDER BY id DESC")]


def plan(connection: driver.Connection, plan_digest: str, namespace_fingerprint: str) -> Migration:
    """Return the planned migration for this plan: a new one, or the planned one pinned to this plan anew.

    MigrationError when another plan is open already.
    """
    live = current(connection)
    if live is None:
        driver.rows(
            connection,
            "INSERT INTO migration.migrations (run_id, state, plan_digest, namespace_fingerprint, plan_time)"
            " VALUES (to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD\"T\"HH24MISS\"Z\"') || '-' || substring(md5(random()::text) FOR 4),"
            " 'planned', %s, %s, date_trunc('milliseconds', clock_timestamp() AT TIME ZONE 'UTC')) ON CONFLICT DO NOTHING",
            (plan_digest, namespace_fingerprint),
        )
    elif live.state == "planned":
        driver.rows(
            connection,
            "UPDATE migration.migrations SET plan_digest = %s, namespace_fingerprint = %s WHERE id = %s AND state = 'planned'",
            (plan_digest, namespace_fingerprint, live.id),
        )
    else:
        _same_plan(live, plan_digest)
    pinned = current(connection)
    if pinned is None:
        raise MigrationError("the migration was closed by another run at this moment; run playbooks/status.yml and start again")
    return pinned


def begin(connection: driver.Connection, plan_digest: str) -> Migration:
    """Open the planned migration, pinning its plan; return it. It may be open already, with the same plan."""
    live = current(connection)
    if live is None:
        raise MigrationError("no migration is planned; run playbooks/preflight.yml first")
    _same_plan(live, plan_digest)
    driver.rows(connection, "UPDATE migration.migrations SET state = 'open' WHERE id = %s AND state = 'planned'", (live.id,))
    return require_open(connection, plan_digest)


def require_open(connection: driver.Connection, plan_digest: str) -> Migration:
    """Return the open migration of this plan; MigrationError when there is none or it has another plan."""
    live = current(connection)
    if live is None or live.state != "open":
        raise MigrationError("no migration is open; run playbooks/preflight.yml and playbooks/snapshot.yml first")
    _same_plan(live, plan_digest)
    return live


def set_snapshot(connection: driver.Connection, migration: Migration, snapshot: str) -> None:
    """Pin the one verified snapshot of an open migration; it is never replaced."""
    driver.rows(
        connection,
        "UPDATE migration.migrations SET snapshot = %s WHERE id = %s AND snapshot IS NULL",
        (snapshot, migration.id),
    )


def close(connection: driver.Connection, migration: Migration, state: str) -> None:
    """End a migration as `rolled_back` or `finished`."""
    driver.rows(
        connection,
        "UPDATE migration.migrations SET state = %s, closed_at = clock_timestamp() WHERE id = %s",
        (state, migration.id),
    )


def record(
    connection: driver.Connection,
    kind: str,
    outcome: str,
    detail: Mapping[str, Any],
    *,
    migration: Migration | None = None,
    plan_digest: str | None = None,
) -> None:
    """Add a record; `detail` holds no secrets and no values of rows."""
    driver.rows(
        connection,
        "INSERT INTO migration.records (migration_id, kind, outcome, plan_digest, detail) VALUES (%s, %s, %s, %s, %s)",
        (migration.id if migration else None, kind, outcome, plan_digest, json.dumps(detail, default=str)),
    )


def latest(connection: driver.Connection, kind: str, *, migration: Migration | None = None) -> Record | None:
    """Return the newest record of a kind (of one migration, if given), or None."""
    found = history(connection, kind=kind, migration=migration, limit=1, findings=None)
    return found[0] if found else None


def history(
    connection: driver.Connection, *, kind: str | None = None, migration: Migration | None = None, limit: int = 100, findings: int | None = 0
) -> list[Record]:
    """Return records, newest first.

    The newest of each kind comes with its first `findings` (None: with all of them), the others with none: a hundred validations of
    two sides that differ would fill the memory. `findings_left_out` of a detail says how many more the record has.
    """
    if not _ready(connection):
        return []
    return [
        Record(*row)
        for row in driver.rows(
            connection,
            _HISTORY,
            {"kind": kind, "migration": migration.id if migration else None, "limit": limit, "most": findings},
        )
    ]


_SELECT = (
    "SELECT id, run_id, state, plan_digest, namespace_fingerprint, plan_time::text, snapshot, opened_at FROM migration.migrations"
)
_HISTORY = """
SELECT id, migration_id, kind, outcome, plan_digest,
       CASE WHEN held > most THEN detail || jsonb_build_object(
           'findings', jsonb_path_query_array(detail -> 'findings', '$[0 to $last]', jsonb_build_object('last', most - 1)), 'findings_left_out', held - most
       ) ELSE detail END, recorded_at
FROM (
    SELECT found.*, CASE WHEN jsonb_typeof(detail -> 'findings') = 'array' THEN jsonb_array_length(detail -> 'findings') END AS held,
           CASE WHEN id = newest OR %(most)s IS NULL THEN %(most)s ELSE 0 END AS most
    FROM (
        SELECT *, max(id) OVER (PARTITION BY kind) AS newest FROM migration.records
        WHERE (%(kind)s IS NULL OR kind = %(kind)s) AND (%(migration)s IS NULL OR migration_id = %(migration)s)
        ORDER BY id DESC LIMIT %(limit)s
    ) AS found
) AS bounded ORDER BY id DESC
"""


def _ready(connection: driver.Connection) -> bool:
    return driver.scalar(connection, "SELECT to_regclass('migration.records')") is not None


def _same_plan(live: Migration, plan_digest: str) -> None:
    if live.plan_digest != plan_digest:
        raise MigrationError(
            f"migration {live.run_id} is {live.state} with plan {live.plan_digest[:12]}, this run has plan {plan_digest[:12]}:"
            " the mappings, the schema SQL or the namespace have changed; restore them, or start over with playbooks/rollback.yml"
            if live.state == "open"
            else f"the last preflight saw plan {live.plan_digest[:12]}, this run has plan {plan_digest[:12]}; run playbooks/preflight.yml again"
        )
