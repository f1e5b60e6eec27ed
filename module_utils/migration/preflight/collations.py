# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Comparisons that only the target can make: unique texts under its nondeterministic collations, and what is merely doubtful here.

The source has neither the target's collations nor its types, and may be given none. So the values of such a key (and of no other column) are
sent to the target inside one query, which groups them as its index will; they are kept nowhere and named by their source keys alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ..checks.findings import STOP, WARN, Finding
from ..checks.row_checks import spec_of
from ..checks.unique_checks import Unique
from ..contract.model import ColumnSpec, TableSpec
from ..plan.model import Plan
from ..postgres import driver
from ..postgres.quote import ident

FIRST = 5
MOST = 200_000  # rows that are compared on the target
_ORDERED = re.compile(r"(?<![<>=!~@#&|*/+%^?-])[<>]=?(?![<>=!~@#&|*/+%^?-])|\b(greatest|least|between)\b", re.IGNORECASE)
_COLLATION = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname), c.collisdeterministic
FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = coalesce(to_regcollation(%s), to_regcollation(%s))
"""


def check(source: driver.Connection, targets: Mapping[str, driver.Connection], plan: Plan, uniques: Sequence[Unique]) -> list[Finding]:
    """Return the duplicates that only the target's collations see."""
    findings = []
    for unique in uniques:
        spec = spec_of(plan, unique.target)
        plain = tuple(ident(name) for name in unique.columns) == unique.elements
        columns = [spec.column(name) for name in unique.columns] if spec and plain else []
        named = [column.collation if column else None for column in columns]
        if not any(named):
            continue
        with driver.database_errors(unique.target.name, f"comparing {unique.name} under its collations"):
            collations = [_collation(targets[unique.target.service], unique.target.service, name) if name else None for name in named]
            if any(found and not found[1] for found in collations):
                findings += _duplicates(source, targets[unique.target.service], unique, [found[0] if found else None for found in collations])
    return findings


def _collation(target: driver.Connection, service: str, name: str) -> tuple[str, bool] | None:
    found = driver.rows(target, _COLLATION, (name, f"{ident(service)}.{name}"))
    return (str(found[0][0]), bool(found[0][1])) if found else None


def _duplicates(source: driver.Connection, target: driver.Connection, unique: Unique, collations: Sequence[str | None]) -> list[Finding]:
    width = range(1, unique.width + 1)
    texts = ", ".join(f"v{number}::text" for number in width)
    held = driver.rows(source, f"SELECT source_key, {texts} FROM ({unique.rows}) AS every LIMIT {MOST + 1}")
    label = ", ".join(unique.columns)
    if len(held) > MOST:
        message = f"more than {MOST} rows would have to be compared under a collation of the target's ({unique.name} is unique)"
        return [Finding(WARN, unique.place, "unique", message, "compare them on a copy in the target", unique.target.name, label)]
    listed = ", ".join(["%s::text[]"] * (unique.width + 1))
    grouped = ", ".join(f"v{number}{f' COLLATE {name}' if name else ''}" for number, name in zip(width, collations, strict=True))
    names = ", ".join(f"v{number}" for number in width)
    statement = f"SELECT array_agg(key) FROM unnest({listed}) AS every (key, {names}) GROUP BY {grouped} HAVING count(*) > 1"
    columns = [list(column) for column in zip(*held, strict=True)] or [[] for _ in range(unique.width + 1)]
    keys = sorted({key for (group,) in driver.rows(target, statement, columns) for key in group}, key=lambda key: (len(key), key))
    if not keys:
        return []
    message = f"has values that are equal under the target's collation ({unique.name} is unique)"
    step = "correct the rows in the source, or choose a deterministic collation in the schema SQL"
    return [Finding(STOP, unique.place, "unique", message, step, unique.target.name, label, len(keys), tuple(keys[:FIRST]))]


def doubts(plan: Plan) -> list[Finding]:
    """Return a warning for each condition of the schema SQL that the source, without the target's types, may judge otherwise."""
    findings = []
    for target in plan.targets:
        spec = spec_of(plan, target)
        if spec is None:
            continue
        for name, text in _conditions(spec):
            for column in spec.columns:
                why = _doubtful(column, text)
                if why and re.search(rf'(?<!\w)"?{re.escape(column.name)}"?(?!\w)', text):
                    message = f"{name} was judged {why}, which the source does not know"
                    step = "make sure that no row depends on it, or write the condition without"
                    findings.append(Finding(WARN, target.parts[0].path, "check", message, step, target.name, column.name))
    return findings


def _conditions(spec: TableSpec) -> Iterator[tuple[str, str]]:
    for constraint in spec.constraints:
        if constraint.kind == "check" and constraint.expression is not None:
            yield constraint.name, constraint.expression
    for index in spec.indexes:
        if index.unique:
            for text in (*(item.expression for item in index.elements), index.predicate):
                if text is not None:
                    yield index.name, text


def _doubtful(column: ColumnSpec, text: str) -> str:
    if column.type.endswith("citext"):
        return "with upper and lower case told apart, not as citext"
    if column.enum_labels is not None and _ORDERED.search(text):
        return f"by the labels' text, not in the order of {column.type}"
    return ""
