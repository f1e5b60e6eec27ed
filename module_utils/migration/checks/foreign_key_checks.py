# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign keys of the schema SQL that are no plain reference through an id map: of several columns, to other keys, of constants.

A Reference asks the source about all parts of both targets together: which rows hold values that no row of the other table will have.
Where no mapping fills the other table, the rows that the target has of it already are what counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..contract.model import ForeignKey
from ..plan.model import Plan, Policy, Target
from ..plan.predicates import none_of
from ..postgres import driver
from ..postgres.quote import array, ident, qualified
from .findings import STOP, WARN, Finding
from .row_checks import PartScan, minting_part, policy_of, spec_of

FIRST = 5
MOST_VALUES = 10_000  # values that are looked up in a table that no mapping fills
Refused = Mapping[tuple[str, str], Collection[str]]  # (target, part): source keys


@dataclass(frozen=True)
class Reference:
    """A foreign key: `scans` are its own table's, `parents` the other's (none where no mapping fills it)."""

    target: Target
    name: str
    columns: tuple[str, ...]
    foreign: ForeignKey
    scans: tuple[PartScan, ...]
    parents: tuple[PartScan, ...]
    place: str
    policy: Policy | None

    @property
    def rejects(self) -> bool:
        """Return whether the operator chose to quarantine rows whose reference hangs."""
        return self.policy is not None and self.policy.policy == "quarantine"

    def _children(self) -> str:
        bodies = [
            f"SELECT {_list(scan, self.columns)}, {scan.part.key_text} AS source_key, {scan.part.id_sql} AS id, {number} AS place FROM {scan.base}"
            for number, scan in enumerate(self.scans)
        ]
        return " UNION ALL ".join(bodies)

    def _others(self, refused: Refused) -> str:
        bodies = []
        for scan in self.parents:
            keys = refused.get((scan.target.name, scan.part.name), ())
            where = f" WHERE {none_of(tuple(keys))(scan.part.key_text)}" if keys else ""
            bodies.append(f"SELECT {_list(scan, self.foreign.columns)} FROM {scan.base}{where}")
        return f"SELECT DISTINCT true AS hit, {self._names()} FROM ({' UNION ALL '.join(bodies)}) AS every"

    def _names(self, alias: str = "") -> str:
        return ", ".join(f"{alias}v{number}" for number in range(1, len(self.columns) + 1))

    def _present(self, word: str) -> str:
        return f" {word} ".join(f"c.v{number} IS NOT NULL" for number in range(1, len(self.columns) + 1))

    def hanging(self, refused: Refused) -> str:
        """Return the SQL of (source_key, id, place, whether a row that stays behind had the values) of rows that hang."""
        on = " AND ".join(f"{{0}}.v{number} = c.v{number}" for number in range(1, len(self.columns) + 1))
        complete, some = self._present("AND"), self._present("OR")
        broken = f"({complete}) AND k.hit IS NULL" + (f" OR ({some}) AND NOT ({complete})" if self.foreign.full_match else "")
        every, had = ("", "false") if not refused else (f" LEFT JOIN ({self._others({})}) AS e ON {on.format('e')}", "e.hit IS NOT NULL")
        return (
            f"SELECT c.source_key, c.id, c.place, {had} AS stays FROM ({self._children()}) AS c"
            f" LEFT JOIN ({self._others(refused)}) AS k ON {on.format('k')}{every} WHERE {broken}"
        )

    def values(self) -> str:
        """Return the SQL of the texts that the rows hold, each once, with one key and the number of rows."""
        texts = ", ".join(f"v{number}::text" for number in range(1, len(self.columns) + 1))
        return (
            f"SELECT ARRAY[{texts}] AS held, min(source_key), count(*) FROM ({self._children()}) AS c WHERE {self._present('AND')}"
            f" GROUP BY 1 ORDER BY 2 LIMIT {MOST_VALUES + 1}"
        )


def build(plan: Plan, scans: Sequence[PartScan]) -> tuple[Reference, ...]:
    """Return the foreign keys whose tables can all be scanned and that no id map proves."""
    found = []
    targets = {(target.service, target.schema, target.table): target for target in plan.targets}
    for target in plan.targets:
        mine = _of(target, scans)
        spec = spec_of(plan, target)
        for constraint in spec.constraints if spec and mine else ():
            foreign = constraint.foreign
            if foreign is None or _through_an_id_map(plan, target, constraint.columns, foreign):
                continue
            other = targets.get((target.service, foreign.schema, foreign.table))
            parents = _of(other, scans) if other else ()
            if other is not None and not parents:
                continue  # it cannot be read, and that has been said
            place = next((cell.place for cell in target.parts[0].cells if cell.name == constraint.columns[0]), "") or target.parts[0].label
            policy = next((chosen for name in constraint.columns if (chosen := policy_of(target, name, "foreign_key"))), None)
            found.append(Reference(target, constraint.name, constraint.columns, foreign, mine, parents, place, policy))
    return tuple(found)


