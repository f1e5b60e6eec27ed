# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Conditions in SQL on a column that is not named yet; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..postgres.quote import array, literal

Predicate = Callable[[str], str]  # quoted column -> condition


def between(low: str | None, high: str | None, *, nulls: bool = False) -> Predicate:
    """Return the predicate low <= column < high; None is open, `nulls` adds the rows without a value."""

    def condition(column: str) -> str:
        bounds = [f"{column} >= {literal(low)}"] if low is not None else []
        bounds += [f"{column} < {literal(high)}"] if high is not None else []
        joined = " AND ".join(bounds) or "true"
        return f"({joined} OR {column} IS NULL)" if nulls and bounds else f"({joined})"

    return condition


def one_of(values: Sequence[str]) -> Predicate:
    """Return the predicate column = ANY(values); the array takes the column's type."""
    listed = array(values)
    return lambda column: f"{column} = ANY ({listed})"


def none_of(values: Sequence[str]) -> Predicate:
    """Return the predicate that a column's text is none of the values: an anti-join, whatever their number."""
    listed = array(values)
    return lambda column: f"NOT EXISTS (SELECT FROM unnest({listed}::text[]) AS refused (key) WHERE refused.key = {column})"


def endless(sql: str, kind: str) -> str | None:
    """Return the condition under which a value of a type is infinity (or NaN), or None where it cannot be."""
    if kind == "date" or kind.startswith("timestamp"):
        return f"NOT isfinite({sql})"
    return f"({sql}) IN ('Infinity', '-Infinity', 'NaN')" if kind in ("numeric", "real", "double precision") else None


def beyond_years(sql: str, kind: str) -> str | None:
    """Return the condition under which a date lies outside the years 1 to 9999, infinity apart, or None where it is no date."""
    if kind != "date" and not kind.startswith("timestamp"):
        return None
    zone = "+00" if kind == "timestamp with time zone" else ""
    return f"(isfinite({sql}) AND ({sql} < '0001-01-01{' 00:00' + zone if zone else ''}' OR {sql} >= '10000-01-01{' 00:00' + zone if zone else ''}'))"


def replaced(rule: str, sql: str, kind: str) -> str | None:
    """Return the condition under which the placeholder of a rule stands for a value, or None where it has no meaning."""
    if rule == "infinity":
        return endless(sql, kind)
    if rule == "year":
        return beyond_years(sql, kind)
    blank = f" OR btrim(({sql})::text) = ''" if rule == "blank" else ""
    return f"({sql}) IS NULL{blank}" if rule in ("blank", "not_null") else None
