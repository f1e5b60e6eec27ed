# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Damage targets in many ways and see whether validation names every row and column, and nothing else."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.validate import run as validate

from . import world as w
from .mutator import Cursor, Damage, Table, damage, tables, unlock

BATCH = 25  # damages judged by one validation


@dataclass
class Score:
    """What a campaign came to."""

    mutations: int = 0
    found: int = 0
    missed: list[str] = field(default_factory=list)
    false_alarms: list[str] = field(default_factory=list)
    clean_runs: int = 0
    ways: Counter[str] = field(default_factory=Counter)

    @property
    def line(self) -> str:
        """Return the closing line."""
        return f"{self.mutations} mutations, {self.found} found, {len(self.missed)} missed, {len(self.false_alarms)} false alarms"


class Campaign:
    """One world that is damaged and restored again and again."""

    def __init__(self, make: Callable[[str], Endpoint], *, users: int, seed: int, digest: str = "auto") -> None:
        self._world = w.make_world(make, users=users, seed=seed, indexes=False)
        self._rng = random.Random(seed)
        # Pieces of some rows, as a large table is read in pieces of many.
        self._options = validate.Options(settle_attempts=0, digest=digest, piece_rows=100)
        with _cursor(self._world.source) as cursor:
            cursor.execute("ANALYZE")
        self._tables: list[Table] = []
        for service, endpoint in self._world.targets.items():
            with _cursor(endpoint) as cursor:
                cursor.execute("CREATE SCHEMA backup")
                for table in tables(cursor, service):
                    unlock(cursor, table)
                    cursor.execute(f'CREATE TABLE backup."{table.name}" AS SELECT * FROM {table.sql}')
                    self._tables.append(table)

    def clean_run(self, score: Score) -> None:
        """Validate what was not damaged."""
        found = validate.compare(self._world.context, w.PLAN_TIME, options=self._options)
        score.clean_runs += 1
        score.false_alarms += [finding.line for finding in found.findings]

    def round(self, score: Score, most: int) -> None:
        """Damage up to BATCH rows, validate, judge, restore."""
        done: list[Damage] = []
        taken: dict[str, set[str]] = defaultdict(set)
        by_database = defaultdict(list)
        for table in self._tables:
            by_database[table.database].append(table)
        databases = sorted(by_database)
        for service in databases:
            share = (min(BATCH, most) - len(done)) if service == databases[-1] else min(BATCH, most) // 2
            with _cursor(self._world.targets[service]) as cursor:
                tries = 0
                count = 0
                while count < share and tries < 20 * BATCH:
                    tries += 1
                    table = self._rng.choice(by_database[service])
                    made = damage(cursor, table, self._rng, taken[table.label])
                    if made:
                        done.append(made)
                        count += 1
        self._judge(score, done)
        self._restore({made.table for made in done})

    def _judge(self, score: Score, done: list[Damage]) -> None:
        found = validate.compare(self._world.context, w.PLAN_TIME, options=self._options)
        left = {(finding.target, finding.kind, finding.id, finding.columns) for finding in found.findings}
        if len(left) != found.differences:
            score.false_alarms.append(f"{found.differences} differences counted, {len(left)} named")
        for made in done:
            score.mutations += 1
            score.ways["a column swapped between two rows" if "swapped between" in made.what else made.what.split(" in ")[0]] += 1
            seen = []
            for kind, id_, columns in made.expected:
                hits = {item for item in left if item[:3] == (made.table, kind, id_) and (columns is None or set(item[3]) == set(columns))}
                seen.append(bool(hits))
                left -= hits
            if all(seen):
                score.found += 1
            else:
                score.missed.append(f"{made.table}: {made.what}: {made.expected}")
        score.false_alarms += [f"{item}" for item in left]

    def _restore(self, labels: set[str]) -> None:
        for service, endpoint in self._world.targets.items():
            with _cursor(endpoint) as cursor:
                for table in self._tables:
                    if table.database == service and table.label in labels:
                        cursor.execute(f'TRUNCATE {table.sql} CASCADE; INSERT INTO {table.sql} SELECT * FROM backup."{table.name}"')


@contextmanager
def _cursor(endpoint: Endpoint) -> Iterator[Cursor]:
    connection = connect(endpoint, application_name="mutation campaign")
    try:
        with connection, connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def run(
    make: Callable[[str], Endpoint], *, mutations: int, users: int = 300, seed: int = 1, digest: str = "auto", tell: Callable[[str], None] = lambda line: None
) -> Score:
    """Run one campaign and return its score."""
    score = Score()
    campaign = Campaign(make, users=users, seed=seed, digest=digest)
    campaign.clean_run(score)
    while score.mutations < mutations:
        campaign.round(score, mutations - score.mutations)
        tell(score.line)
    campaign.clean_run(score)
    return score
