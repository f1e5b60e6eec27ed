# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example environments are complete, and a run that would do nothing fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

PROJECT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ("staging", "prod")
PLAYBOOKS = sorted(path for path in (PROJECT / "playbooks").glob("*.yml"))


def command(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name(name)), *arguments],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_LOCAL_TEMP": str(folder), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def password(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text("example\n")
    return str(path)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_example_lists_every_host_with_tls_and_its_secrets(environment: str, password: str, tmp_path: Path) -> None:
    done = command("ansible-inventory", "-i", f"inventories/{environment}", "--vault-password-file", password, "--list", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    databases = {host for group in ("source", "targets", "control") for host in listed[group]["hosts"]}
    assert databases == {"monolith", "auth_service", "user_service", "migration_control"}
    assert len(listed["runners"]["hosts"]) >= 2
    for host in databases:
        variables = listed["_meta"]["hostvars"][host]
        assert variables["ssl_mode"] == "verify-full"
        assert {"login_host", "login_db", "login_user", "login_password", "ca_cert", "ansible_host"} <= set(variables)
        assert variables["login_password"] == f"{{{{ vault_password_{host} }}}}"


def test_the_example_of_one_machine_has_all_databases_on_one_server_and_works_there(password: str, tmp_path: Path) -> None:
    done = command("ansible-inventory", "-i", "inventories/one_machine", "--vault-password-file", password, "--list", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    hosts = listed["_meta"]["hostvars"]
    databases = [host for group in ("source", "targets", "control") for host in listed[group]["hosts"]]
    assert len({(hosts[host]["login_host"], hosts[host]["login_port"]) for host in databases}) == 1
    assert len({hosts[host]["login_db"] for host in databases}) == len(databases) == 4
    assert all({"login_user", "login_password", "ssl_mode"} <= set(hosts[host]) for host in databases)
    assert all(hosts[host]["ansible_connection"] == "local" for host in (*databases, *listed["runners"]["hosts"]))
    playbook = command("ansible-playbook", "-i", "inventories/one_machine", "playbooks/check_mappings.yml", folder=tmp_path)
    assert playbook.returncode == 0, playbook.stdout + playbook.stderr


@pytest.mark.parametrize("environment", [*ENVIRONMENTS, "one_machine"])
def test_no_two_databases_of_an_example_have_one_login(environment: str) -> None:
    """Code in a service's database could act as its login: in a database where that login is nobody it gains nothing."""
    hosts = [yaml.safe_load(path.read_text()) for path in sorted((PROJECT / "inventories" / environment / "host_vars").glob("*/main.yml"))]
    logins = {host["login_user"]: host for host in hosts}
    assert len(logins) == len(hosts) == 4
    owners = [host["session_role"] for host in hosts if "session_role" in host]
    assert len(set(owners)) == len(owners) == 2
    said = [(PROJECT / page).read_text() for page in ("README.md", "docs/privileges.md")]
    assert all(f"CREATE ROLE {login} LOGIN" in said[0] for login in logins)
    granted = [set(roles.split(", ")) & set(owners) for page in said for roles in re.findall(r"^ *GRANT ([a-z_, ]+) TO \w+;", page, re.MULTILINE)]
    assert max(map(len, granted)) == 1


@pytest.mark.parametrize("environment", [*ENVIRONMENTS, "one_machine"])
def test_every_secret_of_an_example_is_encrypted_with_the_documented_password(environment: str) -> None:
    class Loader(yaml.SafeLoader):
        """Reads !vault as its text."""

    Loader.add_constructor("!vault", lambda loader, node: ("vault", loader.construct_scalar(node)))
    found = yaml.load((PROJECT / "inventories" / environment / "group_vars/all/vault.yml").read_text(), Loader)
    sessions = set() if environment == "one_machine" else {"sessions_secret_key", "session_store_password"}
    assert {"migration_namespace", *sessions} <= set(found)
    vault = VaultLib([("default", VaultSecret(b"example"))])
    for name, (tag, text) in found.items():
        assert tag == "vault", name
        assert len(vault.decrypt(text)) >= 32, name


@pytest.mark.parametrize("environment", [*ENVIRONMENTS, "one_machine"])
def test_every_playbook_passes_a_syntax_check(environment: str, password: str, tmp_path: Path) -> None:
    names = [str(path.relative_to(PROJECT)) for path in PLAYBOOKS]
    done = command("ansible-playbook", "-i", f"inventories/{environment}", "--vault-password-file", password, "--syntax-check", *names, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_mistyped_inventory_fails(tmp_path: Path) -> None:
    done = command("ansible-playbook", "-i", "inventories/stagin", "playbooks/status.yml", folder=tmp_path)
    assert done.returncode != 0
    assert "inventories/stagin" in done.stderr + done.stdout


def test_a_limit_that_leaves_nobody_fails(tmp_path: Path) -> None:
    done = command("ansible-playbook", "-i", "inventories/staging", "--limit", "nobody", "playbooks/status.yml", folder=tmp_path)
    assert done.returncode != 0


@pytest.mark.parametrize("playbook", [path.name for path in PLAYBOOKS if path.name != "site.yml"])
def test_a_limit_that_empties_the_phase_fails(playbook: str, tmp_path: Path) -> None:
    done = command("ansible-playbook", "-i", "inventories/staging", "--limit", "sessions", f"playbooks/{playbook}", folder=tmp_path)
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "is left by --limit sessions" in said or "as --limit sessions asks for; nothing was begun" in said


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.name)
def test_every_playbook_begins_with_a_play_on_all_hosts(path: Path) -> None:
    plays = yaml.safe_load(path.read_text())
    if "ansible.builtin.import_playbook" in plays[0]:
        pytest.skip("made of playbooks that are looked at themselves")
    assert plays[0]["hosts"] == "{{ 'all' | whole_run }}"
    task = plays[0]["tasks"][0]
    assert task["ansible.builtin.import_tasks"] == "tasks/groups.yml"
    assert task["vars"]["__groups_needed"]
