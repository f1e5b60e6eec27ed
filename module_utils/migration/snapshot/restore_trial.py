# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try, by reading, what a restore computes from the rows of a database.

pg_restore works with an empty search_path. A function that finds its tables by the search_path, and that a constraint, an
index, a generated column, a domain or a materialised view calls, fails then. A foreign key that says VALID and is broken
(rows were written with its triggers off) fails too. Both are found here by evaluating the same expressions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..postgres import databases, driver
from ..postgres.driver import Endpoint
from .superuser_objects import DATA, Obstacle

LONGEST = "60s"  # an expression that takes longer is left to the restore
# What says nothing of a restore: rights (looked at elsewhere), writing in a transaction that may not, too slow, out of room, locked, ended.
_SAYS_NOTHING = ("42501", "25", "08", "40", "53", "55", "57", "58")
_OWN_FUNCTION = (
    "EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{catalog}'::regclass AND d.objid = {oid} AND d.refobjid >= 16384"
    " AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass))"
)
_OUTSIDE = "n.nspname !~ '^(pg_|information_schema$)'"

# Each yields what an operator calls it, and a statement that evaluates what a restore would: a count that is used, or it would be planned away.
_EVALUATED = (
    f"""SELECT 'the CHECK constraint ' || quote_ident(k.conname) || ' of ' || k.conrelid::regclass,
        format('SELECT count(*) FROM ONLY %s WHERE NOT (%s)', k.conrelid::regclass, pg_get_expr(k.conbin, k.conrelid))
        FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace
        WHERE k.contype = 'c' AND k.conrelid <> 0 AND k.convalidated AND {_OUTSIDE} AND {_OWN_FUNCTION.format(catalog="pg_constraint", oid="k.oid")}""",
    f"""SELECT 'the index ' || i.indexrelid::regclass,
        format('SELECT count(ROW(%s)) < 0 FROM ONLY %s%s', (
            SELECT string_agg('(' || pg_get_indexdef(i.indexrelid, place, false) || ')', ', ') FROM generate_series(1, i.indnkeyatts) AS place),
        i.indrelid::regclass, ' WHERE ' || pg_get_expr(i.indpred, i.indrelid))
        FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'm') AND i.indisvalid AND {_OUTSIDE} AND {_OWN_FUNCTION.format(catalog="pg_class", oid="i.indexrelid")}""",
    f"""SELECT 'the generated column ' || quote_ident(a.attname) || ' of ' || f.adrelid::regclass,
        format('SELECT count((%s)) < 0 FROM ONLY %s', pg_get_expr(f.adbin, f.adrelid), f.adrelid::regclass)
        FROM pg_attrdef f JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum JOIN pg_class c ON c.oid = f.adrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE a.attgenerated = 's' AND c.relkind = 'r' AND {_OUTSIDE} AND {_OWN_FUNCTION.format(catalog="pg_attrdef", oid="f.oid")}""",
    f"""SELECT 'the domain ' || k.contypid::regtype || ' of the column ' || quote_ident(a.attname) || ' of ' || a.attrelid::regclass,
        format('SELECT count((%I::%s)::%s) < 0 FROM ONLY %s', a.attname, format_type(t.typbasetype, t.typtypmod),
            k.contypid::regtype, a.attrelid::regclass)
        FROM pg_constraint k JOIN pg_type t ON t.oid = k.contypid JOIN pg_attribute a ON a.atttypid = t.oid JOIN pg_class c ON c.oid = a.attrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE k.contype = 'c' AND NOT a.attisdropped AND c.relkind = 'r' AND {_OUTSIDE} AND {_OWN_FUNCTION.format(catalog="pg_constraint", oid="k.oid")}""",
    """WITH RECURSIVE calling (oid) AS (
        SELECT r.ev_class FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
        WHERE d.refobjid >= 16384 AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
        UNION SELECT r.ev_class FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
        JOIN calling ON d.refclassid = 'pg_class'::regclass AND d.refobjid = calling.oid AND r.ev_class <> calling.oid)
        SELECT 'the materialized view ' || c.oid::regclass, format('SELECT count(made) < 0 FROM (%s) AS made',
            rtrim(pg_get_viewdef(c.oid), '; '))
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN calling ON calling.oid = c.oid
        WHERE c.relkind = 'm' AND c.relispopulated AND n.nspname !~ '^(pg_|information_schema$)'""",
)

