# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service's SQL files become its contract."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import MigrationError
from ..mistakes import Mistakes
from ..postgres.quote import ident
from .constraints import resolved
from .draft import Draft, DraftTable, Place
from .dumped import blank_psql
from .model import Contract, Statement, TableSpec
from .parser import pglast, require_parser
from .split import pieces
from .statements import add_statement


def parse_contract(service: str, folder: Path, mistakes: Mistakes | None = None) -> Contract:
    """Return the contract that the SQL files of `folder` describe, in the order of their names.

    MigrationError, with file and line, for all that is not understood; with `mistakes` it is noted there instead.
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
    return parse_texts(service, texts, mistakes)


def parse_texts(service: str, texts: Iterable[tuple[str, str]], mistakes: Mistakes | None = None) -> Contract:
    """Return the contract of the given (path, SQL) pairs."""
    draft = Draft(service, mistakes=mistakes if mistakes is not None else Mistakes())
    draft.mistakes.unread.discard(service)
    for path, text in texts:
        _read(draft, path, text)
    if not any(statement.kind == "schema" and statement.object == (service,) for statement in draft.preamble):
        draft.preamble.insert(0, Statement("schema", (service,), f"CREATE SCHEMA {ident(service)}"))
    tables = tuple(_finished(draft, table) for table in draft.tables.values())
    if mistakes is None:
        draft.mistakes.settle()
    return Contract(
        service=service,
        tables=tables,
        preamble=tuple(draft.preamble),
        epilogue=tuple(draft.epilogue),
        domains=tuple(domain for domain, _ in draft.domains.values()),
        ignored=tuple(draft.ignored),
    )


def _read(draft: Draft, path: str, text: str) -> None:
    draft.place = Place(path, text)
    text = blank_psql(draft, text)
    try:
        _add(draft, 0, text)
    except pglast.parser.ParseError:
        for offset, statement in pieces(text):
            try:
                _add(draft, offset, statement)
            except pglast.parser.ParseError as exc:
                draft.place.offset = offset + ((exc.args[1] or 0) if len(exc.args) > 1 else 0)
                draft.mistakes.note(draft.refusal(str(exc.args[0]), "correct the SQL"))
                draft.mistakes.unread.add(draft.service)  # nobody knows what it would have made


def _add(draft: Draft, offset: int, text: str) -> None:
    """Add the statements of a text that begins at an offset of the file; ParseError when it is not SQL."""
    for raw in pglast.parse_sql(text):
        begin = raw.stmt_location or 0
        end = begin + raw.stmt_len if raw.stmt_len else len(text)
        draft.place.begin(offset, begin)
        with draft.mistakes:
            add_statement(draft, raw.stmt, text[begin:end].strip())


def _finished(draft: Draft, table: DraftTable) -> TableSpec:
    constraints = []
    for constraint in table.constraints:
        with draft.mistakes:
            constraints.append(resolved(draft, table, constraint))
    return TableSpec(
        service=draft.service,
        schema=table.schema,
        name=table.name,
        columns=tuple(table.columns.values()),
        constraints=tuple(constraints),
        indexes=tuple(table.indexes),
        path=table.path,
        line=table.line,
    )
