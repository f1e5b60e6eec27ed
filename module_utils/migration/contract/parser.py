# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's own parser: the only import of pglast, which only a controller needs."""

from __future__ import annotations

from ..errors import MigrationError

try:
    import pglast
    from pglast import ast, enums
    from pglast.keywords import COL_NAME_KEYWORDS, RESERVED_KEYWORDS, TYPE_FUNC_NAME_KEYWORDS
    from pglast.stream import RawStream
    from pglast.visitors import Visitor

    _MISSING: str | None = None
except ImportError as exc:  # a runner imports this too, and never parses
    _MISSING = str(exc)
    pglast = ast = enums = RawStream = None  # type: ignore[assignment, misc]  # asked for in require_parser()
    COL_NAME_KEYWORDS = RESERVED_KEYWORDS = TYPE_FUNC_NAME_KEYWORDS = set()
    Visitor = object  # type: ignore[assignment, misc]  # only so that classes can be made

__all__ = [
    "COL_NAME_KEYWORDS",
    "RESERVED_KEYWORDS",
    "TYPE_FUNC_NAME_KEYWORDS",
    "RawStream",
    "Visitor",
    "ast",
    "enums",
    "pglast",
    "require_parser",
]


def require_parser() -> None:
    """Raise MigrationError when pglast is not installed here."""
    if _MISSING is not None:
        raise MigrationError(f"pglast is missing on the controller ({_MISSING}); install the packages of requirements-runner.txt there")