_FOREIGN_KEYS = """
SELECT 'the foreign key ' || quote_ident(k.conname) || ' of ' || k.conrelid::regclass,
    format('SELECT count(*) FROM (SELECT FROM ONLY %s AS c WHERE %s AND NOT EXISTS (SELECT FROM %s%s AS p WHERE %s) LIMIT 1) AS without',
        k.conrelid::regclass,
        (SELECT string_agg(format('c.%I IS NOT NULL', a.attname), ' AND ') FROM unnest(k.conkey) AS n (num)
            JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = num),
        CASE WHEN p.relkind = 'p' THEN '' ELSE 'ONLY ' END, k.confrelid::regclass,
        (SELECT string_agg(format('p.%I OPERATOR(%I.%s) c.%I', theirs.attname, s.nspname, o.oprname, ours.attname), ' AND ')
            FROM unnest(k.conkey, k.confkey, k.conpfeqop) AS n (our, their, op) JOIN pg_operator o ON o.oid = op JOIN pg_namespace s ON s.oid = o.oprnamespace
            JOIN pg_attribute ours ON ours.attrelid = k.conrelid AND ours.attnum = our
            JOIN pg_attribute theirs ON theirs.attrelid = k.confrelid AND theirs.attnum = their))
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class p ON p.oid = k.confrelid
WHERE k.contype = 'f' AND k.convalidated AND c.relkind = 'r' AND to_jsonb(k) ->> 'conperiod' IS DISTINCT FROM 'true' ORDER BY 1
"""


def obstacles(endpoint: Endpoint) -> list[Obstacle]:
    """Return what of the database's rows a restore would stumble over; reads the rows of tables with such expressions."""
    connection = driver.connect(endpoint, application_name=databases.APPLICATION_NAME, readonly=True)
    with contextlib.closing(connection), driver.database_errors(endpoint.place, "trying what a restore would do"):
        driver.rows(connection, "SELECT set_config('search_path', '', true), set_config('statement_timeout', %s, true)", (LONGEST,))
        return [*_expressions(connection), *_references(connection)]


def _expressions(connection: driver.Connection) -> Iterator[Obstacle]:
    for statement in _EVALUATED:
        for what, trial in driver.rows(connection, statement):
            fault = _tried(connection, trial)
            if fault:
                step = "give the functions that it calls their search_path (ALTER FUNCTION ... SET search_path = ...) or qualify what they name"
                yield Obstacle(f"{' '.join(what.split())} cannot be restored: {fault}", f"{step}, or {DATA}")


def _references(connection: driver.Connection) -> Iterator[Obstacle]:
    for what, trial in driver.rows(connection, _FOREIGN_KEYS):
        if _tried(connection, trial) == _VIOLATED:
            step = "correct these rows, or make the constraint NOT VALID"
            yield Obstacle(
                f"{' '.join(what.split())} says that it is valid, and rows violate it", f"{step}, or {DATA}"
            )


_VIOLATED = "rows violate it"


def _tried(connection: driver.Connection, trial: str) -> str:
    """Return what is wrong with what a trial evaluates, or ''."""
    driver.rows(connection, "SAVEPOINT trial")
    try:
        violated = driver.scalar(connection, trial)
    except Exception as exc:
        state = getattr(exc, "pgcode", None)
        if state is None:
            raise
        driver.rows(connection, "ROLLBACK TO SAVEPOINT trial")
        return "" if state.startswith(_SAYS_NOTHING) else f"it fails with an empty search_path [SQLSTATE {state}]"
    driver.rows(connection, "RELEASE SAVEPOINT trial")
    return _VIOLATED if violated else ""
