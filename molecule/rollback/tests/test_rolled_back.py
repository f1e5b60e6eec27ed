# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After a rollback both services are as before the migration, and what was migrated is kept under another name."""

from __future__ import annotations

from typing import Any

import pytest
from molecule_databases import ask, session_store, tables


@pytest.mark.parametrize("database", ["auth_service", "user_service"])
def test_the_service_is_as_before(host: Any, database: str) -> None:
    assert tables(host, database) == set()
    kept = f"SELECT count(*) FROM pg_database WHERE datname LIKE '{database}_migrated_%'"
    assert int(ask(host, database, kept)) >= 1


def test_the_monolith_was_not_written(host: Any) -> None:
    assert ask(host, "monolith", "SELECT count(*) FROM pg_namespace WHERE nspname = 'migration'") == "0"


def test_the_migration_is_closed_on_record(host: Any) -> None:
    assert ask(host, "migration_control", "SELECT DISTINCT state FROM migration.migrations") == "rolled_back"


def test_no_session_is_left_in_the_store() -> None:
    with session_store() as store:
        assert store.dbsize() == 0
