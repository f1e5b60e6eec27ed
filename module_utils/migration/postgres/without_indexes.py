# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a statement so that no index is relied on: a damaged one lacks rows, or keeps rows that are gone, and nothing says so.

Only where that is out of all proportion, because a mapping's query looks something up for every row, are the indexes left to the planner.
"""

from __future__ import annotations

import json
from typing import Any

from . import driver

_INDEXES = ("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan")
_DEAR = 20  # times the cost with indexes
_CHEAP = 100_000.0  # in the planner's units: about a second, whatever the proportion


def rows(connection: driver.Connection, statement: str) -> list[tuple[Any, ...]]:
    """Return the statement's rows; in the transaction that is open, or in one of its own."""
    if connection.info.transaction_status:  # not idle
        return _rows(connection, statement)
    driver.rows(connection, "BEGIN READ ONLY")
    try:
        return _rows(connection, statement)
    finally:
        driver.rows(connection, "ROLLBACK")


def scalar(connection: driver.Connection, statement: str) -> Any:
    """Return the one value of the statement's first row."""
    return rows(connection, statement)[0][0]


def _rows(connection: driver.Connection, statement: str) -> list[tuple[Any, ...]]:
    if statement.startswith("EXPLAIN"):
        return driver.rows(connection, statement)
    usual = _cost(connection, statement)
    _switch(connection, "off")
    if _cost(connection, statement) > max(_CHEAP, _DEAR * usual):
        _switch(connection, "DEFAULT")
    found = driver.rows(connection, statement)
    _switch(connection, "DEFAULT")
    return found


def _switch(connection: driver.Connection, value: str) -> None:
    driver.rows(connection, "; ".join(f"SET LOCAL {name} TO {value}" for name in _INDEXES))


def _cost(connection: driver.Connection, statement: str) -> float:
    plan = driver.scalar(connection, f"EXPLAIN (FORMAT JSON) {statement}")
    return float((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]["Total Cost"])
