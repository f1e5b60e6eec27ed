# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An SQL text in statements, so that one which is wrong does not hide the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .parser import pglast


def pieces(text: str) -> Iterator[tuple[int, str]]:
    """Yield each statement of a text that cannot be parsed whole, and where it begins; the text itself when it cannot be cut."""
    begin = 0
    for end in _ends(text):
        if text[begin:end].strip():
            yield begin, text[begin:end]
        begin = end + 1


def _ends(text: str) -> list[int]:
    """Return where statements end: at semicolons, but for those in BEGIN ATOMIC ... END."""
    try:
        tokens: list[Any] = list(pglast.parser.scan(text))
    except pglast.parser.ParseError:
        return [len(text)]
    ends: list[int] = []
    depth = 0  # of the ENDs that a function's body still needs
    for before, token in zip((None, *tokens), tokens, strict=False):
        if token.name == "ATOMIC" and before is not None and before.name == "BEGIN_P":
            depth = 1
        elif depth and token.name in ("CASE", "END_P"):
            depth += 1 if token.name == "CASE" else -1
        elif token.name == "ASCII_59" and not depth:
            ends.append(token.start)
    return [*ends, len(text)]
