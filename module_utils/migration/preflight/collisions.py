# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows that are in a target already: ours, or somebody's that a migrated row would collide with.

Ours are those whose id the projection makes. Both sides count and sum their ids by the first byte of the digest, so only
what differs is looked at; of rows that are not ours the unique columns are compared as sha256, so no value travels.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from contextlib import closing

from ..checks.findings import STOP, WARN, Finding
from ..checks.row_checks import PartScan
from ..checks.sql_errors import about_rows, said
from ..checks.unique_checks import Unique, build_uniques
from ..context import Context
from ..errors import MigrationError
from ..plan import row_id
from ..plan.model import Target
from ..postgres import driver
from ..postgres.quote import array, ident
from ..state import ledger

FIRST = 5
MOST_FOREIGN = 50_000  # rows of a service's own that are compared one by one
APPLICATION_NAME = "edulink-migration preflight"

# The two numbers of a bucket: how many ids, and the sum of 48 of their random bits (bytes 0 to 5).
_BUCKET = "get_byte(id, 0), count(*), sum(('x' || encode(substring(id FROM 1 FOR 6), 'hex'))::bit(48)::bigint)"


def check(context: Context, source: driver.Connection, scans: Sequence[PartScan], settings: Mapping[str, str]) -> list[Finding]:
    """Return a finding for each key of a target that a row of the service's own holds already; `settings` are for the connections."""
    findings: list[Finding] = []
    for service in context.plan.services:
        with closing(context.connect_target(service, APPLICATION_NAME, readonly=True, settings=settings, autocommit=True)) as connection:
            for target in context.plan.of(service):
                mine = [scan for scan in scans if scan.target is target]
                if target.bookkeeping or len(mine) != len(target.parts):
                    continue
                with driver.database_errors(context.targets[service].place, f"reading {target.qualified}"):
                    findings += _check_target(context, source, connection, target, mine)
    return findings


def _check_target(context: Context, source: driver.Connection, connection: driver.Connection, target: Target, scans: Sequence[PartScan]) -> list[Finding]:
    there = driver.scalar(connection, "SELECT to_regclass(%s)::oid", (target.qualified,))
    if there is None or not driver.scalar(connection, f"SELECT EXISTS (SELECT FROM {target.qualified})"):
        return []
    foreign = _foreign(source, connection, target, scans)
    findings = _there_before(connection, target, len(foreign))
    if not foreign:
        return findings
    findings += [
        Finding(
            WARN, target.name, "present", "are in the target and no row of the source makes them",
            "if the service has made them they stay; validate counts them as differences before cutover",
            target.name, "", len(foreign),
        )
    ]  # fmt: skip
    if len(foreign) > MOST_FOREIGN:
        findings.append(
            Finding(
                STOP,
                target.name,
                "collision",
                f"more than {MOST_FOREIGN} rows are in the target and not of this migration",
                "empty the table, or migrate into another database",
                target.name,
                "",
                len(foreign),
            )
        )
        return findings
    for unique in build_uniques(context.plan, target, scans):
        if not unique.elements:
            continue
        try:
            with driver.database_errors(target.name, unique.name):
                findings += _collisions(source, connection, unique, foreign)
        except MigrationError as exc:
            if not about_rows(exc):
                raise
            message, step = f"cannot be compared with rows of the service's own ({said(exc)})", "compare them by hand, or simplify the index"
            findings.append(Finding(STOP, unique.place, "collision", message, step, target.name, ", ".join(unique.columns)))
    return findings


def _there_before(connection: driver.Connection, target: Target, foreign: int) -> list[Finding]:
    """Return a finding when rows have the names that migrated ones will have, before any migration wrote here: kept ids and parents' ids can be known."""
    if row_id.kind(target) == row_id.COMPUTED or ledger.exists(connection):
        return []
    rows = int(driver.scalar(connection, f"SELECT count(*) FROM {target.qualified}")) - foreign
    if rows <= 0:
        return []
    message = "are in the target under primary keys of migrated rows, and no migration wrote them: they would be overwritten, and a rollback delete them"
    return [Finding(STOP, target.name, "collision", message, "remove them, or leave their source rows out of the mapping", target.name, "", rows)]


