# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module of the migration begins and ends: where its secret options come from, and what an error of it may say."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

from .errors import MigrationError
from .postgres.driver import told
from .text import printable

SECRETS_FROM = "secrets_from"  # plugins/action/live_progress.py has the other end
TAKEN = ".taken"
FILES = ("html", "manifest", "plan")  # results that are whole files or SQL, not lines
PATIENCE = 60.0  # seconds that the secrets may take
NEVER_CAME = "the connection data did not arrive on the runner within {:.0f} seconds; nothing was begun: run it again"


class MigrationModule(AnsibleModule):  # type: ignore[misc]  # Ansible's class is untyped
    """A module whose secret options may come through a FIFO, so that no file of Ansible's on the runner holds them."""

    def _load_params(self) -> None:
        """Read the options; what the FIFO brings is an option like any other, checked and masked (no_log) the same way."""
        super()._load_params()
        path = self.params.pop(SECRETS_FROM, None)
        if path is not None:
            self.params |= received(path)


def received(path: str, patience: float = PATIENCE) -> dict[str, Any]:
    """Return what somebody writes into the FIFO, and leave a mark beside it that it was taken."""
    deadline = time.monotonic() + patience
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    data = b""
    try:
        while time.monotonic() < deadline:
            try:
                piece = os.read(descriptor, 65536)
            except BlockingIOError:  # a writer is there and has not written yet
                piece = None
            if piece:
                data += piece
            elif piece == b"" and data:
                taken = dict(json.loads(data))
                os.close(os.open(path + TAKEN, os.O_CREAT | os.O_WRONLY, 0o600))
                return taken
            else:
                time.sleep(0.02)
    except ValueError:
        pass  # the writer was lost half way
    finally:
        os.close(descriptor)
    raise SystemExit(json.dumps({"failed": True, "msg": NEVER_CAME.format(patience)}))


def shown(value: Any, keep: str = "") -> Any:
    """Return a result with every text of it printable, so that no name of an object forges a line of the output."""
    if isinstance(value, str):
        return printable(value, keep)
    if isinstance(value, Mapping):
        return {printable(str(key)): shown(item, keep) for key, item in value.items()}
    return [shown(item, keep) for item in value] if isinstance(value, list | tuple) else value


def finish(module: AnsibleModule, work: Callable[[AnsibleModule], Mapping[str, Any]]) -> NoReturn:
    """Do a module's work and end it with the result, or with one line that holds no value of a row.

    The line is given when the error is gone: a traceback (ANSIBLE_DISPLAY_TRACEBACK) would print it, its causes and their texts.
    """
    sys.excepthook = lambda _kind, exc, _trace: print(told(exc), file=sys.stderr)
    threading.excepthook = lambda args: print(told(args.exc_value) if args.exc_value else "a thread ended", file=sys.stderr)
    result: Mapping[str, Any] = {}
    fault = ""
    try:
        result = work(module)
    except MigrationError as exc:
        fault = "\n".join(printable(line) for line in exc.lines)
    except Exception as exc:
        fault = printable(told(exc))
    if fault:
        module.fail_json(msg=fault)
    module.exit_json(**{key: value if key in FILES else shown(value, "\n" if key == "diff" else "") for key, value in result.items()})
    raise AssertionError  # exit_json ends the process
