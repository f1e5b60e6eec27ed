# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lend indexes to foreign keys that have none, while many rows that they may refer to are deleted.

For each deleted row PostgreSQL looks for rows that refer to it: without an index that is a scan of the whole table each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from . import driver
from .quote import ident

_PATIENCE = "2s"  # for whoever writes to a table at the moment; its rows are then looked for without an index
_UNINDEXED = """
SELECT DISTINCT quote_ident(n.nspname), n.nspname, c.relname,
    (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.place)
     FROM unnest(f.conkey) WITH ORDINALITY AS k (number, place) JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.number)
FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE f.contype = 'f' AND c.relkind = 'r' AND pg_has_role(c.relowner, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE')
AND f.confrelid = ANY(SELECT to_regclass(name) FROM unnest(%s) AS names (name))
AND NOT EXISTS (
    SELECT FROM pg_index i WHERE i.indrelid = f.conrelid AND i.indisvalid AND i.indpred IS NULL
    AND (i.indkey::int2[])[0:cardinality(f.conkey) - 1] @> f.conkey)
"""


@contextlib.contextmanager
def lent_indexes(connection: driver.Connection, relations: Sequence[str]) -> Iterator[None]:
    """Index the foreign keys that refer to these relations and have no index, for the length of the block, within its transaction.

    Others can read the indexed tables meanwhile and write to them after the transaction. Deferred constraints are checked at the end of the block.
    """
    lent = []
    if relations:
        for number, (shown, schema, table, columns) in enumerate(driver.rows(connection, _UNINDEXED, (list(relations),))):
            if _made(connection, f"CREATE INDEX migration_lent_{number} ON {ident(schema)}.{ident(table)} ({columns})"):
                lent.append(f"{shown}.migration_lent_{number}")
    yield
    if lent:
        driver.rows(connection, "SET CONSTRAINTS ALL IMMEDIATE")  # an index cannot be dropped before what was deferred was looked at
        driver.rows(connection, f"DROP INDEX {', '.join(lent)}")


def _made(connection: driver.Connection, statement: str) -> bool:
    """Make an index unless somebody holds its table longer than a moment."""
    before = driver.scalar(connection, "SELECT current_setting('lock_timeout')")
    driver.rows(connection, f"SAVEPOINT lending; SET LOCAL lock_timeout = '{_PATIENCE}'")
    try:
        driver.rows(connection, statement)
    except Exception as exc:
        if getattr(exc, "pgcode", None) != "55P03":
            raise
        driver.rows(connection, "ROLLBACK TO SAVEPOINT lending")
        return False
    driver.rows(connection, f"SET LOCAL lock_timeout = '{before}'; RELEASE SAVEPOINT lending")
    return True
