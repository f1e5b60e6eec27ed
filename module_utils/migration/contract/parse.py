# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service's SQL files become its contract."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import MigrationError
from ..postgres.quote import ident
from .constraints import resolved
from .draft import Draft, DraftTable, Place
from .model import Contract, Statement, TableSpec
from .parser import pglast, require_parser
from .statements import add_statement


def parse_contract(service: str, folder: Path) -> Contract:
    """Return the contract that the SQL files of `folder` describe, in the order of their names.

    MigrationError, with file and line, for whatever is not understood.
    """
    require_parser()
    if not folder.is_dir():
        raise MigrationError(f"{folder}: there is no such folder; the SQL of {service} belongs there, in files named *.sql")
    files = sorted(folder.glob("*.sql"), key=lambda file: file.name)
    if not files:
        raise MigrationError(f"{folder}: no file named *.sql; the SQL of {service} belongs there")
    try:
        texts = [(file.as_posix(), file.read_text(encoding="utf-8")) for file in files]
    except (OSError, UnicodeDecodeError) as exc:
        raise MigrationError(f"{folder}: cannot be read as UTF-8: {exc}") from exc
    return parse_texts(service, texts)


def parse_texts(service: str, texts: Iterable[tuple[str, str]]) -> Contract:
    """Return the contract of the given (path, SQL) pairs."""
    draft = Draft(service)
    for path, text in texts:
        _read(draft, path, text)
    if not any(statement.kind == "schema" and statement.object == (service,) for statement in draft.preamble):
        draft.preamble.insert(0, Statement("schema", (service,), f"CREATE SCHEMA {ident(service)}"))
    return Contract(
        service=service,
        tables=tuple(_finished(draft, table) for table in draft.tables.values()),
        preamble=tuple(draft.preamble),
        epilogue=tuple(draft.epilogue),
        domains=tuple(domain for domain, _ in draft.domains.values()),
    )


def _read(draft: Draft, path: str, text: str) -> None:
    place = draft.place = Place(path, text)
    try:
        statements = pglast.parse_sql(text)
    except pglast.parser.ParseError as exc:
        place.offset = exc.args[1] if len(exc.args) > 1 and exc.args[1] is not None else 0
        raise draft.refusal(str(exc.args[0]), "correct the SQL") from exc
    for raw in statements:
        place.offset = raw.stmt_location or 0
        end = place.offset + raw.stmt_len if raw.stmt_len else len(text)
        add_statement(draft, raw.stmt, text[place.offset : end].strip())


def _finished(draft: Draft, table: DraftTable) -> TableSpec:
    return TableSpec(
        service=draft.service,
        schema=table.schema,
        name=table.name,
        columns=tuple(table.columns.values()),
        constraints=tuple(resolved(draft, table, constraint) for constraint in table.constraints),
        indexes=tuple(table.indexes),
        path=table.path,
        line=table.line,
    )
