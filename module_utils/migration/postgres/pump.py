# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipe one COPY into another: binary, through an operating system pipe, with no row ever seen by Python.

A second thread writes what the source sends into the pipe while the calling thread feeds the target from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from typing import IO

from ..errors import MigrationError
from . import driver

_PIPE = 1 << 20  # bytes; the pipe's capacity where the kernel allows it
_BLOCK = 1 << 16  # bytes that are read or written at once; larger ones would leave the process's memory in holes, which grow
_F_SETPIPE_SZ = 1031

_of_thread = threading.local()


def _sender() -> ThreadPoolExecutor:
    """Return the calling thread's one sending thread, kept from copy to copy: a new thread each time would take new memory each time."""
    if getattr(_of_thread, "process", None) != os.getpid():  # a fork has the pool of its parent, but not the pool's thread
        _of_thread.process, _of_thread.sender = os.getpid(), ThreadPoolExecutor(max_workers=1)
    pool: ThreadPoolExecutor = _of_thread.sender
    return pool


def _send(source: driver.Connection, statement: str, sink: IO[bytes]) -> int:
    """Copy what the source gives into `sink`, close it, and return how many rows there were."""
    try:
        with source.cursor() as cursor:
            cursor.copy_expert(statement, sink, size=_BLOCK)
            return int(cursor.rowcount)
    finally:
        with contextlib.suppress(OSError):
            sink.close()


class _Counted:
    """The reading end of the pipe, counting bytes."""

    def __init__(self, stream: FileIO) -> None:
        self.stream = stream
        self.size = 0

    def read(self, amount: int) -> bytes:
        data: bytes = self.stream.read(amount)
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
        fcntl.fcntl(write_end, _F_SETPIPE_SZ, _PIPE)
    sink = os.fdopen(write_end, "wb", buffering=_BLOCK)
    stream = FileIO(read_end)
    counted = _Counted(stream)
    sent = _sender().submit(_send, source, f"COPY ({select}) TO STDOUT (FORMAT binary)", sink)
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
    _raise(sent.exception(), failure)
    if rows != sent.result():
        raise MigrationError(f"the source sent {sent.result()} rows and the target took {rows}; nothing of this chunk is kept, run it again")
    return rows, counted.size


def _raise(source_error: BaseException | None, target_error: BaseException | None) -> None:
    """Raise the cause: the target's error, unless it only saw the source's end."""
    if source_error is not None and not (target_error is not None and _saw_the_end(source_error)):
        raise source_error
    if target_error is not None:
        raise target_error


def _saw_the_end(error: BaseException | None) -> bool:
    """Tell whether an error is that nobody reads the pipe any more; psycopg2 may wrap it, in a SystemError even."""
    while error is not None:
        if isinstance(error, BrokenPipeError) or "BrokenPipeError" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