def _foreign(source: driver.Connection, connection: driver.Connection, target: Target, scans: Sequence[PartScan]) -> list[str]:
    """Return the ids (hex) that are in the target and not in the projection."""
    own = " UNION ALL ".join(f"SELECT {row_id.source_bytes(target, scan.part)} AS id FROM {scan.base}" for scan in scans)
    theirs = f"SELECT {row_id.target_bytes(target)} AS id FROM {target.qualified} AS t"
    here = {row[0]: row[1:] for row in driver.rows(source, f"SELECT {_BUCKET} FROM ({own}) AS ids WHERE id IS NOT NULL GROUP BY 1")}
    there = {row[0]: row[1:] for row in driver.rows(connection, f"SELECT {_BUCKET} FROM ({theirs}) AS ids GROUP BY 1")}
    found: list[str] = []
    differing = sorted(bucket for bucket, numbers in there.items() if here.get(bucket) != numbers)
    for start in range(0, len(differing), 16):
        some = ", ".join(str(bucket) for bucket in differing[start : start + 16])
        ids = f"SELECT encode(id, 'hex') FROM ({{}}) AS ids WHERE get_byte(id, 0) IN ({some})"
        mine = {row[0] for row in driver.rows(source, ids.format(own))}
        found += [row[0] for row in driver.rows(connection, ids.format(theirs)) if row[0] not in mine]
        if len(found) > MOST_FOREIGN:
            break
    return found


def _collisions(source: driver.Connection, connection: driver.Connection, unique: Unique, foreign: Sequence[str]) -> list[Finding]:
    """Return the rows of the source that hold what a row of the service's own holds already in this key."""
    target = unique.target
    numeric = {ident(name) for name, kind in zip(target.columns, target.column_types, strict=True) if re.match(r"numeric(\(|$)", kind)}
    held = ", ".join(f"{sql} AS v{number}" for number, sql in enumerate(unique.elements, 1))
    wanted = f"encode({row_id.target_bytes(target, ident(target.table))}, 'hex') = ANY ({array(foreign)}::text[])"
    predicate = f" AND ({unique.predicate})" if unique.predicate else ""
    theirs = f"SELECT {held} FROM {target.qualified} AS {ident(target.table)} WHERE {wanted}{predicate}"
    digest = _digest(unique, numeric)
    values = [bytes(row[0]) for row in driver.rows(connection, f"SELECT DISTINCT {digest} FROM ({theirs}) AS every") if row[0] is not None]
    if not values:
        return []
    with source.cursor() as cursor:
        bound = cursor.mogrify("%s", (values,)).decode()
    statement = f"SELECT source_key FROM (SELECT source_key, {digest} AS digest FROM ({unique.rows}) AS every) AS digested WHERE digest = ANY ({bound})"
    keys = sorted((str(row[0]) for row in driver.rows(source, statement)), key=lambda key: (len(key), key))
    if not keys:
        return []
    return [
        Finding(
            STOP, unique.place, "collision", f"hold a value that a row of the service's own has already ({unique.name} is unique)",
            f"change or remove the row in {target.name}, or correct the source", target.name, ", ".join(unique.columns), len(keys), tuple(keys[:FIRST]),
        )
    ]  # fmt: skip


def _digest(unique: Unique, numeric: Container[str]) -> str:
    """Return the sha256 of a key's values (v1..vn) as text, so that equal values are equal: 1.50 is 1.5. NULL where one is and NULLs differ."""
    joined = []
    for number, element in enumerate(unique.elements, 1):
        value = f"trim_scale(v{number})" if element in numeric else f"v{number}"
        text = f"convert_to(({value})::text, 'UTF8')"
        field = f"int4send(octet_length({text})) || {text}"
        joined.append(field if unique.nulls_distinct else f"coalesce({field}, '')")
    return f"sha256({' || '.join(joined)})"
