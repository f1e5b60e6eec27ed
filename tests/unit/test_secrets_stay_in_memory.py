# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task's module needs in secret is in no output of Ansible, in no result and in no file, on whatever way it gets there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from ansible.module_utils.migration import module

from tests.action_play import PROJECT, command

SECRET = "a-secret-that-nobody-prints"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
LOUD = {"ANSIBLE_DISPLAY_ARGS_TO_STDOUT": "1", "ANSIBLE_DISPLAY_TRACEBACK": "always", "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "0"}
TASK = "{seconds: %s, secrets: {token: my_token}}"
VARIABLES = ("-e", json.dumps({"my_token": "{{ my_vaulted }}", "my_vaulted": SECRET}))


def files_with(folder: Path, text: str) -> list[str]:
    """Return the files below the folder that hold the text; a FIFO has no content."""
    held = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and text.encode() in path.read_bytes():
                held.append(str(path))
        except FileNotFoundError:
            continue
    return held


@pytest.mark.parametrize(("way", "callback"), [("local", "default"), ("flaky", "default"), ("local unpiped check", "ansible.posix.json")])
def test_arguments_results_and_output_are_without_it(tmp_path: Path, way: str, callback: str) -> None:
    connection, *how = way.split()
    loud = {**LOUD, "ANSIBLE_PIPELINING": str("unpiped" not in how), "ANSIBLE_STDOUT_CALLBACK": callback, "ANSIBLE_LOG_PATH": str(tmp_path / "log")}
    arguments = ("-c", connection, *VARIABLES, "-vvvvv", *(["--check"] if "check" in how else []))
    done = subprocess.run(**command(tmp_path, TASK % 0.2, *arguments, **loud), capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert DIGEST in said  # the module had it, and its result is shown
    given = said.replace(VARIABLES[1], "")  # -vvvvv repeats the command line
    assert SECRET not in given
    if callback == "default":
        assert "secrets={'token': 'my_token'}" in given  # the arguments are shown
    assert files_with(tmp_path / "remote", SECRET) + files_with(tmp_path / "async", SECRET) == []


@pytest.mark.parametrize("way", ["flaky", "local unpiped"])
def test_a_kill_leaves_it_on_no_disk(tmp_path: Path, way: str) -> None:
    connection, *how = way.split()
    loud = {"ANSIBLE_PIPELINING": str("unpiped" not in how)}
    given = command(tmp_path, TASK % 6, "-c", connection, *VARIABLES, **loud)
    running = subprocess.Popen(**given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 40
    seen: list[str] = []
    while not list(tmp_path.glob("remote/*/progress.json")) and time.monotonic() < deadline:
        seen += files_with(tmp_path, SECRET)
        time.sleep(0.02)
    assert list(tmp_path.glob("remote/*/progress.json")), "the module never began"
    workers = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(process.info["cmdline"] or ())]
    running.kill()
    for process in workers:
        process.kill()
    running.wait()
    assert seen + files_with(tmp_path, SECRET) == []


def test_a_module_does_not_wait_for_ever_for_what_never_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fifo = tmp_path / "secrets"
    os.mkfifo(fifo)
    with pytest.raises(SystemExit) as caught:
        module.received(str(fifo), patience=0.1)
    assert "did not arrive" in str(caught.value)
    threading.Thread(target=fifo.write_text, args=(json.dumps({"token": SECRET * 10_000}),)).start()  # more than a pipe holds
    assert module.received(str(fifo))["token"] == SECRET * 10_000
    assert (tmp_path / "secrets.taken").exists()


def test_no_task_of_the_project_has_a_secret_among_its_arguments() -> None:
    options = {"connections", "namespace", "store", "verify_server", "canaries", "secret_key", "secret_key_fallbacks", "service_secret_key"}
    masked = set(re.findall(r'"(\w+)": \{[^{}]*"no_log": True', "".join(path.read_text() for path in PROJECT.glob("library/*.py"))))
    assert masked - {"password"} <= options
    for path in PROJECT.glob("roles/*/tasks/*.yml"):
        tasks = yaml.safe_load(path.read_text())
        for task in [*tasks, *(inner for outer in tasks for inner in outer.get("block", []))]:
            arguments = [value for name, value in task.items() if (PROJECT / "library" / f"{name}.py").exists()]
            assert [name for given in arguments for name in given if name in options] == [], path


def test_every_module_that_takes_secrets_has_the_action_plugin_that_brings_them() -> None:
    for path in PROJECT.glob("library/*.py"):
        assert (PROJECT / "plugins" / "action" / path.name).exists(), path.name
