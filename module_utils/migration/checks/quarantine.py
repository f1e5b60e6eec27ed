# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rows stay behind: those that the operator's policies quarantine, and everything that depends on them.

Computed once per plan: the rows that break a quarantined rule alone, then what refers to them through an id map, then of
every value that must be unique all rows but the one with the lowest key, then what refers to those, until nothing is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace

from ..context import Context
from ..errors import MigrationError
from ..plan.model import Plan
from ..postgres import driver
from ..state.exported_snapshot import read_only_snapshot
from . import embedded_checks, foreign_key_checks, source_catalog
from .prepare import prepare
from .row_checks import PartScan
from .unique_checks import Unique, build_uniques

CAP = 100_000
APPLICATION_NAME = "edulink-migration preflight"


@dataclass(frozen=True)
class Reject:
    """A row that stays behind: the rule it breaks, or the row that `caused_by` names ("target key")."""

    target: str
    part: str
    source_key: str
    id: str | None
    rule: str
    column_name: str
    reason: str
    caused_by: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """Return the reject as ledger.add_rejects() takes it."""
        return asdict(self)


def quarantines(plan: Plan) -> bool:
    """Return whether any mapping quarantines anything."""
    return any(policy.policy == "quarantine" for target in plan.targets for policy in target.policies)


def by_part(found: Sequence[Reject]) -> dict[tuple[str, str], list[str]]:
    """Return the source keys by (target, part)."""
    keys: dict[tuple[str, str], list[str]] = {}
    for item in found:
        keys.setdefault((item.target, item.part), []).append(item.source_key)
    return keys


def compute(
    context: Context, *, plan_time: str, cap: int = CAP, settings: Mapping[str, str] | None = None, snapshot: str | None = None
) -> tuple[Reject, ...]:
    """Return every row that the plan's policies keep out, dependants and id map rows included; MigrationError above the cap.

    `snapshot` is an exported snapshot of the source to look at, from where the targets may be out of reach: they are then taken for UTF8.
    """
    if not quarantines(context.plan):
        return ()
    context = replace(context, quarantined={})  # the rows are judged by what the source has
    with closing(context.connect_source(APPLICATION_NAME, plan_time=plan_time, settings=settings, autocommit=True)) as connection:
        with driver.database_errors(context.source.place, "reading the catalog"):
            catalog = source_catalog.read(connection, context.source.schema)
        if snapshot is not None:
            with driver.database_errors(context.source.place, "reading in the exported snapshot"):
                read_only_snapshot(connection, snapshot)
        encodings = encodings_of(context, connection, reachable=snapshot is None)
        scans, findings = prepare(connection, context.plan, catalog, encodings)
        if findings:
            raise MigrationError(f"{findings[0].place}: {findings[0].message}; run playbooks/preflight.yml")
        with driver.database_errors(context.source.place, "finding the quarantined rows"):
            return _Search(connection, context.plan, scans, catalog, cap).run()


def encodings_of(context: Context, source: driver.Connection, *, reachable: bool = True) -> dict[str, tuple[str, str]]:
    """Return the encodings of source and target for each service; targets out of reach are taken for UTF8."""
    have = driver.scalar(source, "SHOW server_encoding")
    if not reachable:
        return dict.fromkeys(context.plan.services, (have, "UTF8"))
    result = {}
    for service in context.plan.services:
        with closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as connection:
            result[service] = (have, driver.scalar(connection, "SHOW server_encoding"))
    return result


