# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of the service's own django_session, without which Django's cached_db cannot save a carried session.

cached_db reads a session from the cache, but saves it with an UPDATE of its row first and answers 400 when there is none
(django/contrib/sessions/backends/cached_db.py and db.py). So each carried session gets its row, signed as the service signs.

A row is ours while its signature carries STAMP, a moment at which no service signs; Django stamps every save anew. Ours are
written again and deleted, all others are left alone. Keys reach the server by COPY, whose data no statement log keeps.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..postgres import driver
from ..postgres.quote import literal
from .signing import STAMP

_OURS = f"split_part(t.session_data, ':', 2) = {literal(STAMP)}"
_WANTED = "CREATE TEMPORARY TABLE IF NOT EXISTS pg_temp.wanted (session_key text, session_data text, ends bigint) ON COMMIT DELETE ROWS"


class ServiceRow(NamedTuple):
    """One session as the service's table should have it."""

    session_key: str
    session_data: str
    expires: int


class ServiceRows:
    """Write and delete our rows of a table, each batch in a transaction of its own."""

    def __init__(self, connection: driver.Connection, table: str, place: str) -> None:
        """Take a connection that is not in autocommit and the quoted name of the table."""
        self._connection, self._table, self._place = connection, table, place

    def put(self, rows: Sequence[ServiceRow], *, write: bool) -> int:
        """Write what is missing or ours and different; return how many rows that is. Without `write` they are only counted."""
        if not rows:
            return 0
        if not write:
            missing = (
                f"SELECT 1 FROM pg_temp.wanted AS w LEFT JOIN {self._table} AS t USING (session_key) WHERE t.session_key IS NULL"
                f" OR {_OURS} AND (t.session_data, t.expire_date) IS DISTINCT FROM (w.session_data, to_timestamp(w.ends))"
            )
            return self._run("comparing sessions", missing, rows)
        upsert = (
            f"INSERT INTO {self._table} AS t (session_key, session_data, expire_date)"
            " SELECT session_key, session_data, to_timestamp(ends) FROM pg_temp.wanted ORDER BY session_key"
            " ON CONFLICT (session_key) DO UPDATE SET session_data = excluded.session_data, expire_date = excluded.expire_date"
            f" WHERE {_OURS} AND (t.session_data, t.expire_date) IS DISTINCT FROM (excluded.session_data, excluded.expire_date)"
        )
        return self._run("writing sessions", upsert, rows)

    def delete(self, session_keys: Sequence[str]) -> int:
        """Delete those rows that are ours; return how many."""
        rows = [ServiceRow(session_key, "", 0) for session_key in session_keys]
        return self._run("removing sessions", f"DELETE FROM {self._table} AS t USING pg_temp.wanted AS w WHERE t.session_key = w.session_key AND {_OURS}", rows)

    def _run(self, doing: str, statement: str, rows: Sequence[ServiceRow]) -> int:
        text = io.StringIO("".join(f"{_escaped(row.session_key)}\t{row.session_data}\t{row.expires}\n" for row in rows))
        with driver.database_errors(self._place, doing), self._connection.cursor() as cursor:
            cursor.execute(_WANTED)
            cursor.copy_expert("COPY pg_temp.wanted FROM STDIN", text)
            cursor.execute(statement)
            count = int(cursor.rowcount)
            self._connection.commit()
        return count


def _escaped(text: str) -> str:
    """Escape a value of COPY's text format."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


@contextlib.contextmanager
def service_rows(endpoint: driver.Endpoint, table: str, application_name: str) -> Iterator[ServiceRows | None]:
    """Open the service's table, given as its quoted name; None when it is not there."""
    with contextlib.closing(driver.connect(endpoint, application_name=application_name)) as connection:
        with driver.database_errors(endpoint.place, "looking for the service's django_session"):
            there = driver.scalar(connection, "SELECT to_regclass(%s)", (table,)) is not None
            connection.rollback()
        yield ServiceRows(connection, table, endpoint.place) if there else None
