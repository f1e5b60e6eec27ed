# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module of the migration: hand it its secrets, and show on the controller how far a long one is.

Every module's name is a link to this file. The task's argument `secrets` names variables by the option that gets their values.
They never stand in the task's arguments, which callbacks print and ansible-runner keeps, nor in a file on the runner: they are piped
to the module with its code, or, where Ansible writes the module to a file (async, no pipelining), through a FIFO that the module reads.

A long module replaces a small JSON file (its option
`progress_file`); on a local connection a thread reads it, on any other the module runs asynchronously, so that it survives a
lost connection, and the file is fetched with every poll. Lines go to stderr: stdout stays what the callback makes of it.

Variables: `migration_progress` (default true), `migration_progress_seconds` (5) between two lines of a table,
`migration_reconnect_seconds` (600) that a runner may be out of reach, `migration_async_seconds` (7 days) that a module may run.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

FIRST_LINE = 1.0  # seconds: a step that is over sooner shows nothing
POLL = 0.5  # seconds between two looks at a local file
LONGEST_POLL = 5.0  # seconds between two polls of a remote runner
DELIVERY = 10  # seconds that one try to hand over the secrets waits for the module to take them
# Those with an option `progress_file`.
LONG = tuple(f"migration_{phase}" for phase in ("copy", "index", "lab", "preflight", "rollback", "snapshot", "validate"))
MISSED = 3  # polls that find no process and no result before the module is taken for killed
SECRETS = "secrets"  # the task's argument
TAKEN = ".taken"  # beside the FIFO: module_utils/migration/module.py makes it
GONE = "the module ended on the runner without a result (killed, or the machine was started anew); what was committed is kept: run it again"
ASYNC_KEYS = ("ansible_job_id", "started", "finished", "results_file", "ansible_async_watchdog_pid", "child_pid", "child_tracker_pid", "supports_tmpdir")

display = Display()


@dataclass(frozen=True)
class Fifo:
    """The way of the secrets: where the FIFO is on the runner, and what goes through it."""

    path: str
    content: bytes = field(repr=False)


class Watcher:
    """Turns the states of a progress file into lines, none too often."""

    def __init__(self, host: str, seconds: float) -> None:
        self._host = host
        self._seconds = seconds
        self._shown: dict[str, tuple[float, str]] = {}
        self._note = ""
        self._since = time.monotonic()

    def show(self, text: str, *, last: bool = False) -> None:
        """Display what is new in a state; at the end the last state of each table, unless all was over at once."""
        try:
            state = json.loads(text)
        except ValueError:
            return
        if not isinstance(state, dict):
            return
        now = time.monotonic()
        if now - self._since < FIRST_LINE:
            return
        for name, table in state.get("tables", {}).items():
            if not table["done"] and table.get("total") and not last:
                continue  # not begun
            when, before = self._shown.get(name, (float("-inf"), ""))
            line = describe(name, table)
            finished = table.get("total") is not None and table["done"] >= table["total"]
            if line == before or (now - when < self._seconds and not last and not finished):
                continue
            self._shown[name] = (now, line)
            self._say(line)
        note = state.get("note", "")
        if note != self._note:
            self._note = note
            self._say(note or "goes on")

    def say_lost(self, cause: str) -> None:
        """Tell that the runner is out of reach."""
        self._say(f"out of reach ({cause}); the work goes on there, trying again")

    def _say(self, line: str) -> None:
        display.display(f"[{self._host}] {line}", color=C.COLOR_VERBOSE, stderr=True, screen_only=True)


def describe(name: str, table: Mapping[str, Any]) -> str:
    """Return `users 45% 1.2M/2.7M rows 224k rows/s ETA 00:06`."""
    done, total, rate, unit = table["done"], table.get("total"), table.get("rate") or 0.0, table.get("unit", "rows")
    if total is None:
        return " ".join([name, f"{short(done)} {unit}", f"{short(rate)} {unit}/s"])
    if done >= total:
        return f"{name} 100% {short(done)} {unit}"
    left = f" ETA {clock((total - done) / rate)}" if rate > 0 else ""
    return f"{name} {min(99, 100 * done // max(total, 1))}% {short(done)}/{short(total)} {unit} {short(rate)} {unit}/s{left}"


def short(number: float) -> str:
    """Return a number as people say it: 950, 12.3k, 224k, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            value = number / size
            return f"{value:.1f}{letter}".replace(".0", "") if value < 99.95 else f"{value:.0f}{letter}"
    return f"{number:.0f}"


def clock(seconds: float) -> str:
    """Return 00:06, 12:30 or 3:25:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


