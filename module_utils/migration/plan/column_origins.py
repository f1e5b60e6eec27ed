# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which table's column a query's result column shows unchanged, by PostgreSQL's own parser. Controller only.

What the source guarantees of a column (its foreign key, say) it guarantees of every result that shows the column's own values. Followed are
references to a table of FROM, however it is joined (an outer join adds NULLs, which refer to nothing), through subqueries
and through each branch of UNION; anything else (an expression, a common table expression, a star) has no origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from ..contract.parser import ast, enums
from .sql_reader import single_select

Origin = tuple[str, str]  # table, column
NONE: frozenset[Origin] = frozenset()
_Outputs = list[tuple[str | None, frozenset[Origin]]]  # of each result column: its name, and its origins or nothing
_Scope = dict[str, Mapping[str, frozenset[Origin]] | str]  # alias -> a subquery's result columns, or a table


def origins(sql: str, place: str) -> dict[str, tuple[Origin, ...]]:
    """Return the table columns of which each result column shows values and nothing else; MigrationError when it is not one SELECT."""
    return {name: tuple(sorted(found)) for name, found in _named(_outputs(single_select(sql, place), frozenset())).items()}


def _outputs(select: Any, hidden: frozenset[str]) -> _Outputs:
    """Return the result columns of a SELECT in which some names are those of common table expressions."""
    hidden |= {item.ctename for item in (select.withClause.ctes if select.withClause else ())}
    if select.op != enums.SetOperation.SETOP_NONE:
        branches = zip(_outputs(select.larg, hidden), _outputs(select.rarg, hidden), strict=False)
        return [(name, left | right if left and right else NONE) for (name, left), (_, right) in branches]
    scope: _Scope = {}
    for item in select.fromClause or ():
        _enter(item, hidden, scope)
    targets: tuple[Any, ...] = select.targetList or ()
    # Nobody counts the columns of a star here, so what comes after it may stand beside any column of another branch.
    return [_output(target, scope) for target in takewhile(lambda target: not _is_star(target), targets)]


def _is_star(target: Any) -> bool:
    fields: tuple[Any, ...] = (target.val.fields or ()) if isinstance(target.val, ast.ColumnRef) else ()
    return any(isinstance(field, ast.A_Star) for field in fields)


def _output(target: Any, scope: _Scope) -> tuple[str | None, frozenset[Origin]]:
    fields: tuple[Any, ...] = (target.val.fields or ()) if isinstance(target.val, ast.ColumnRef) else ()
    names = [str(field.sval) for field in fields if isinstance(field, ast.String)]
    if not fields or len(names) != len(fields) or len(names) > 2:
        return target.name, NONE
    column = names[-1]
    owner = scope.get(names[0]) if len(names) == 2 else next(iter(scope.values())) if len(scope) == 1 else None
    if isinstance(owner, str):
        return target.name or column, frozenset({(owner, column)})
    return target.name or column, owner.get(column, NONE) if owner else NONE


def _enter(item: Any, hidden: frozenset[str], scope: _Scope) -> None:
    """Note the tables and subqueries of a FROM item by the names that the SELECT knows them by; others by an empty name, so that no column is theirs alone."""
    if isinstance(item, ast.JoinExpr) and item.alias is None:
        _enter(item.larg, hidden, scope)
        _enter(item.rarg, hidden, scope)
    elif isinstance(item, ast.RangeVar) and not (item.schemaname or item.relname in hidden or (item.alias and item.alias.colnames)):
        scope[str(item.alias.aliasname if item.alias else item.relname)] = str(item.relname)
    elif isinstance(item, ast.RangeSubselect) and item.alias and not item.alias.colnames:
        scope[str(item.alias.aliasname)] = _named(_outputs(item.subquery, hidden))
    else:
        scope[f"\0{len(scope)}"] = {}  # no name in SQL has this character


def _named(outputs: _Outputs) -> dict[str, frozenset[Origin]]:
    names = [name for name, _ in outputs]
    return {name: found for name, found in outputs if name and found and names.count(name) == 1}
