# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settle what changed in the source between two snapshots: compare at one new snapshot, make the differing keys equal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from . import driver, ids
from .context import Context
from .contract import Contract
from .equalize import Equalized, Work, equalize
from .order import parents_first
from .snapshots import read_only_snapshot
from .verify import Finding, Options, compare

APPLICATION_NAME = "edulink-migration reconcile"
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


def settle(context: Context, plan_time: str, snapshot: str, findings: Sequence[Finding]) -> Equalized:
    """Make the rows of these findings what the source says in an exported snapshot; one transaction for each database."""
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
                    done += equalize(source, connection, context.source.schema, work)
            finally:
                connection.close()
    finally:
        source.close()
    return done


def _work(context: Context, service: str, contract: Contract, findings: Sequence[Finding]) -> list[Work]:
    """Return what is to be done in one database, parents first."""
    keys: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    ids: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        if finding.source_key is not None and finding.part is not None:
            keys[finding.target][finding.part].append(finding.source_key)
        if finding.id is not None:
            ids[finding.target].append(finding.id)
    ordered = parents_first(context.plan.of(service), contract)
    return [Work(target, keys[target.name], ids[target.name]) for target in ordered if keys[target.name] or ids[target.name]]
