# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which target tables say who may log in and do what: mappings/_accounts.yml, for the proofs that know Django's tables.

Nothing is moved by it, so it is no part of the plan's digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..mistakes import Mistakes
from ..yaml_tree import Node, read, suggest

FILE = "_accounts.yml"
USERS, PERMISSIONS, HELD, ROLES = "users", "permissions", "held_permissions", "roles"
# What each section must and may say: a meaning, whose value is the column of the target.
MEANINGS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    USERS: (("username",), ("password", "active", "verified")),
    PERMISSIONS: (("codename", "content_type"), ()),
    HELD: (("user", "permission"), ()),
    ROLES: (("user", "role"), ("active", "permissions")),
}


@dataclass(frozen=True)
class AccountTable:
    """A section of the file: the target's name (service.table) and its columns by their meaning."""

    section: str
    target: str
    columns: tuple[tuple[str, str], ...]
    place: str = ""

    def column(self, meaning: str) -> str | None:
        """Return the column that has a meaning, or None when none is declared."""
        return dict(self.columns).get(meaning)


def read_accounts(root: Path, shown: str, mistakes: Mistakes) -> tuple[AccountTable, ...]:
    """Return the sections of the file, none without one."""
    path = root / FILE
    found: list[AccountTable] = []
    with mistakes:
        sections = read(path, f"{shown}/{FILE}").only("the accounts", tuple(MEANINGS), (USERS,), mistakes) if path.is_file() else {}
        for name, node in sections.items():
            with mistakes:
                found.append(_section(name, node, mistakes))
        names = {item.section for item in found}
        if (PERMISSIONS in names) != (HELD in names):
            raise next(iter(sections.values())).fail(f"{PERMISSIONS!r} and {HELD!r} need each other")
    return tuple(found)


def _section(name: str, node: Node, mistakes: Mistakes) -> AccountTable:
    required, optional = MEANINGS[name]
    found = node.only(name, ("table", *required, *optional), ("table", *required), mistakes)
    columns = tuple((meaning, item.text(f"{name}.{meaning}")) for meaning, item in found.items() if meaning in (*required, *optional))
    return AccountTable(name, node.part(found, "table").text(f"{name}.table"), columns, node.place)


def check_accounts(accounts: tuple[AccountTable, ...], tables: Mapping[str, tuple[str, ...]], mistakes: Mistakes) -> None:
    """Note the tables and columns that no mapping fills; `tables` are the targets' columns by name."""
    for item in accounts:
        node = Node(None, item.place)
        if item.target not in tables:
            if not mistakes.noted:
                mistakes.note(node.fail(f"{item.section}: no mapping fills {item.target!r}{suggest(item.target, tuple(tables))}"))
            continue
        for meaning, column in item.columns:
            if column not in tables[item.target]:
                mistakes.note(node.fail(f"{item.section}.{meaning}: {item.target} has no column {column!r}{suggest(column, tables[item.target])}"))


def account_table(data: Mapping[str, Any]) -> AccountTable:
    """Return a section as JSON carried it."""
    return AccountTable(**{**data, "columns": tuple((meaning, column) for meaning, column in data["columns"])})
