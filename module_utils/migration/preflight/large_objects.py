# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Large objects that rows of mapped tables name: a column carries the oid, never the object."""

from __future__ import annotations

from collections.abc import Iterable

from ..checks.findings import WARN, Finding
from ..postgres import driver
from ..postgres.quote import ident, qualified

_COLUMNS = """
WITH RECURSIVE oids AS (
    SELECT 'oid'::regtype::oid AS type UNION SELECT t.oid FROM pg_type AS t JOIN oids AS o ON t.typtype = 'd' AND t.typbasetype = o.type
)
SELECT c.relname::text, a.attname::text FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = ANY (%s) AND c.relkind IN ('r', 'p', 'm', 'v', 'f') AND a.attnum > 0 AND NOT a.attisdropped
  AND a.atttypid IN (SELECT type FROM oids) AND has_column_privilege(c.oid, a.attnum, 'SELECT') ORDER BY 1, 2
"""


def check(connection: driver.Connection, schema: str, tables: Iterable[str]) -> list[Finding]:
    """Return a warning for each column of these tables that names large objects, with the rows that do."""
    findings = []
    with driver.database_errors("the source", "looking for large objects"):
        if not driver.scalar(connection, "SELECT EXISTS (SELECT FROM pg_largeobject_metadata)"):
            return []
        for table, column in driver.rows(connection, _COLUMNS, (schema, sorted(set(tables)))):
            named = f"EXISTS (SELECT FROM pg_largeobject_metadata AS m WHERE m.oid = t.{ident(column)}::oid)"
            rows = int(driver.scalar(connection, f"SELECT count(*) FROM {qualified(schema, table)} AS t WHERE {named}"))
            if rows:
                message = "name a large object, which stays behind: its number means nothing in another database"
                step = "copy their bytes into a bytea column of the monolith first and map that, or move the objects by hand"
                findings.append(Finding(WARN, table, "large_object", message, step, "", column, rows))
    return findings