class _Search:
    """The rejected rows so far, by target and part."""

    def __init__(self, connection: driver.Connection, plan: Plan, scans: Sequence[PartScan], catalog: source_catalog.SourceCatalog, cap: int) -> None:
        self.connection, self.plan, self.scans, self.catalog, self.cap = connection, plan, scans, catalog, cap
        self.found: dict[tuple[str, str], dict[str, Reject]] = {(scan.target.name, scan.part.name): {} for scan in scans}
        self.total = 0

    def run(self) -> tuple[Reject, ...]:
        for scan in self.scans:
            self._own_faults(scan)
        uniques = [
            (unique, [scan for scan in self.scans if scan.target is unique.target])
            for target in self.plan.targets
            if (mine := [scan for scan in self.scans if scan.target is target])
            for unique in build_uniques(self.plan, target, mine)
            if unique.policy is not None and unique.policy.policy == "quarantine"
        ]
        every = (*foreign_key_checks.build(self.plan, self.scans), *embedded_checks.build(self.plan, self.scans))
        references = [item for item in every if item.parents]
        before = -1
        while self.total != before:
            before = self.total
            self._dependants()
            for reference in references:
                self._hanging(reference)
            for unique, scans in uniques:
                self._duplicates(unique, scans)
        return (*(reject for rows in self.found.values() for reject in rows.values()), *self._id_map_rows())

    def _add(
        self, scan: PartScan, key: str | None, row_id: bytes | memoryview | None, rule: str, column: str, reason: str, caused_by: str | None = None
    ) -> None:
        rows = self.found[scan.target.name, scan.part.name]
        if key is None or key in rows:
            return
        text = None if row_id is None else bytes(row_id).hex()
        rows[key] = Reject(scan.target.name, scan.part.name, key, text, rule, column, reason, caused_by)
        self.total += 1
        if self.total > self.cap:
            raise MigrationError(f"more than {self.cap} rows would be quarantined, dependants included; correct the source, or raise preflight_quarantine_cap")

    def _own_faults(self, scan: PartScan) -> None:
        checks = [check for check in scan.checks if check.rejects]
        if not checks:
            return
        which = " ".join(f"WHEN {check.sql} THEN {number}" for number, check in enumerate(checks))
        statement = (
            f"SELECT * FROM (SELECT {scan.part.key_text} AS key, {scan.part.id_sql} AS id, CASE {which} END AS broken FROM {scan.source}) AS every"
            f" WHERE broken IS NOT NULL LIMIT {self.cap + 1}"
        )
        for key, row_id, number in driver.rows(self.connection, statement):
            check = checks[number]
            self._add(scan, key, row_id, check.rule, check.column, check.message)

    def _dependants(self) -> None:
        done: dict[str, int] = {}
        while True:
            rejected = self._keys_by_entity()
            fresh = [entity for entity, keys in rejected.items() if len(keys) != done.get(entity, 0)]
            if not fresh:
                return
            for entity in fresh:
                done[entity] = len(rejected[entity])
                for scan in self.scans:
                    for parent in scan.parents:
                        if parent.entity == entity and not parent.null:
                            self._children(scan, parent.child, parent.column, entity, rejected[entity])

    def _keys_by_entity(self) -> dict[str, list[str]]:
        result: dict[str, list[str]] = {}
        for scan in self.scans:
            keys = self.found[scan.target.name, scan.part.name]
            if keys and scan.part.minted:
                result.setdefault(scan.part.entity, []).extend(keys)
        return result

    def _children(self, scan: PartScan, child: str, column: str, entity: str, keys: list[str]) -> None:
        statement = f"SELECT {scan.part.key_text}, {scan.part.id_sql}, ({child})::text FROM {scan.base}"
        glue = "AND" if " WHERE " in scan.base.rpartition("AS src")[2] else "WHERE"
        with self.connection.cursor() as cursor:
            bound = cursor.mogrify("%s::text[]", (keys,)).decode()
        for key, row_id, parent in driver.rows(self.connection, f"{statement} {glue} ({child})::text = ANY ({bound}) LIMIT {self.cap + 1}"):
            self._add(scan, key, row_id, "dependant", column, f"refers to a quarantined row of {entity}", f"{entity} {parent}")

    def _hanging(self, reference: foreign_key_checks.Reference) -> None:
        """Put aside what hangs, by the operator's policy, and what refers to a row that stays behind, in any case."""
        refused = {place: keys for scan in reference.parents if (keys := self.found[place := (scan.target.name, scan.part.name)])}
        if not reference.rejects and not refused:
            return
        for key, row_id, place, stays in driver.rows(self.connection, f"{reference.hanging(refused)} LIMIT {self.cap + 1}"):
            if stays or reference.rejects:
                rule, what = ("dependant", "a quarantined row") if stays else ("foreign_key", "no row")
                other = f"{reference.foreign.schema}.{reference.foreign.table}"
                self._add(reference.scans[place], key, row_id, rule, ", ".join(reference.columns), f"refers to {what} of {other}")

    def _duplicates(self, unique: Unique, scans: Sequence[PartScan]) -> None:
        by_part = {scan.part.name: scan for scan in scans}
        places = list(enumerate(part.part.name for part in unique.parts))
        gone = [(number, key) for number, name in places for key in self.found[unique.target.name, name]]
        with self.connection.cursor() as cursor:
            bound = cursor.mogrify("unnest(%s::int[], %s::text[])", ([number for number, _ in gone], [key for _, key in gone])).decode()
        statement = (
            f"SELECT place, source_key, id, n FROM (SELECT place, source_key, id, row_number() OVER (PARTITION BY {unique.keys}"
            f" ORDER BY place, length(source_key), source_key) AS n FROM ({unique.rows}) AS every"
            f" WHERE NOT EXISTS (SELECT FROM {bound} AS gone (place, key) WHERE gone.place = every.place AND gone.key = every.source_key)) AS each"
            f" WHERE n > 1 LIMIT {self.cap + 1}"
        )
        names = dict(places)
        for number, key, row_id, _n in driver.rows(self.connection, statement):
            self._add(by_part[names[number]], key, row_id, "unique", ", ".join(unique.columns), f"another row holds the same value ({unique.name} is unique)")

    def _id_map_rows(self) -> list[Reject]:
        """Return the rows of the id map whose own rows stay behind."""
        result = []
        for target in self.plan.targets:
            if not (target.bookkeeping and target.table == "id_map"):
                continue
            for part in target.parts:
                for scan in self.scans:
                    if scan.part.entity == part.entity and scan.target is not target:
                        for row in self.found[scan.target.name, scan.part.name].values():
                            result.append(
                                Reject(
                                    target.name,
                                    part.name,
                                    row.source_key,
                                    row.id,
                                    "dependant",
                                    "id",
                                    f"the row itself is quarantined in {row.target}",
                                    f"{part.entity} {row.source_key}",
                                )
                            )
        return result
