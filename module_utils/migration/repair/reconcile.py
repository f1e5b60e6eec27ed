# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settle what changed in the source between two snapshots: compare at one new snapshot, make the differing keys equal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from ..checks import reconciliation
from ..context import Context
from ..contract.model import Contract
from ..errors import MigrationError
from ..plan import ids
from ..plan.load_order import parents_first
from ..postgres import driver
from ..postgres.quote import ident
from ..state.exported_snapshot import read_only_snapshot
from ..upsert.upsert import Equalized, Work, equalize
from ..validate.result import Finding
from ..validate.run import differing_rows
from .key_spool import Spool

APPLICATION_NAME = "edulink-migration reconcile"
First = Callable[[str, driver.Connection], Equalized]  # of a service, in the transaction that writes to it


def reconcile(context: Context, plan_time: str) -> int:
    """Make every target equal to one new snapshot of the source; return how many rows were written."""
    holder = context.connect_source(APPLICATION_NAME, plan_time=plan_time, autocommit=True)
    try:
        driver.rows(holder, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        snapshot = str(driver.scalar(holder, "SELECT pg_export_snapshot()"))
        found = differing_rows(context, plan_time, snapshot)
        # What a service made itself meanwhile stays; validation names it.
        ours = (item for item in found if item.source_key is not None or item.id is None or ids.minted(item.id))
        written = settle(context, plan_time, snapshot, ours).rows
        _require_every_row(context, plan_time, snapshot)
        return written
    finally:
        holder.close()


def _require_every_row(context: Context, plan_time: str, snapshot: str) -> None:
    """Hold the targets' own rows against what the source has in the snapshot; MigrationError when a sum is off.

    Only ids of the form that this migration mints are counted: what a service made itself is its own.
    """
    held: dict[str, int] = {}
    for service in context.plan.services:
        reading = driver.database_errors(context.targets[service].place, "counting its rows")
        with contextlib.closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as connection, reading:
            for target in context.plan.of(service):
                minted = ids.minted_sql(ident(target.id_column))
                held[target.name] = int(driver.scalar(connection, f"SELECT count(*) FROM {target.qualified} WHERE {minted}"))
    counts = reconciliation.counts_in(context, plan_time, snapshot, reconciliation.put_aside(context))
    assert counts is not None  # the caller holds the snapshot
    found = counts.against(held)
    if not found.passed:
        raise MigrationError(f"{found.verdict}; run it again: it compares both sides row by row and carries what is missing")


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
