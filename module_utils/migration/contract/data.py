# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a contract in its JSON form (Contract.to_dict()): the names in it, and what it says apart from where it says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NAMES = ("schema", "table", "name", "columns", "object")  # the fields that hold names


def without_places(value: Any) -> Any:
    """Return a contract's data without the places in files where its parts stand."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items() if key not in ("path", "line", "place", "ignored")}
    if isinstance(value, (list, tuple)):
        return [without_places(item) for item in value]
    return value


def names_in(contract: Any) -> Iterator[str]:
    """Yield every name in a contract, however deep."""
    if isinstance(contract, Mapping):
        for key, value in contract.items():
            if key in _NAMES and isinstance(value, str):
                yield value
            elif key in _NAMES and isinstance(value, Sequence):
                yield from (item for item in value if isinstance(item, str))
                yield from names_in([item for item in value if not isinstance(item, str)])
            else:
                yield from names_in(value)
    elif isinstance(contract, Sequence) and not isinstance(contract, str):
        for item in contract:
            yield from names_in(item)
