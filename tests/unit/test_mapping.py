# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mapping that is wrong is refused in one line with its place; one that is right compiles to what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.migration.contract.parse import parse_contract
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.plan.compiler import compile_plan
from ansible.module_utils.migration.plan.mapping_files import read_mappings
from ansible.module_utils.migration.plan.model import Plan

PROJECT = Path(__file__).resolve().parents[2]
SERVICES = ("auth_service", "user_service")


def compiled(mappings: Path, namespace: str = "n" * 32) -> Plan:
    contracts = {service: parse_contract(service, PROJECT / "roles" / "schema" / "files" / service) for service in SERVICES}
    return compile_plan(read_mappings(mappings, SERVICES), contracts, ids.fingerprint(namespace))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PROJECT / "mappings", tmp_path / "mappings"))


def replaced(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        text = (tree / path).read_text(encoding="utf-8")
        assert old in text
        (tree / path).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


USERS, ROLES, GROUPS = "auth_service/users.yml", "user_service/roles.yml", "_ids/groups.yml"
WRONG = {
    "unknown target column": (replaced(USERS, "email: email", "emial: email"), r"users\.yml:6: .*has no column 'emial'; did you mean 'email'"),
    "no value": (replaced(USERS, "  two_factor_secret: {value: null}\n", ""), r"users\.yml:\d+: the mapping gives no value for two_factor_secret"),
    "unknown key": (replaced(USERS, "key:", "kye: 1\nkey:"), r"users\.yml:3: .*unknown key 'kye'"),
    "key twice": (replaced(USERS, "  email: email", "  email: email\n  email: email"), r"users\.yml:7: 'email' stands twice"),
    "bad SQL": (replaced(USERS, "NOT is_superuser", "NOT ("), r"users\.yml:9: column is_verified"),
    "more than an expression": (replaced(USERS, "NOT is_superuser", "true) LIMIT (1"), r"must be one scalar SQL expression"),
    "a subquery": (replaced(USERS, "NOT is_superuser", "(SELECT true)"), r"a subquery needs a 'source"),
    "another value at every run": (replaced(USERS, "NOT is_superuser", "now() > date_joined"), r"now gives another value at every run"),
    "a parameter": (replaced(USERS, "NOT is_superuser", "$1"), r"\$1"),
    "unknown id map": (replaced(ROLES, "map: users", "map: user"), r"roles\.yml:\d+: .*no mapping mints 'user'; did you mean 'users'"),
    "a table read but not followed": (replaced(ROLES, "        auth_group: {id: group_id}\n", ""), r"reads 'auth_group', but 'refresh' does not say"),
    "a file that is not there": (replaced(ROLES, "query: membership.sql", "query: members.sql"), r"there is no file 'members\.sql'"),
    "an unknown policy": (replaced(USERS, "columns:", "policies: {email: {blank: [quarantine]}}\ncolumns:"), r"users\.yml:\d+: policy email\.blank"),
    "a type that is none": (replaced(GROUPS, "permissions: jsonb", 'permissions: "jsonb); DROP TABLE x; --"'), r"groups\.yml:\d+: keep\.permissions"),
    "an account column that is none": (
        replaced("_accounts.yml", "password: password_hash", "password: password_hsh"),
        r"_accounts\.yml:2: users\.password: .*no column 'password_hsh'; did you mean 'password_hash'",
    ),
    "an alias of itself": (replaced(USERS, "{value: 0}", "&a {value: *a}"), r"users\.yml"),
    "not YAML": (replaced(USERS, "columns:", "columns: ["), r"users\.yml:\d+: is not YAML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_mapping_is_refused_with_its_place(tree: Path, name: str) -> None:
    change, message = WRONG[name]
    change(tree)
    with pytest.raises(MigrationError, match=message) as failure:
        compiled(tree)
    assert "\n" not in str(failure.value)


def test_all_mistakes_of_all_files_are_named_in_one_reading(tree: Path, tmp_path: Path) -> None:
    whole_file = ("key twice", "not YAML", "an alias of itself")  # nothing of such a file can be read
    same_place = ("more than an expression", "a subquery", "another value at every run", "a parameter", "no value", "a file that is not there")
    applied = {name: case for name, case in WRONG.items() if name not in (*whole_file, *same_place)}
    for change, _ in applied.values():
        change(tree)
    replaced("user_service/profiles.yml", "map: users", "map: user")(tree)
    replaced("user_service/company_profiles.yml", "columns:", "columns: [")(tree)
    schema = Path(shutil.copytree(PROJECT / "roles" / "schema" / "files", tmp_path / "schema"))
    first, second = sorted(schema.glob("*/*.sql"))[:1] + sorted(schema.glob("user_service/*.sql"))[:1]
    first.write_text(first.read_text(encoding="utf-8") + "\nCREATE TABLE odd (id uuid PRIMARY KEY, shape varchr, a text);\n", encoding="utf-8")
    second.write_text("CREATE TABEL x (a int);\n" + second.read_text(encoding="utf-8") + "\nDROP TABLE profiles;\n", encoding="utf-8")
    (tree / "auth_service" / "odd.yml").write_text(
        "source: auth_user\nkey: {from: id, mint: x}\nchunk_bi: id\ncolumns:\n  shape: {sql: 'NOT ('}\n  a: {from: x, value: 1}\n"
        "  b: username\npolicies:\n  a: {blank: ignore, bleak: block}\n",
        encoding="utf-8",
    )
    run = run_module({"mappings_dir": str(tree), "schema_dir": str(schema), "services": list(SERVICES)})
    lines = run["msg"].splitlines()
    assert lines[0].startswith(f"{len(lines) - 1} mistakes")
    named = {name: re.sub(r":\d+", r":\\d+", message) for name, (_, message) in applied.items()}  # one change moves the lines of another
    expected = [message for name, message in named.items() if name != "unknown id map"]  # a file that mints could not be read
    expected += [r"company_profiles\.yml:\d+: is not YAML", r"sql:\d+: the type varchr is not known", r"sql:1: syntax error"]
    expected += [r"sql:\d+: a statement that a contract has no meaning for \(DROP"]
    odd = ("2: key: unknown key 'mint'", "3: .*unknown key 'chunk_bi'", "6: column a: exactly one", "7: .*no column 'b'")
    expected += [rf"odd\.yml:{line}" for line in (*odd, "9: policy a.blank: 'ignore'", "9: .*unknown rule 'bleak'")]
    for message in expected:
        assert [line for line in lines if re.search(message, line)], message
    assert len(lines) - 1 == len(expected), "\n".join(lines)
    assert all(re.match(r"\S+\.(yml|sql):\d+: ", line) for line in lines[1:])


def test_what_only_follows_from_a_mistake_is_not_named(tree: Path, tmp_path: Path) -> None:
    schema = Path(shutil.copytree(PROJECT / "roles" / "schema" / "files", tmp_path / "schema"))
    (schema / "auth_service" / "000.sql").write_text("CREATE TABEL x (a int);", encoding="utf-8")
    replaced(USERS, "mints: users", "mints: users, form: id")(tree)
    run = run_module({"mappings_dir": str(tree), "schema_dir": str(schema), "services": list(SERVICES)})
    assert [line.partition(": ")[2] for line in run["msg"].splitlines()[1:]] == [
        "key: unknown key 'form'; did you mean 'from'?",
        'syntax error at or near "TABEL"; correct the SQL',
    ]


def run_module(options: dict[str, object]) -> dict[str, Any]:
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": options})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    module = [sys.executable, "-c", "import tests.conftest; from ansible.modules.migration_plan import main; main()"]
    done = subprocess.run(module, input=arguments, capture_output=True, text=True, cwd=PROJECT, env=environment, check=False)
    return dict(json.loads(done.stdout))


def test_a_table_used_twice_cannot_be_followed_by_one_column(tree: Path) -> None:
    path = tree / "user_service" / "staff.sql"
    path.write_text(
        "SELECT u.id AS user_id, g.date_joined FROM auth_user AS u JOIN auth_user AS g ON g.id = u.id + 1 WHERE u.is_staff", encoding="utf-8"
    )
    with pytest.raises(MigrationError, match="more than once"):
        compiled(tree)


def test_a_service_without_mappings_and_a_folder_without_a_service_are_errors(tree: Path) -> None:
    with pytest.raises(MigrationError, match="no target database of this name"):
        read_mappings(tree, ("auth_service",))
    with pytest.raises(MigrationError, match="no folder for the target database 'billing'"):
        read_mappings(tree, (*SERVICES, "billing"))


def test_the_plan_survives_json_and_its_digest_follows_what_it_does_and_nothing_else(tree: Path) -> None:
    plan = compiled(tree)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))).digest == plan.digest
    (tree / USERS).write_text("# a comment\n" + (tree / USERS).read_text(encoding="utf-8"), encoding="utf-8")
    assert compiled(tree).digest == plan.digest
    assert compiled(tree, "another namespace, long enough").digest != plan.digest
    replaced(USERS, "NOT is_superuser", "NOT is_staff")(tree)
    assert compiled(tree).digest != plan.digest


def test_every_target_of_the_specification_is_mapped() -> None:
    names = {target.name for target in compiled(PROJECT / "mappings").targets if not target.bookkeeping}
    assert names == {
        "auth_service.users",
        "auth_service.permissions",
        "auth_service.user_permissions",
        "user_service.profiles",
        "user_service.roles",
        "user_service.student_profiles",
        "user_service.company_profiles",
    }