class ActionModule(ActionBase):
    """Runs the module of the task's name, hands it its secrets and shows its progress."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; its result is returned as it is."""
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        _end_with_ansible()
        return {**result, **self._without_secrets(self._run_module(self._task.args, variables))}

    def _run_module(self, given: Mapping[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Run the module with the task's arguments, in the way that leaves its secrets nowhere."""
        if self._task.async_val:
            return {"failed": True, "msg": "async is not for this task: it hands the module its secrets and waits by itself; leave async out"}
        secrets = self._secrets(given, variables)
        args = {name: value for name, value in given.items() if name != SECRETS}
        local, piped = self._connection.transport == "local", self._is_pipelining_enabled("new")
        long = self._task.action.rpartition(".")[2] in LONG
        if piped and (not long or (self._task.check_mode and not local)):
            return self._execute_module(module_args={**args, **secrets}, task_vars=variables)
        watcher = self._watcher(variables)
        folder = self._own_folder()
        try:
            path = self._connection._shell.join_path(folder, "progress.json")
            if long:
                args["progress_file"] = path
            if local and (piped or not secrets):
                return self._run_here({**args, **secrets}, variables, Path(path), watcher)
            return self._run_there(args, variables, path, watcher, self._fifo(folder, secrets) if secrets else None)
        finally:
            modules_own = self._connection._shell.tmpdir
            with contextlib.suppress(AnsibleError):
                self._remove_tmp_path(folder, force=True)
            self._connection._shell.tmpdir = modules_own

    def _secrets(self, given: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the variables that `secrets` names; one that is not set or empty is none."""
        found = {}
        for option, name in (given.get(SECRETS) or {}).items():
            value = self._templar.template(variables[name]) if name in variables else None
            if value is not None and value != "":
                found[str(option)] = _plain(value)
        return found

    def _without_secrets(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Return a result whose invocation shows the task's own arguments: names in a secret option would be masked wherever they occur."""
        invocation = outcome.get("invocation")
        arguments = invocation.get("module_args") if isinstance(invocation, dict) else None
        if isinstance(arguments, dict):
            for option in self._task.args.get(SECRETS) or {}:
                arguments.pop(option, None)
        return outcome

    def _fifo(self, folder: str, secrets: Mapping[str, Any]) -> Fifo:
        """Make the FIFO in the folder on the runner."""
        path = self._connection._shell.join_path(folder, "secrets")
        made = self._low_level_execute_command(f"mkfifo -m 600 {self._connection._shell.quote(path)}")
        if made["rc"] != 0:
            raise AnsibleError(f"no FIFO can be made in {folder} on the runner; set ansible_remote_tmp to a folder where one can")
        return Fifo(path, json.dumps(secrets).encode())

    def _deliver(self, fifo: Fifo) -> bool:
        """Write the secrets into the FIFO; return whether the module has taken them. What is there is never a regular file."""
        quote = self._connection._shell.quote
        path, taken = quote(fifo.path), quote(fifo.path + TAKEN)
        command = (
            f"[ -e {taken} ] && exit 0; [ -p {path} ] || exit 1; exec 3<&0; cat <&3 >{path} & p=$!;"
            f" (sleep {DELIVERY}; kill $p) 3<&- >/dev/null 2>&1 & w=$!; wait $p; s=$?; kill $w 2>/dev/null; exit $s"
        )
        return bool(self._low_level_execute_command(command, in_data=fifo.content)["rc"] == 0)

    def _run_here(self, args: dict[str, Any], variables: dict[str, Any], path: Path, watcher: Watcher | None) -> dict[str, Any]:
        with _watched(path, watcher):
            outcome = self._execute_module(module_args=args, task_vars=variables)
        return {"failed": True, "msg": GONE} if _killed(outcome) else outcome

    def _run_there(
        self, args: dict[str, Any], variables: dict[str, Any], path: str, watcher: Watcher | None, fifo: Fifo | None = None
    ) -> dict[str, Any]:
        """Start the module asynchronously, hand it its secrets and poll it, through lost connections."""
        if fifo is not None:
            args = {**args, "secrets_from": fifo.path}
        delivered = fifo is None
        patience = float(self._option(variables, "migration_reconnect_seconds", 600))
        job = self._start(args, variables)
        if "ansible_job_id" not in job:
            return job
        reached, pause, lost = time.monotonic(), POLL, 0
        pid, missed = 0, 0
        while True:
            time.sleep(pause if delivered else 0)
            pause = min(pause * 1.5, LONGEST_POLL)
            try:
                if fifo is not None and not delivered:
                    delivered = self._deliver(fifo)
                status = self._status(job, variables)
                pid, alive = self._fetch(path, watcher, pid, last=_finished(status))
                missed = 0 if alive else missed + 1
                if _finished(status) or missed >= MISSED:
                    with contextlib.suppress(AnsibleError):
                        self._status(job, variables, mode="cleanup")
                    return {key: value for key, value in status.items() if key not in ASYNC_KEYS} if _finished(status) else {"failed": True, "msg": GONE}
                reached, lost = time.monotonic(), 0
            except AnsibleConnectionFailure as exc:
                if time.monotonic() - reached > patience:
                    raise
                lost += 1
                if watcher and lost == 2:
                    watcher.say_lost(str(exc).splitlines()[0].rsplit("ssh: ", 1)[-1][:200])
                with contextlib.suppress(Exception):  # a connection that cannot be reset is opened anew by the next poll
                    self._connection.reset()

    def _start(self, args: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        self._task.async_val = int(self._option(variables, "migration_async_seconds", 7 * 24 * 3600))
        try:
            return self._execute_module(module_args=args, task_vars=variables, wrap_async=True)
        finally:
            self._task.async_val = 0

    def _status(self, job: Mapping[str, Any], variables: dict[str, Any], mode: str = "status") -> dict[str, Any]:
        arguments = {"jid": job["ansible_job_id"], "mode": mode, "_async_dir": self.get_shell_option("async_dir", default="~/.ansible_async")}
        return self._execute_module(module_name="ansible.legacy.async_status", module_args=arguments, task_vars=variables)

    def _fetch(self, path: str, watcher: Watcher | None, pid: int, *, last: bool = False) -> tuple[int, bool]:
        """Show the progress; return the module's process id as far as it is known (0 if not) and whether that process is there."""
        look = f"cat {self._connection._shell.quote(path)} 2>/dev/null; kill -0 {pid} 2>/dev/null || echo gone"
        state, _, rest = self._low_level_execute_command(look)["stdout"].partition("\n")
        if watcher:
            watcher.show(state, last=last)
        with contextlib.suppress(ValueError, AttributeError):
            pid = int(json.loads(state).get("pid", pid))
        return pid, pid == 0 or "gone" not in rest

    def _own_folder(self) -> str:
        """Make a folder on the runner that lives as long as the task, apart from the module's own."""
        before = self._connection._shell.tmpdir
        self._connection._shell.tmpdir = None
        folder = self._make_tmp_path()
        self._connection._shell.tmpdir = before
        return folder

    def _watcher(self, variables: Mapping[str, Any]) -> Watcher | None:
        """Return who shows the lines; None when nobody wants them."""
        wanted = boolean(self._option(variables, "migration_progress", True), strict=False)
        if not wanted or self._task.no_log or "json" in str(C.DEFAULT_STDOUT_CALLBACK):
            return None
        return Watcher(variables.get("inventory_hostname", "?"), float(self._option(variables, "migration_progress_seconds", 5)))

    def _option(self, variables: Mapping[str, Any], name: str, default: Any) -> Any:
        return self._templar.template(variables[name]) if name in variables else default


def _plain(value: Any) -> Any:
    """Return a template's result as JSON has it: lazy containers filled, vaulted texts decrypted."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _finished(status: Mapping[str, Any]) -> bool:
    return bool(status.get("finished")) or (bool(status.get("failed")) and bool(status.get("_ansible_parsed")))


def _killed(outcome: Mapping[str, Any]) -> bool:
    """Tell whether a local module ended by a signal, which a shell reports as 128 and more, before it could say anything."""
    return bool(outcome.get("failed")) and not outcome.get("_ansible_parsed", True) and int(outcome.get("rc") or 0) > 128


def _end_with_ansible() -> None:
    """End this worker of Ansible when ansible-playbook is gone, until the worker's own end, and with it a local module.

    Ansible itself would let it wait for ever: for the module, or to hand a result on that is larger than the pipe to nobody.
    """
    owner = multiprocessing.parent_process()  # known from before the fork, however early it was killed
    if owner is None:
        return  # no worker

    def watch() -> None:
        while os.getppid() == owner.pid:
            time.sleep(POLL)
        os._exit(1)

    threading.Thread(target=watch, name="ansible", daemon=True).start()


@contextlib.contextmanager
def _watched(path: Path, watcher: Watcher | None) -> Iterator[None]:
    """Show the file's states from a thread while the body runs."""
    over = threading.Event()

    def look(*, last: bool = False) -> None:
        if watcher is not None:
            with contextlib.suppress(OSError):
                watcher.show(path.read_text(encoding="utf-8"), last=last)

    def watch() -> None:
        pause = FIRST_LINE
        while not over.wait(pause):
            look()
            pause = POLL

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look(last=True)
