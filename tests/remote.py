# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole story with two remote runners, each behind an sshd of its own on loopback, one of which is lost on the way.

    python -m tests.remote [--users 3000]

Needs the programs ssh, sshd and ssh-keygen (Debian: openssh-server, openssh-client). While the tables are carried, the ssh connections of
the first runner are cut, which it must survive; then the second runner is lost: its sshd, its connections and its module are killed.
The survivor has to finish, the last task to name the lost runner, and every row to be proven equal.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

PROJECT = Path(__file__).resolve().parents[1]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
RUNNERS = ("runner1", "runner2")
SLOW = {"migrate_limits": {"rows_per_second": 500, "cpu_percent": 0}, "migrate_chunk_rows": 100}


@dataclass(frozen=True)
class Sshd:
    """One runner's sshd."""

    process: subprocess.Popen[bytes]
    port: int

    def sessions(self) -> list[psutil.Process]:
        """Return the processes that serve its connections."""
        with contextlib.suppress(psutil.Error):
            return [child for child in psutil.Process(self.process.pid).children(recursive=True) if child.name().startswith("sshd")]
        return []


def program(name: str) -> str:
    """Return a program's path; sshd is seldom in an ordinary user's PATH."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise SystemExit(f"remote: the program {name} is missing (Debian: openssh-server, openssh-client)")
    return found


def free_port() -> int:
    """Return a port of loopback that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def daemons(folder: Path) -> Iterator[dict[str, Sshd]]:
    """Run an sshd for each runner, that lets in the key in `folder` and nobody else."""
    for name in ("host", "client"):
        subprocess.run([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "client.pub", folder / "authorized")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd, when root, separates its privileges
    running: dict[str, Sshd] = {}
    try:
        for name in RUNNERS:
            port = free_port()
            lines = (
                *(f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder / 'host'}", f"AuthorizedKeysFile {folder / 'authorized'}"),
                *("PasswordAuthentication no", "UsePAM no", "StrictModes no", "PermitRootLogin prohibit-password", f"PidFile {folder / name}.pid"),
                *("MaxStartups 100", "MaxSessions 100", "Subsystem sftp internal-sftp"),
            )
            folder.joinpath(f"{name}.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
            command = [program("sshd"), "-D", "-e", "-f", str(folder / f"{name}.conf")]
            running[name] = Sshd(subprocess.Popen(command, stderr=folder.joinpath(f"{name}.log").open("wb")), port)
        yield running
    finally:
        for daemon in running.values():
            for session in daemon.sessions():
                with contextlib.suppress(psutil.Error):
                    session.kill()
            daemon.process.kill()
            daemon.process.wait()


def make_inventory(folder: Path, running: dict[str, Sshd]) -> Path:
    """Write an inventory like the lab's whose runners are reached by ssh."""
    place = folder / "inventories" / "remote"
    shutil.copytree(PROJECT / "inventories" / "lab", place, ignore=shutil.ignore_patterns("lab.yml"))
    hosts = yaml.safe_load((place / "hosts.yml").read_text(encoding="utf-8"))
    hosts["all"]["children"]["runners"]["hosts"] = {
        name: {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": daemon.port,
            "ansible_user": getpass.getuser(),
            "ansible_ssh_private_key_file": str(folder / "client"),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o LogLevel=ERROR",
            "ansible_remote_tmp": str(folder / name / "tmp"),
            "ansible_async_dir": str(folder / name / "async"),
        }
        for name, daemon in running.items()
    }
    (place / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
    return place


def command(inventory: Path, playbook: str, **extra: object) -> list[str]:
    """Return the command that runs a playbook."""
    chosen = {"migration_artifacts_dir": str(inventory / "artifacts"), "migration_reconnect_seconds": 8, "migration_progress_seconds": 1, **extra}
    return [str(PLAYBOOK), str(PROJECT / "playbooks" / f"{playbook}.yml"), "-i", str(inventory), "-e", json.dumps(chosen)]


def play(inventory: Path, playbook: str, **extra: object) -> None:
    """Run a playbook to its end; what it said is shown when it fails."""
    done = subprocess.run(command(inventory, playbook, **extra), cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"remote: {playbook} failed\n{done.stdout}{done.stderr}")


def modules(folder: Path, runner: str) -> list[psutil.Process]:
    """Return the processes of migration_copy on one runner, Ansible's wrapper and the workers among them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(folder / runner) in words and ("AnsiballZ_migration_copy" in words or "async_wrapper" in words):
            found.append(process)
    return found


def wait_for(log: Path, pattern: str, running: subprocess.Popen[bytes], seconds: float = 300) -> None:
    """Wait until the play has said something."""
    deadline = time.monotonic() + seconds
    while not re.search(pattern, log.read_text(encoding="utf-8")):
        if running.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"remote: never said: {pattern}\n{log.read_text(encoding='utf-8')}")
        time.sleep(0.1)


def secrets_on_disk(folder: Path, inventory: Path) -> list[str]:
    """Return the files in the runners' folders that hold a secret of the inventory."""
    texts = [path.read_text(encoding="utf-8") for path in inventory.rglob("lab.yml")]
    secrets = {str(value) for text in texts for name, value in (yaml.safe_load(text) or {}).items() if re.search("password|secret|namespace", name)}
    held = []
    for path in (path for runner in RUNNERS for path in (folder / runner).rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets):
                held.append(str(path))
    return held


def kill(processes: list[psutil.Process]) -> None:
    """Kill -9 processes that may be gone."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)


def trial(folder: Path, users: int) -> str:
    """Run it all; return what the last task said."""
    with daemons(folder) as running:
        inventory = make_inventory(folder, running)
        log = folder / "site.log"
        try:
            play(inventory, "lab", lab_users=users)
            with log.open("wb") as out:
                site = subprocess.Popen(command(inventory, "site", **SLOW), cwd=PROJECT, stdout=out, stderr=subprocess.STDOUT)
            wait_for(log, r"\[runner1\] \w+_service\..*%.* rows", site)
            cut = running["runner1"].sessions()
            kill(cut)
            print(f"remote: cut {len(cut)} processes of runner1's connections", flush=True)
            if found := secrets_on_disk(folder, inventory):
                raise SystemExit(f"remote: secrets lie in files of a runner: {', '.join(found)}")
            wait_for(log, r"\[runner2\] \w+_service\..*%.* rows", site)
            time.sleep(2)
            victims = [psutil.Process(running["runner2"].process.pid), *running["runner2"].sessions(), *modules(folder, "runner2")]
            kill(victims)
            print(f"remote: lost runner2 ({len(victims)} processes killed)", flush=True)
            if site.wait(timeout=240) != 0:
                raise SystemExit(f"remote: site.yml failed\n{log.read_text(encoding='utf-8')}")
        finally:
            play(inventory, "lab", lab_state="absent")
    text = re.sub(r"\s+", " ", log.read_text(encoding="utf-8"))
    said = re.search(r"every chunk is carried, although a runner was lost: [^\"]*?runner2[^\"]{0,200}", text)
    proven = re.search(r"equal: [\d,]+ rows in \d+ tables, every column, no difference", text)
    if not said or not proven:
        raise SystemExit(f"remote: {'nothing was proven' if said else 'the lost runner is not named'}\n{log.read_text(encoding='utf-8')}")
    return f"{said[0].strip()}\n{proven[0]}"


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="make remote", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--users", type=int, default=3000)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="edulink-remote-"))
    started = time.monotonic()
    try:
        print(trial(folder, chosen.users))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"remote: passed in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
