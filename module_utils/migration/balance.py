# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold what was carried against the source's own counts: every row of every mapped table is in one place, and no target has one too few.

The transfer brings the figures of its ledgers, a validation what it has read; both ask the source in the snapshot that their figures come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from . import driver, ledger
from .context import Context
from .plan import Part, Plan, none_of
from .preflight import source_catalog
from .preflight.accounting import Account, Ask, Refused, account
from .preflight.source_catalog import SourceCatalog
from .snapshots import NO_SUCH_SNAPSHOT, read_only_snapshot

APPLICATION_NAME = "edulink-migration accounting"
SETTINGS = {"work_mem": "64MB"}  # for joins of whole tables
SHARES = ("carried", "merged", "quarantined", "dropped")


@dataclass(frozen=True)
class Gap:
    """A target that was given another number of rows than its mappings make of the source, without the quarantined ones."""

    target: str
    expected: int
    carried: int

    @property
    def line(self) -> str:
        """Return the gap in one line."""
        return f"{self.target}: the source has {self.expected} rows for it that are not quarantined, but {self.carried} were carried"


@dataclass(frozen=True)
class Balance:
    """The account of every mapped table, and the targets whose figures are not those of the source."""

    accounts: tuple[Account, ...]
    gaps: tuple[Gap, ...]

    @property
    def passed(self) -> bool:
        """Tell whether every row is accounted for."""
        return not self.gaps and all(item.balanced for item in self.accounts)

    @property
    def lines(self) -> tuple[str, ...]:
        """Return a line for each table or target whose sum is off."""
        return (*(item.line for item in self.accounts if not item.balanced), *(gap.line for gap in self.gaps))

    @property
    def verdict(self) -> str:
        """Return one line."""
        if not self.passed:
            return f"not every source row is accounted for: {'; '.join(self.lines[:3])}"
        sums = {name: sum(getattr(item, name) for item in self.accounts) for name in SHARES}
        shares = " + ".join(f"{number} {name}" for name, number in sums.items() if number)
        return f"every source row is accounted for: {sum(item.rows for item in self.accounts)} = {shares or 0}"

    def to_dict(self) -> dict[str, Any]:
        """Return the balance as JSON can carry it."""
        tables = [item.to_dict() for item in self.accounts]
        return {"passed": self.passed, "verdict": self.verdict, "tables": tables, "gaps": [asdict(gap) for gap in self.gaps]}


@dataclass(frozen=True)
class Counts:
    """What the source has: the account of every mapped table, and how many rows each target is to be given."""

    accounts: tuple[Account, ...]
    expected: Mapping[str, int]

    def against(self, carried: Mapping[str, int]) -> Balance:
        """Return the balance with the rows that each target was given."""
        return Balance(self.accounts, tuple(Gap(name, rows, carried.get(name, 0)) for name, rows in self.expected.items() if carried.get(name, 0) != rows))


def count(ask: Ask, plan: Plan, source: SourceCatalog, refused: Refused) -> Counts:
    """Return what the source has; `ask` runs a statement in the snapshot that is accounted for."""
    accounts = account(ask, plan, source, refused)
    rows = {item.table: item.rows for item in accounts}
    expected: dict[str, int] = {}
    for target in plan.targets:
        expected[target.name] = 0
        for part in target.parts:
            keys = refused.get((target.name, part.name), ())
            known = rows.get(part.table) if part.table is not None and not keys else None
            expected[target.name] += _count(ask, part, source.schema, keys) if known is None else known
    return Counts(accounts, expected)


def _count(ask: Ask, part: Part, schema: str, keys: Sequence[str]) -> int:
    where = f" WHERE {none_of(keys)(part.key_text)}" if keys else ""
    return int(ask(f"SELECT count(*) FROM {part.source(schema)}{where}")[0][0])


def of_ledgers(context: Context, plan_time: str, snapshot: str) -> Balance | None:
    """Return the balance of what the ledgers say was carried, all of it read in the exported `snapshot`; None when nobody holds that any more."""
    carried: dict[str, int] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for service in context.plan.services:
        reading = driver.database_errors(context.targets[service].place, "reading the ledger")
        with closing(context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)) as connection, reading:
            carried |= ledger.carried(connection, context.plan.of(service))
            for target, part, key in ledger.all_rejected(connection):
                refused.setdefault((target, part), []).append(key)
    with closing(context.connect_source(APPLICATION_NAME, plan_time=plan_time, settings=SETTINGS, autocommit=True)) as source:
        try:
            read_only_snapshot(source, snapshot)
        except Exception as exc:
            if getattr(exc, "pgcode", None) in NO_SUCH_SNAPSHOT:
                return None
            raise
        with driver.database_errors(context.source.place, "accounting for every row"):
            catalog = source_catalog.read(source, context.source.schema)
            return count(lambda statement: driver.rows(source, statement), context.plan, catalog, refused).against(carried)