def check(source: driver.Connection, targets: Mapping[str, driver.Connection], references: Sequence[Reference]) -> list[Finding]:
    """Return a finding for each foreign key that some row would break."""
    findings = []
    for reference in references:
        with driver.database_errors(reference.target.name, f"following the foreign key {reference.name}"):
            if reference.parents:
                hanging = reference.hanging({})
                count = int(driver.scalar(source, f"SELECT count(*) FROM ({hanging}) AS hanging"))
                first = f"SELECT source_key FROM ({hanging}) AS hanging ORDER BY length(source_key), source_key LIMIT {FIRST}"
                keys = [str(row[0]) for row in driver.rows(source, first)] if count else []
            else:
                count, keys = _outside(source, targets[reference.target.service], reference)
        if count:
            findings.append(_finding(reference, count, keys))
    return findings


def _outside(source: driver.Connection, target: driver.Connection, reference: Reference) -> tuple[int, list[str]]:
    """Return how many rows refer to what a table that no mapping fills does not hold, and some keys."""
    held = driver.rows(source, reference.values())
    foreign = reference.foreign
    there: set[tuple[str, ...]] = set()
    if len(held) <= MOST_VALUES and held and driver.scalar(target, "SELECT to_regclass(%s)::oid", (qualified(foreign.schema, foreign.table),)) is not None:
        texts = ", ".join(f"{ident(name)}::text" for name in foreign.columns)
        wanted = array(str(row[0][0]) for row in held)
        statement = f"SELECT {texts} FROM {qualified(foreign.schema, foreign.table)} WHERE {ident(foreign.columns[0])}::text = ANY ({wanted}::text[])"
        there = set(driver.rows(target, statement))
    missing = [row for row in held if tuple(row[0]) not in there]
    return sum(int(row[2]) for row in missing), [str(row[1]) for row in missing[:FIRST]]


def _finding(reference: Reference, count: int, keys: Sequence[str]) -> Finding:
    other = f"{reference.foreign.schema}.{reference.foreign.table} ({', '.join(reference.foreign.columns)})"
    label = ", ".join(reference.columns)
    if reference.rejects and reference.parents:
        step = "quarantined by policy, with what depends on them: they go to migration.rejects"
        return Finding(WARN, reference.place, "foreign_key", f"refer to no row of {other}", step, reference.target.name, label, count, tuple(keys))
    if reference.parents:
        message = f"refer to no row of {other} ({reference.name})"
        step = f"correct the rows in the source, or choose in the mapping: policies: {{{reference.columns[0]}: {{foreign_key: quarantine}}}}"
    else:
        message = f"refer to {other} in the schema SQL ({reference.name}), which no mapping fills and which has no such row"
        step = "map that table, put the rows into the target, or drop the reference from the schema SQL"
    return Finding(STOP, reference.place, "foreign_key", message, step, reference.target.name, label, count, tuple(keys))


def _of(target: Target, scans: Sequence[PartScan]) -> tuple[PartScan, ...]:
    mine = tuple(scan for scan in scans if scan.target is target)
    return mine if len(mine) == len(target.parts) else ()


def _list(scan: PartScan, columns: Sequence[str]) -> str:
    return ", ".join(f"{scan.values[name].stored} AS v{number}" for number, name in enumerate(columns, 1))


def _through_an_id_map(plan: Plan, target: Target, columns: Sequence[str], foreign: ForeignKey) -> bool:
    """Return whether the one column goes through id maps in every part, so that it is checked with each row (coverage says if it is another table's)."""
    cells = [next((item for item in part.cells if item.name == columns[0]), None) for part in target.parts]
    if len(columns) != 1 or not all(cell is not None and cell.is_id and cell.entity for cell in cells):
        return False
    minted = [minting_part(plan, str(cell.entity)) for cell in cells if cell is not None]
    other = (foreign.schema, foreign.table, foreign.columns)
    return all(found is not None and other == (found[0].schema, found[0].table, found[0].identity) for found in minted)
