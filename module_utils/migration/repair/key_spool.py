# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys of differing rows in files without a name, for there may be as many as there are rows."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO

from ..errors import MigrationError
from ..plan.model import Target
from ..validate.result import Finding


class Spool:
    """The source keys by target and part, and the ids by target, of findings; use it in a `with`, at whose end the files are gone."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str | None], IO[str]] = {}

    def __enter__(self) -> Spool:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close the files, which deletes them."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def add(self, findings: Iterable[Finding]) -> None:
        """Take findings in; MigrationError when there is no room for them."""
        for finding in findings:
            if finding.source_key is not None and finding.part is not None:
                self._write((finding.target, finding.part), finding.source_key)
            if finding.id is not None:
                self._write((finding.target, None), finding.id)
        try:
            for file in self._files.values():
                file.flush()
        except OSError as exc:
            raise _no_room(exc) from exc

    def has(self, target: Target) -> bool:
        """Tell whether there is anything for a target."""
        return any(name == target.name for name, _ in self._files)

    def keys(self, target: Target) -> dict[str, Iterator[str]]:
        """Return the source keys of a target by part."""
        return {part: self._read((name, part)) for name, part in self._files if name == target.name and part is not None}

    def ids(self, target: Target) -> Iterator[str]:
        """Yield the ids of a target."""
        return self._read((target.name, None))

    def _write(self, place: tuple[str, str | None], value: str) -> None:
        try:
            if place not in self._files:
                self._files[place] = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115 (closed by __exit__)
            self._files[place].write(json.dumps(value) + "\n")
        except OSError as exc:
            raise _no_room(exc) from exc

    def _read(self, place: tuple[str, str | None]) -> Iterator[str]:
        file = self._files.get(place)
        if file is not None:
            file.seek(0)
            yield from map(json.loads, file)


def _no_room(exc: OSError) -> MigrationError:
    return MigrationError(
        f"{tempfile.gettempdir()}: the keys of rows that differ cannot be kept: {exc.strerror};"
        " make room there or name another folder as TMPDIR, then run it again"
    )
