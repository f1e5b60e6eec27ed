# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long expired sessions are kept in a file without their keys, and deleted only when somebody has said how many."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.sessions import archive
from ansible.module_utils.migration.sessions.archive import Archive

TABLE = "CREATE TABLE django_session (session_key varchar(40) PRIMARY KEY, session_data text NOT NULL, expire_date timestamptz NOT NULL)"
FILL = (
    "INSERT INTO django_session SELECT 'old' || n, 'data, \"' || n || chr(10), now() - interval '40 days' FROM generate_series(1, 500) n",
    "INSERT INTO django_session SELECT 'ended' || n, 'data', now() - interval '2 days' FROM generate_series(1, 5) n",
    "INSERT INTO django_session SELECT 'live' || n, 'data', now() + interval '2 days' FROM generate_series(1, 7) n",
)


@pytest.fixture
def monolith(databases: Callable[..., driver.Endpoint]) -> driver.Endpoint:
    """A table with old, ended and live sessions, owned by an ordinary role."""
    endpoint = databases(role=True)
    with contextlib.closing(driver.connect(endpoint, application_name="tests", autocommit=True)) as connection:
        for statement in (TABLE, *FILL):
            driver.rows(connection, statement)
    return endpoint


def look(endpoint: driver.Endpoint, days: int = 30) -> Archive:
    with contextlib.closing(driver.connect(endpoint, application_name="tests", readonly=True)) as source:
        return archive.look(source, "public", days, "monolith")


def write(endpoint: driver.Endpoint, folder: Path) -> Archive:
    with contextlib.closing(driver.connect(endpoint, application_name="tests", readonly=True)) as source:
        source.set_session(isolation_level="REPEATABLE READ", readonly=True)
        return archive.write(source, "public", folder, archive.look(source, "public", 30, "monolith"), "monolith")


def delete(endpoint: driver.Endpoint, done: Archive, confirmed: int) -> int:
    with contextlib.closing(driver.connect(endpoint, application_name="tests")) as connection:
        return archive.delete(connection, "public", done, confirmed, "monolith")


def test_an_archive_has_every_old_session_and_no_key(monolith: driver.Endpoint, tmp_path: Path) -> None:
    done = write(monolith, tmp_path / "archive")
    path = tmp_path / "archive" / done.name
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        head, *rows = csv.reader(text)
    assert head == list(archive.COLUMNS)
    assert {(row[0], row[2]) for row in rows} == {(hashlib.sha256(f"old{n}".encode()).hexdigest(), f'data, "{n}\n') for n in range(1, 501)}
    assert done.rows == len(rows) == 500
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert archive.kept(tmp_path / "archive", look(monolith)) == done
    assert look(monolith, 1).rows == 505


def test_a_damaged_archive_is_told(monolith: driver.Endpoint, tmp_path: Path) -> None:
    done = write(monolith, tmp_path)
    (tmp_path / done.name).write_bytes((tmp_path / done.name).read_bytes()[:-1])
    with pytest.raises(MigrationError, match="its manifest"):
        archive.kept(tmp_path, look(monolith))


def test_nothing_is_deleted_but_what_was_archived_and_confirmed(monolith: driver.Endpoint, tmp_path: Path) -> None:
    done = write(monolith, tmp_path)
    with pytest.raises(MigrationError, match="500 sessions"):
        delete(monolith, done, 499)
    with contextlib.closing(driver.connect(monolith, application_name="tests", autocommit=True)) as connection:
        driver.rows(connection, "UPDATE django_session SET session_data = 'other' WHERE session_key = 'old7'")
        with pytest.raises(MigrationError, match="has changed since"):
            delete(monolith, done, 500)
        driver.rows(connection, "UPDATE django_session SET session_data = 'data, \"7' || chr(10) WHERE session_key = 'old7'")
        assert driver.scalar(connection, "SELECT count(*) FROM django_session") == 512
        assert delete(monolith, done, 500) == 500
        assert delete(monolith, done, 500) == 0
        assert driver.scalar(connection, "SELECT count(*) FROM django_session") == 12


def test_a_login_that_may_only_read_is_told_what_deletes_them(monolith: driver.Endpoint, databases: Callable[..., driver.Endpoint], tmp_path: Path) -> None:
    done = write(monolith, tmp_path)
    other = databases(role=True)
    reader = driver.Endpoint(**{**monolith.__dict__, "user": other.user, "password": other.password})
    with contextlib.closing(driver.connect(monolith, application_name="tests", autocommit=True)) as connection:
        driver.rows(connection, f'GRANT SELECT ON django_session TO "{reader.user}"')
        driver.rows(connection, f'GRANT USAGE ON SCHEMA public TO "{reader.user}"')
    with pytest.raises(MigrationError, match="clearsessions"):
        delete(reader, done, 500)
