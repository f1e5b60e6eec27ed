# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the databases of the molecule lab, as the scenarios' tests do: with psql, through testinfra."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import redis
import yaml

PROJECT = Path(__file__).resolve().parents[1]
INVENTORY = PROJECT / "inventories" / "molecule"


def variables(host: str) -> dict[str, Any]:
    """Return a database's inventory variables."""
    found: dict[str, Any] = {}
    for folder in ("group_vars/all", f"host_vars/{host}"):
        for path in sorted((INVENTORY / folder).glob("*.yml")):
            found |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return found


def ask(host: Any, database: str, statement: str) -> str:
    """Return what psql prints for a statement, unaligned and without headers."""
    found = variables(database)
    os.environ["PGPASSWORD"] = found["login_password"]  # testinfra's local backend hands its own environment on
    command = host.run(
        "%s --no-psqlrc --tuples-only --no-align --host=%s --username=%s --dbname=%s --command=%s",
        str(Path(found["pg_bin_dir"]) / "psql"),
        found["login_host"],
        found["login_user"],
        found["login_db"],
        statement,
    )
    assert command.rc == 0, command.stderr
    return command.stdout.strip()


def tables(host: Any, database: str) -> set[str]:
    """Return the tables of a database outside the catalogs."""
    text = ask(host, database, "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')")
    return set(text.splitlines())


def session_store() -> redis.Redis:
    """Return a client of the lab's session store."""
    found = variables("sessions")
    return redis.Redis(**found["session_store_hosts"][0], db=found["session_store_db"], password=found["session_store_password"])
