# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A dry run wrote nothing: no table, no schema, no record, no file."""

from __future__ import annotations

from typing import Any

import pytest
from molecule_databases import INVENTORY, PROJECT, ask, session_store, tables

DATABASES = ("auth_service", "user_service", "migration_control")


@pytest.mark.parametrize("database", DATABASES)
def test_no_table_was_made(host: Any, database: str) -> None:
    assert tables(host, database) == set()


@pytest.mark.parametrize("database", ["monolith", *DATABASES])
def test_no_row_was_written(host: Any, database: str) -> None:
    written = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables WHERE schemaname <> 'public'"
    assert ask(host, database, written) == "0"


def test_no_database_was_made(host: Any) -> None:
    names = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
    assert ask(host, "auth_service", names) == "auth_service"


def test_no_artifact_was_left() -> None:
    folder = PROJECT / "artifacts" / INVENTORY.name
    assert not folder.exists() or not any(folder.iterdir())


def test_no_session_was_written() -> None:
    with session_store() as store:
        assert store.dbsize() == 0
