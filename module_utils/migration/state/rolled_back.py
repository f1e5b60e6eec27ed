# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep phases out of a service that a rollback has given its old state: rows carried there anew would stay when the rollback goes on."""

from __future__ import annotations

import contextlib

from ..context import Context
from ..errors import MigrationError
from ..plan.model import BOOKKEEPING
from ..postgres import databases, driver
from .control import Migration

_BACK = "SELECT to_regnamespace(%s) IS NOT NULL OR EXISTS (SELECT FROM pg_database WHERE datname = %s)"


def kept_schema(migration: Migration) -> str:
    """Return the name under which the ledger of a rolled back migration stays in the service."""
    return databases.derived(BOOKKEEPING, "rolled_back", migration.run_id)


def require_not_rolled_back(context: Context, migration: Migration) -> None:
    """MigrationError when a rollback of this migration has reached one of the services, by what its server says."""
    for service in context.plan.services:
        endpoint = context.targets[service]
        names = (kept_schema(migration), databases.derived(endpoint.dbname, "migrated", migration.run_id))
        connection = driver.connect(endpoint, application_name=databases.APPLICATION_NAME, readonly=True)
        with contextlib.closing(connection), driver.database_errors(endpoint.place, "looking for a rollback"):
            if driver.scalar(connection, _BACK, names):
                raise MigrationError(
                    f"{endpoint.place}: {service} was rolled back from migration {migration.run_id}, which is not closed yet; run playbooks/rollback.yml"
                    " to its end, then playbooks/preflight.yml starts the next migration"
                )
