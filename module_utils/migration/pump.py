# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipe one COPY into another: binary, through an operating system pipe, with no row ever seen by Python.

One thread writes what the source sends into the pipe while the calling thread feeds the target from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from dataclasses import dataclass, field
from io import BufferedIOBase, BufferedReader
from typing import IO

from . import driver
from .errors import MigrationError

_BLOCK = 1 << 20  # bytes; also the pipe's capacity where the kernel allows it
_F_SETPIPE_SZ = 1031


@dataclass
class _Sender:
    """The source's side: copies until done, then says how many rows there were or what went wrong."""

    source: driver.Connection
    statement: str
    sink: IO[bytes]
    rows: int = 0
    error: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with self.source.cursor() as cursor:
                cursor.copy_expert(self.statement, self.sink, size=_BLOCK)
                self.rows = cursor.rowcount
        except BaseException as exc:  # handed to the caller's thread, which raises it
            self.error = exc
        finally:
            with contextlib.suppress(OSError):
                self.sink.close()


class _Counted:
    """The reading end of the pipe, counting bytes."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self.stream = stream
        self.size = 0

    def read(self, amount: int) -> bytes:
        data: bytes = self.stream.read1(amount)
        self.size += len(data)
        return data

    def readline(self) -> bytes:  # psycopg2 asks for the method, never for a line
        return b""


def pump(source: driver.Connection, select: str, target: driver.Connection, copy_in: str) -> tuple[int, int]:
    """Carry the rows of `select` into the COPY ... FROM STDIN `copy_in`; return rows and bytes.

    The caller owns both transactions and must roll back on any exception. A source that ends early can never look finished:
    the counts of both sides are compared, and the source's own error is raised.
    """
    read_end, write_end = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(write_end, _F_SETPIPE_SZ, _BLOCK)
    sink = os.fdopen(write_end, "wb", buffering=_BLOCK // 4)
    stream = BufferedReader(os.fdopen(read_end, "rb", buffering=0), _BLOCK)
    counted = _Counted(stream)
    sender = _Sender(source, f"COPY ({select}) TO STDOUT (FORMAT binary)", sink)
    rows = -1
    failure: BaseException | None = None
    try:
        with target.cursor() as cursor:
            cursor.copy_expert(copy_in, counted, size=_BLOCK)
            rows = cursor.rowcount
    except BaseException as exc:  # weighed below against the source's error, which may be its cause
        failure = exc
    finally:
        stream.close()
    sender.thread.join()
    _raise(sender.error, failure)
    if rows != sender.rows:
        raise MigrationError(f"the source sent {sender.rows} rows and the target took {rows}; nothing of this chunk is kept, run it again")
    return rows, counted.size


def _raise(source_error: BaseException | None, target_error: BaseException | None) -> None:
    """Raise the cause: the target's error, unless it only saw the source's end."""
    broken_pipe = isinstance(source_error, BrokenPipeError) or "BrokenPipeError" in str(source_error)
    if source_error is not None and not (broken_pipe and target_error is not None):
        raise source_error
    if target_error is not None:
        raise target_error
