# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `pg_dump --schema-only` writes around a contract: left out, each with a line that says so.

The schema phase does not apply what is ignored here; preflight, check_mappings and the schema phase say it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..postgres.quote import ident, qualified
from .draft import Draft
from .parser import Visitor, ast, enums, pglast
from .trees import strings

OWNER = "the role in session_role owns what is created"
RIGHTS = "only GRANT on whole tables is applied; run it after the migration"
ROW_SECURITY = "row security would hide rows from the proof; set it up after the migration"
STORAGE = "it says how the server stores the rows; set it after the migration"
LATER = "it is not part of the contract; create it after the migration"


def blank_psql(draft: Draft, text: str) -> str:
    """Return the text without its lines for psql (`\\restrict ...`), every other character in its place."""
    if not re.search(r"^\\", text, re.MULTILINE):
        return text
    try:
        tokens: list[Any] = list(pglast.parser.scan(text))
    except pglast.parser.ParseError:
        return text
    for token in tokens:
        if token.name != "ASCII_92" or text[: token.start].rpartition("\n")[2].strip():
            continue
        line = text[token.start :].partition("\n")[0]
        word = line.split()[0]
        draft.place.begin(0, token.start)
        if word in ("\\restrict", "\\unrestrict"):
            draft.ignore_session()
        else:
            draft.mistakes.note(draft.refusal(f"the psql command {word}", "write the SQL itself, or leave the line out"))
        text = text[: token.start] + " " * len(line) + text[token.start + len(line) :]
    return text


def select(draft: Draft, node: Any, sql: str) -> None:
    """Accept `SELECT pg_catalog.set_config('search_path', '', false)`, the only SELECT of a dump without rows."""
    targets: tuple[Any, ...] = node.targetList or ()
    call = targets[0].val if len(targets) == 1 else None
    if isinstance(call, ast.FuncCall) and strings(call.funcname)[-1] == "set_config":
        given: tuple[Any, ...] = call.args or ()
        name, value = (item.val.sval if isinstance(item, ast.A_Const) and isinstance(item.val, ast.String) else None for item in given[:2])
        if name == "search_path" and value in ("", draft.service):
            draft.ignore_session()
            return
    raise draft.refusal("a SELECT", "leave it out: a contract describes objects")


def owned_by(draft: Draft, node: Any, sql: str) -> None:
    """Keep ALTER SEQUENCE ... OWNED BY; nothing else of a sequence is altered."""
    name = draft.relation(node.sequence)
    options = {option.defname: option.arg for option in node.options or ()}
    parts = strings(options.get("owned_by"))
    if set(options) != {"owned_by"} or name not in draft.relations:
        raise draft.refusal(f"ALTER SEQUENCE {'.'.join(name)} of another kind than OWNED BY", "write it in CREATE SEQUENCE")
    if parts == ["none"]:
        return
    table = draft.known_name(parts[:-1])
    draft.known_columns(draft.tables[table], parts[-1:])
    owner = f"{qualified(*table)}.{ident(parts[-1])}"
    draft.after("owned sequence", (*table, parts[-1], *name), f"ALTER SEQUENCE {qualified(*name)} OWNED BY {owner}")


def leave_out(draft: Draft, name: tuple[str, str], what: str) -> None:
    """Note a relation that is not created; what belongs to it later goes with it."""
    draft.tables.pop(name, None)
    draft.left_out.add(name)
    draft.ignore(what, f"it is not created, with all that belongs to it; no mapping can fill it ({'.'.join(name)})", ".".join(name))


def materialised(draft: Draft, node: Any, sql: str) -> None:
    """Leave out CREATE MATERIALIZED VIEW."""
    if node.objtype != enums.ObjectType.OBJECT_MATVIEW:
        raise draft.refusal("CREATE TABLE AS", "write the columns")
    leave_out(draft, draft.relation(node.into.rel), "MATERIALIZED VIEW")


def reads_left_out(draft: Draft, node: Any) -> bool:
    """Return whether a query reads a relation that is not created."""
    found: list[tuple[str, str]] = []

    class Relations(Visitor):
        def visit_RangeVar(self, ancestors: Any, ref: Any) -> None:
            found.append((ref.schemaname or draft.service, ref.relname))

    Relations()(node)
    return bool(draft.left_out & set(found))


def _ignoring(what: str, reason: str) -> Callable[[Draft, Any, str], None]:
    return lambda draft, node, sql: draft.ignore(what, reason)


HANDLERS: dict[str, Callable[[Draft, Any, str], None]] = {
    "SelectStmt": select,
    "AlterSeqStmt": owned_by,
    "CreateTableAsStmt": materialised,
    "AlterOwnerStmt": _ignoring("OWNER TO", OWNER),
    "CreatePolicyStmt": _ignoring("CREATE POLICY", ROW_SECURITY),
    "AlterDefaultPrivilegesStmt": _ignoring("ALTER DEFAULT PRIVILEGES", RIGHTS),
    "CreateStatsStmt": _ignoring("CREATE STATISTICS", LATER),
    "RuleStmt": _ignoring("CREATE RULE", LATER),
    "CreateEventTrigStmt": _ignoring("CREATE EVENT TRIGGER", LATER),
    "AlterEventTrigStmt": _ignoring("ALTER EVENT TRIGGER", LATER),
    "CreatePublicationStmt": _ignoring("CREATE PUBLICATION", LATER),
    "AlterPublicationStmt": _ignoring("ALTER PUBLICATION", LATER),
    "CreateSubscriptionStmt": _ignoring("CREATE SUBSCRIPTION", LATER),
    "RefreshMatViewStmt": _ignoring("REFRESH MATERIALIZED VIEW", LATER),
    "SecLabelStmt": _ignoring("SECURITY LABEL", LATER),
}
