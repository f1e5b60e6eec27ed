# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One cell's servers, its inventory, and playbooks run against them as an operator would."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.lab import lab, layout
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded import server as postgres
from ansible.module_utils.migration.postgres import driver

from tests.servers.tls import Authority, authority

PROJECT = Path(__file__).resolve().parents[2]
HOSTS = ("monolith", "auth_service", "user_service")
HBA_TLS = """\
local all postgres scram-sha-256
local edulink edulink scram-sha-256
hostssl all migration_reader,migrator 127.0.0.1/32 scram-sha-256 clientcert=verify-full
"""  # nobody of the migration can come in without TLS and a certificate of the role's name


class Failed(Exception):
    """What a cell expected and did not get."""


@dataclass(frozen=True)
class Played:
    """How a playbook ended."""

    status: int
    text: str

    @property
    def changed(self) -> int:
        """Return the sum of `changed=` over the hosts of the recap."""
        return sum(map(int, re.findall(r"\bchanged=(\d+)", self.text)))

    def found(self, pattern: str) -> str:
        """Return the first match of a pattern in the text, whose lines are joined; empty when there is none."""
        match = re.search(pattern, " ".join(self.text.split()))
        return match[0] if match else ""


@dataclass(frozen=True)
class Trial:
    """The running servers of a cell and the inventory that points at them."""

    folder: Path
    inventory: Path
    servers: Mapping[str, postgres.PostgresServer]
    programs: Mapping[int, Path]

    def rows(self, host: str, *statements: str, dbname: str | None = None) -> list[tuple[Any, ...]]:
        """Run statements as superuser on a host's server; return the last one's rows."""
        name = dbname or {"monolith": "edulink"}.get(host, host)
        connection = driver.connect(self.servers[host].endpoint(name), application_name="tests", autocommit=True)
        try:
            found: list[tuple[Any, ...]] = []
            for statement in statements:
                found = driver.rows(connection, statement)
            return found
        finally:
            connection.close()

    def sql(self, host: str, *statements: str, dbname: str | None = None) -> Any:
        """Run statements as superuser on a host's server; return the last one's first value."""
        found = self.rows(host, *statements, dbname=dbname)
        return found[0][0] if found else None

    def read(self, host: str, name: str) -> Any:
        """Return a variable that vars() has set."""
        lines = (self.inventory / "host_vars" / host / "own.yml").read_text(encoding="utf-8").splitlines()
        return json.loads(dict(line.split(": ", 1) for line in lines)[name])

    def vars(self, host: str, **values: object) -> None:
        """Set inventory variables of a host, or of all when it is `all`."""
        folder = self.inventory / ("group_vars/all" if host == "all" else f"host_vars/{host}")
        path = folder / "own.yml"  # read after lab.yml and main.yml
        known = dict(line.split(": ", 1) for line in path.read_text(encoding="utf-8").splitlines()) if path.exists() else {}
        known |= {name: json.dumps(value) for name, value in values.items()}
        path.write_text("".join(f"{name}: {value}\n" for name, value in known.items()), encoding="utf-8")

    def play(self, name: str, *arguments: str, expect: int = 0, says: str = "") -> Played:
        """Run a playbook; Failed when it ends with another status, or without saying what matches `says`."""
        argv = ["ansible-playbook", "-i", str(self.inventory), f"playbooks/{name}.yml", *arguments]
        path = os.pathsep.join([*(str(self.programs[major]) for major in sorted(self.programs)), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
        done = subprocess.run(argv, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        played = Played(done.returncode, done.stdout + done.stderr)
        (self.folder / f"{name}.log").write_text(played.text, encoding="utf-8")
        if played.status != expect:
            raise Failed(f"{name}.yml ended with {played.status} instead of {expect}: {_fault(played.text)}")
        if says and not played.found(says):
            raise Failed(f"{name}.yml did not say {says!r}")
        return played


def _fault(text: str) -> str:
    """Return the message of the last failed task, else the last lines."""
    found = re.findall(r'^fatal: .*?"msg": ("(?:[^"\\]|\\.)*")', text, re.MULTILINE)
    return str(json.loads(found[-1])) if found else "\n".join(text.strip().splitlines()[-5:])


@contextlib.contextmanager
def trial(majors: Mapping[str, int], programs: Mapping[int, Path], users: int, *, tls: bool = False) -> Iterator[Trial]:
    """Start the servers of the given majors, fill the monolith, write the inventory; all is deleted at the end."""
    folder = process.new_root("edulink-sv-")
    inventory = folder / "inventory"
    shutil.copytree(PROJECT / "inventories" / "lab", inventory, ignore=shutil.ignore_patterns("lab.yml"))
    account = process.Account.for_servers()
    ca = authority(folder / "tls", "campaign", account) if tls else None
    variants = {host: lab.Variant(programs[majors[host]], {**postgres.THROW_AWAY, **(_tls_settings(ca, host) if ca else {})}) for host in HOSTS}
    options = lab.Options(folder / "state", inventory, PROJECT / "tests" / "monolith", users=users, sessions=60, variants=variants)
    try:
        lab.start(options, check=False)
        state = layout.read_state(options.state_dir)
        assert state is not None
        made = Trial(folder, inventory, lab.describe(options, state).servers, programs)
        limits = {f"{measure}_percent": 0 for measure in ("cpu", "memory", "disk")}  # a busy machine would make the transfer wait
        made.vars("all", pg_bin_dir="", migration_artifacts_dir=str(folder / "artifacts"), migrate_limits=limits)
        if ca:
            require_tls(made, ca)
        yield made
    finally:
        lab.delete(options, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _tls_settings(ca: Authority, host: str) -> dict[str, str]:
    certificate, key = ca.issue(f"server-{host}", server=True)
    return {
        "listen_addresses": "127.0.0.1",
        "port": _free_port(),
        "ssl": "on",
        "ssl_ca_file": str(ca.certificate),
        "ssl_cert_file": str(certificate),
        "ssl_key_file": str(key),
    }


def require_tls(made: Trial, ca: Authority) -> None:
    """Let the servers refuse the migration's roles without TLS, and the inventory use verify-full with client certificates."""
    for server in made.servers.values():
        process.write(server.data / "pg_hba.conf", HBA_TLS, server.account)
        made.sql(server.name, "SELECT pg_reload_conf()", dbname="postgres")
    certificates = {role: ca.issue(role, server=False) for role in ("migration_reader", "migrator")}
    for host in (*HOSTS, "migration_control"):
        server = made.servers["user_service" if host == "migration_control" else host]
        certificate, key = certificates["migration_reader" if host == "monolith" else "migrator"]
        made.vars(
            host, login_host="localhost", login_port=server.port, ssl_mode="verify-full", ca_cert=str(ca.certificate), ssl_cert=str(certificate),
            ssl_key=str(key),
        )  # fmt: skip


@contextlib.contextmanager
def standby(made: Trial, host: str) -> Iterator[postgres.PostgresServer]:
    """Copy a host's server into a running physical standby, and point the inventory at it."""
    primary = made.servers[host]
    own = replace(primary, name="standby", home=primary.home.with_name("standby"))
    process.folder(own.home, own.account, 0o755)
    passfile = own.home / "pgpass"
    process.write(passfile, f"*:*:*:*:{primary.password}\n", own.account)
    link = f"host={primary.home} port={primary.port} user=postgres passfile={passfile}"
    process.run([str(own.bin_dir / "pg_basebackup"), "-D", str(own.data), "-X", "stream", "-c", "fast", "-d", link], own.home, own.account)
    own = replace(own, settings={**primary.settings, "primary_conninfo": link, "hot_standby": "on", "hot_standby_feedback": "on"})
    process.write(own.data / "standby.signal", "", own.account)
    postgres.start(own)
    try:
        made.vars(host, login_host=str(own.home))
        yield own
    finally:
        postgres.stop(own)
