# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold what was carried against the source's own counts: every row of every mapped table is in one place, and no target has one too few.

The transfer brings the figures of its ledgers, a validation what it has read; both ask the source in the snapshot that their figures come from.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..context import Context
from ..errors import MigrationError
from ..plan import null_references
from ..plan.model import Part, Plan
from ..plan.null_references import Nulled
from ..plan.predicates import none_of
from ..postgres import driver, without_indexes
from ..state import ledger
from ..state.exported_snapshot import NO_SUCH_SNAPSHOT, read_only_snapshot
from . import source_catalog, source_indexes
from .row_accounting import NOT_SELECTED, Account, Ask, Refused, account
from .source_catalog import SourceCatalog

APPLICATION_NAME = "edulink-migration accounting"
SETTINGS = {"work_mem": "64MB", "max_parallel_workers_per_gather": "0"}  # joins whole tables, beside the copy
_PAUSE = 1.0  # seconds between two looks at a pause
SHARES = {"carried": "carried", "merged": "merged", "quarantined": "quarantined", "dropped": "dropped", "unselected": NOT_SELECTED}


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
    nulled: tuple[Nulled, ...] = ()

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
        shares = " + ".join(f"{number:,} {SHARES[name]}" for name, number in sums.items() if number)
        lost = sum(item.rows for item in self.nulled)
        nulled = f"; {lost:,} of their references became NULL by policy" if lost else ""
        return f"every source row is accounted for: {sum(item.rows for item in self.accounts):,} = {shares or 0}{nulled}"

    def to_dict(self) -> dict[str, Any]:
        """Return the balance as JSON can carry it."""
        tables = [item.to_dict() for item in self.accounts]
        nulled = {"nulled": [item.to_dict() for item in self.nulled]} if self.nulled else {}
        return {"passed": self.passed, "verdict": self.verdict, "tables": tables, "gaps": [asdict(gap) for gap in self.gaps], **nulled}


@dataclass(frozen=True)
class Counts:
    """What the source has: the account of every mapped table, and how many rows each target is to be given."""

    accounts: tuple[Account, ...]
    expected: Mapping[str, int]
    nulled: tuple[Nulled, ...] = ()

    def against(self, carried: Mapping[str, int]) -> Balance:
        """Return the balance with the rows that each target was given."""
        gaps = tuple(Gap(name, rows, carried.get(name, 0)) for name, rows in self.expected.items() if carried.get(name, 0) != rows)
        return Balance(self.accounts, gaps, self.nulled)


def count(ask: Ask, plan: Plan, source: SourceCatalog, refused: Refused) -> Counts:
    """Return what the source has; `ask` runs a statement in the snapshot that is accounted for.

    A query is counted whole: those who read it in ranges of chunk_by rely on what its mapping says of it (`refresh`), and would miss the same rows.
    """
    accounts = account(ask, plan, source, refused)
    rows = {item.table: item.rows for item in accounts}
    expected: dict[str, int] = {}
    for target in plan.targets:
        expected[target.name] = 0
        for part in target.parts:
            keys = refused.get((target.name, part.name), ())
            known = rows.get(str(part.table)) if part.whole and not keys else None
            expected[target.name] += _count(ask, part, source.schema, keys) if known is None else known
    return Counts(accounts, expected, null_references.count(ask, plan, source.schema, refused))


def _count(ask: Ask, part: Part, schema: str, keys: Sequence[str]) -> int:
    where = f" WHERE {none_of(keys)(part.key_text)}" if keys else ""
    return int(ask(f"SELECT count(*) FROM {part.source(schema)}{where}")[0][0])


class Reader:
    """A connection to the source on which its rows are counted, and that another thread may cut short."""

    def __init__(self, context: Context, plan_time: str) -> None:
        self._context = context
        self._connection = context.connect_source(APPLICATION_NAME, plan_time=plan_time, settings=SETTINGS, autocommit=True)
        self._cut = threading.Event()

    def counts(self, snapshot: str, refused: Refused, paused: Callable[[], bool] = lambda: False) -> Counts | None:
        """Return what the source has in an exported snapshot; None when nobody holds that any more.

        No statement begins while the transfer is `paused`. MigrationError when the source cannot be read.
        """

        def ask(statement: str) -> list[tuple[Any, ...]]:
            while paused() and not self._cut.is_set():
                self._cut.wait(_PAUSE)
            if self._cut.is_set():
                raise MigrationError("accounting for every row was cut short; run this again")
            return without_indexes.rows(self._connection, statement)

        with driver.database_errors(self._context.source.place, "accounting for every row"):
            try:
                read_only_snapshot(self._connection, snapshot)
            except Exception as exc:
                if getattr(exc, "pgcode", None) in NO_SUCH_SNAPSHOT:
                    return None
                raise
            catalog = source_catalog.read(self._connection, self._context.source.schema)
            return count(ask, self._context.plan, catalog, refused)

    def cancel(self) -> None:
        """Begin no other statement, and end the one that runs, if any."""
        self._cut.set()
        with contextlib.suppress(Exception):  # a connection that is gone runs nothing
            self._connection.cancel()

    def close(self) -> None:
        """Give the connection up."""
        self._connection.close()


def counts_in(context: Context, plan_time: str, snapshot: str, refused: Refused) -> Counts | None:
    """Return what the source has in an exported snapshot, as Reader.counts() does."""
    with contextlib.closing(Reader(context, plan_time)) as reader:
        return reader.counts(snapshot, refused)


def missing(context: Context, plan_time: str, snapshot: str, found: Balance, otherwise: str) -> str:
    """Return why a balance is off and what to do: the indexes of the source that lack rows in the snapshot, or `otherwise` when none does."""
    gaps = {gap.target for gap in found.gaps}
    parts = [part for target in context.plan.targets if not gaps or target.name in gaps for part in target.parts]
    connection = context.connect_source(APPLICATION_NAME, plan_time=plan_time, settings=SETTINGS, autocommit=True)
    with contextlib.closing(connection), driver.database_errors(context.source.place, "comparing its indexes with its tables"):
        read_only_snapshot(connection, snapshot)
        damaged = list(source_indexes.damaged(connection, parts, context.source.schema))
    if not damaged:
        return f"{found.verdict}; {otherwise}"
    named = "; ".join(f"{item.table} {item.message}; {item.step}" for item in damaged)
    return f"{found.verdict}; in the source {named}; after that, playbooks/migrate.yml compares both sides and carries what is missing"


def carried(context: Context) -> dict[str, int]:
    """Return how many rows each target was given, by the ledgers."""
    found: dict[str, int] = {}
    for service in context.plan.services:
        with _reading(context, service) as connection:
            found |= ledger.carried(connection, context.plan.of(service))
    return found


def put_aside(context: Context) -> Refused:
    """Return the source keys that the ledgers have put aside, by target and part."""
    found: dict[tuple[str, str], list[str]] = {}
    for service in context.plan.services:
        with _reading(context, service) as connection:
            for target, part, key in ledger.all_rejected(connection):
                found.setdefault((target, part), []).append(key)
    return found


@contextlib.contextmanager
def _reading(context: Context, service: str) -> Iterator[driver.Connection]:
    connection = context.connect_target(service, APPLICATION_NAME, readonly=True, autocommit=True)
    with contextlib.closing(connection), driver.database_errors(context.targets[service].place, "reading the ledger"):
        yield connection
