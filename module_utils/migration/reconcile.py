# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settle what changed in the source between two snapshots: compare at one new snapshot, make the differing keys equal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from . import driver, ids
from .context import Context
from .contract import Contract
from .equalize import Equalized, equalize, yielded_ids
from .order import parents_first
from .plan import Part, Target
from .snapshots import read_only_snapshot
from .verify import Finding, Options, compare

APPLICATION_NAME = "edulink-migration reconcile"
_FOREIGN_KEY = "23503"
_ALL = 10**9


def reconcile(context: Context, plan_time: str) -> int:
    """Make every target equal to one new snapshot of the source; return how many rows were written."""
    holder = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    try:
        driver.rows(holder, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        snapshot = str(driver.scalar(holder, "SELECT pg_export_snapshot()"))
        found = compare(context, plan_time, snapshot=snapshot, options=Options(findings_kept=_ALL))
        # What a service made itself meanwhile stays; validation names it.
        ours = [item for item in found.findings if item.source_key is not None or item.id is None or ids.minted(item.id)]
        return settle(context, plan_time, snapshot, ours).rows
    finally:
        holder.close()


@dataclass
class _Work:
    """What is to be made equal in one target: source keys by part, and ids that may have to go."""

    target: Target
    keys: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    ids: list[str] = field(default_factory=list)

    @property
    def parts(self) -> Iterator[tuple[Part, list[str]]]:
        """Return the parts with keys to re-read."""
        return ((part, self.keys[part.name]) for part in self.target.parts if part.name in self.keys)


def settle(context: Context, plan_time: str, snapshot: str, findings: Sequence[Finding]) -> Equalized:
    """Make the rows of these findings what the source says in an exported snapshot; one transaction for each database.

    Parents are written before the rows that refer to them and deleted after them.
    """
    source = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    done = Equalized()
    try:
        read_only_snapshot(source, snapshot)
        for name, data in context.plan.contracts:
            work = _work(context, name, Contract.from_dict(data), findings)
            if not work:
                continue
            connection = context.connect_target(name, APPLICATION_NAME)
            try:
                with driver.database_errors(context.targets[name].place, "making rows equal to the source"), connection:
                    done += _settle_database(context, source, connection, work)
            finally:
                connection.close()
    finally:
        source.close()
    return done


def _work(context: Context, service: str, contract: Contract, findings: Sequence[Finding]) -> list[_Work]:
    """Return what is to be done in one database, parents first."""
    chosen: dict[str, _Work] = {}
    for target in parents_first(context.plan.of(service), contract):
        chosen[target.name] = _Work(target)
    for finding in findings:
        if finding.target not in chosen:
            continue
        if finding.source_key is not None and finding.part is not None:
            chosen[finding.target].keys[finding.part].append(finding.source_key)
        if finding.id is not None:
            chosen[finding.target].ids.append(finding.id)
    return [work for work in chosen.values() if work.keys or work.ids]


def _settle_database(context: Context, source: driver.Connection, connection: driver.Connection, work: Sequence[_Work]) -> Equalized:
    """Delete, then write; the other way round when a row still refers to one that goes."""
    driver.rows(connection, "SAVEPOINT settle")
    try:
        return _delete(context, source, connection, work) + _write(context, source, connection, work)
    except Exception as exc:
        if getattr(exc.__cause__ or exc, "pgcode", None) != _FOREIGN_KEY:
            raise
    driver.rows(connection, "ROLLBACK TO SAVEPOINT settle")
    return _write(context, source, connection, work) + _delete(context, source, connection, work)


def _write(context: Context, source: driver.Connection, connection: driver.Connection, work: Sequence[_Work]) -> Equalized:
    done = Equalized()
    for item in work:
        for part, keys in item.parts:
            done += equalize(source, connection, context.source.schema, item.target, part, keys)
    return done


def _delete(context: Context, source: driver.Connection, connection: driver.Connection, work: Sequence[_Work]) -> Equalized:
    """Delete the ids that no given source key yields."""
    done = Equalized()
    for item in reversed(work):
        wanted = {key for _, keys in item.parts for key in keys}
        gone = item.ids if not wanted else _not_yielded(context, source, item)
        if gone:
            done += equalize(source, connection, context.source.schema, item.target, item.target.parts[0], (), gone)
    return done


def _not_yielded(context: Context, source: driver.Connection, item: _Work) -> list[str]:
    """Return the ids of the work that none of its source keys yields."""
    present: set[str] = set()
    for part, keys in item.parts:
        present |= yielded_ids(source, context.source.schema, part, keys)
    return [value for value in item.ids if value not in present]


