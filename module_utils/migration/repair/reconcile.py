# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settle what changed in the source between two snapshots: compare at one new snapshot, make the differing keys equal."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

from ..checks import reconciliation
from ..context import Context
from ..contract.model import Contract
from ..errors import MigrationError
from ..plan import ownership
from ..plan.load_order import parents_first
from ..postgres import driver
from ..state.exported_snapshot import read_only_snapshot
from ..upsert.upsert import Equalized, Work, equalize
from ..validate.result import Finding
from ..validate.run import differing_rows
from .key_spool import Spool

APPLICATION_NAME = "edulink-migration reconcile"
COMPARED = (
    "both sides were compared row by row, which did not help: an index of the source may be damaged (REINDEX TABLE, as its owner in the monolith),"
    " or a mapping's refresh is wrong; mend that, then playbooks/migrate.yml compares anew"
)
BATCH = 10_000  # findings
First = Callable[[str, driver.Connection], Equalized]  # of a service, in the transaction that writes to it


def reconcile(context: Context, plan_time: str) -> int:
    """Make every target equal to one new snapshot of the source; return how many rows were written."""
    holder = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    try:
        driver.rows(holder, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        snapshot = str(driver.scalar(holder, "SELECT pg_export_snapshot()"))
        found = differing_rows(context, plan_time, snapshot)
        written = settle(context, plan_time, snapshot, _ours(context, found)).rows
        _require_every_row(context, plan_time, snapshot)
        return written
    finally:
        holder.close()


def _ours(context: Context, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield findings without the rows that a service made itself meanwhile: those stay, and validation names them."""
    targets = {target.name: target for target in context.plan.targets}
    with contextlib.ExitStack() as stack:
        asks: dict[str, ownership.Ask] = {}
        loaded: dict[str, bool] = {}
        while batch := list(itertools.islice(findings, BATCH)):
            for name, group in itertools.groupby(batch, key=lambda item: item.target):
                target, rows = targets[name], list(group)
                if target.service not in asks:
                    connection = stack.enter_context(
                        contextlib.closing(context.connect_target(target.service, APPLICATION_NAME, readonly=True, autocommit=True))
                    )
                    asks[target.service] = functools.partial(driver.rows, connection)
                if name not in loaded:
                    loaded[name] = ownership.loaded_bare(target, asks[target.service])
                extra = [item.id for item in rows if item.source_key is None and item.id is not None]
                known = ownership.known(target, extra, asks[target.service]) if extra and not loaded[name] else set(extra)
                yield from (item for item in rows if item.source_key is not None or item.id is None or item.id in known)


def _require_every_row(context: Context, plan_time: str, snapshot: str) -> None:
    """Hold the targets' own rows against what the source has in the snapshot; MigrationError when a sum is off.

    Only rows that are known as the migration's are counted: what a service made itself is its own. Where nothing tells, the comparison of
    every row, which has gone before, is all that there is.
    """
    held: dict[str, int] = {}
    untold: list[str] = []
    for service in context.plan.services:
        reading = driver.database_errors(context.targets[service].place, "counting its rows")
        with contextlib.closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as connection, reading:
            for target in context.plan.of(service):
                ours = "true" if ownership.loaded_bare(target, functools.partial(driver.rows, connection)) else ownership.condition(target, "t")
                if ours == "false":
                    untold.append(target.name)
                    continue
                held[target.name] = int(driver.scalar(connection, f"SELECT count(*) FROM {target.qualified} AS t WHERE {ours}"))
    counts = reconciliation.counts_in(context, plan_time, snapshot, reconciliation.put_aside(context))
    assert counts is not None  # the caller holds the snapshot
    found = counts.against(held | {name: counts.expected[name] for name in untold})
    if not found.passed:
        raise MigrationError(reconciliation.missing(context, plan_time, snapshot, found, COMPARED))


def settle(context: Context, plan_time: str, snapshot: str, findings: Iterable[Finding], first: First = lambda service, connection: Equalized()) -> Equalized:
    """Make the rows of these findings what the source says in an exported snapshot; one transaction for each database, which `first` begins.

    The findings, which may be as many as there are rows, are read to their end first.
    """
    with Spool() as spool:
        spool.add(findings)
        return _settle(context, plan_time, snapshot, spool, first)


def _settle(context: Context, plan_time: str, snapshot: str, spool: Spool, first: First) -> Equalized:
    source = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    done = Equalized()
    try:
        read_only_snapshot(source, snapshot)
        for name, data in context.plan.contracts:
            ordered = parents_first(context.plan.of(name), Contract.from_dict(data))
            work = [Work(target, spool.keys(target), spool.ids(target)) for target in ordered if spool.has(target)]
            if not work:
                continue
            connection = context.connect_target(name, APPLICATION_NAME)
            try:
                with driver.database_errors(context.targets[name].place, "making rows equal to the source"), connection:
                    done += first(name, connection) + equalize(source, connection, context.source.schema, work)
            finally:
                connection.close()
    finally:
        source.close()
    return done
