# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory leaves out is said in one line by a playbook's first play."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PLAYBOOKS = sorted(file.name for file in (PROJECT / "playbooks").glob("*.yml") if file.name not in ("site.yml", "lab.yml"))
INVENTORY = """
all:
  vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  children:
    databases:
      children:
        source: {hosts: {monolith: {login_host: a, login_db: a, login_user: a}}}
        targets: {hosts: {auth_service: {login_host: a, login_db: a, login_user: a}, user_service: {login_host: a, login_user: a}}}
        control: {hosts: {migration_control: {login_host: a, login_db: a, login_user: a}}}
    runners: {hosts: {runner1: {}}}
"""
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.import_tasks: {tasks}
      vars: {{__variables_needed: {{runners: [migration_namespace], targets: [other]}}}}
"""


def play(tmp_path: Path, playbook: Path, *arguments: str) -> tuple[int, str]:
    """Return how a playbook ends on an inventory that has no namespace and one database without a name, and what it says."""
    (tmp_path / "prod.yml").write_text(INVENTORY)
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", str(tmp_path / "prod.yml"), *arguments, str(playbook)],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_playbook_names_what_is_not_set_and_for_whom_and_prints_no_specification(tmp_path: Path) -> None:
    status, said = play(tmp_path, PROJECT / "playbooks" / "sessions.yml")
    assert status != 0
    assert (
        "does not set migration_namespace for runner1, sessions_secret_key for runner1, session_store_hosts for runner1, login_db for user_service;" in said
    )
    assert "argument_spec" not in said


def test_what_the_command_line_gives_is_set_and_hosts_outside_the_limit_are_not_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "play.yml"
    file.write_text(PLAY.format(tasks=PROJECT / "playbooks" / "tasks" / "variables.yml"))
    status, said = play(tmp_path, file, "-e", "migration_namespace=0123456789abcdef", "-e", "login_db=a", "--limit", "auth_service:runners")
    assert status != 0
    assert "does not set other for auth_service;" in said


OTHERS = """
all:
  vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}", session_store_db: 1, rollback_scope: data}
  children:
    targets: {hosts: {auth_service: {lab_user: 5, vault_password_auth_service: x, indexes: 2, __migrate_result: {}}}}
    runners: {hosts: {runner1: {migration_progress: false, snapshot_keep_counts: 3, schema_registry_url: x}}}
    webservers: {hosts: {web1: {release_version: 5}}}
"""


@pytest.mark.parametrize("playbook", ["rollback.yml", "lab.yml", "migrate.yml"])
def test_a_mistyped_option_is_refused_with_the_nearest_one(tmp_path: Path, playbook: str) -> None:
    given = [word for value in ("rollback_scop=data", "migrate_worker=3", "snapshot_proof=true") for word in ("-e", value)]
    status, said = play(tmp_path, PROJECT / "playbooks" / playbook, "--check", *given)
    assert status != 0
    assert (
        "no role has the option migrate_worker (did you mean migrate_workers?), rollback_scop (did you mean rollback_scope?),"
        " snapshot_proof (it is called snapshot_verify_restore now);"
    ) in said


def test_an_option_mistyped_in_the_inventory_is_refused_and_the_variables_of_other_hosts_are_their_own(tmp_path: Path) -> None:
    (tmp_path / "others.yml").write_text(OTHERS)
    file = tmp_path / "play.yml"
    file.write_text(f"- {{hosts: all, gather_facts: false, tasks: [ansible.builtin.import_tasks: {PROJECT}/playbooks/tasks/options.yml]}}")
    status, said = play(tmp_path, file, "-i", str(tmp_path / "others.yml"), "--limit", "runners")
    assert status != 0
    assert "no role has the option lab_user (did you mean lab_users?), snapshot_keep_counts (did you mean snapshot_keep_count?);" in said
    own = ("release_version", "schema_registry_url", "indexes", "session_store_db", "vault_password", "__migrate_result")
    assert not [name for name in own if f"{name} " in said]


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_every_playbook_checks_its_variables(name: str) -> None:
    checked = "tasks/options.yml" if name == "check_mappings.yml" else "tasks/variables.yml"  # the one needs no way to a database
    assert checked in (PROJECT / "playbooks" / name).read_text()
