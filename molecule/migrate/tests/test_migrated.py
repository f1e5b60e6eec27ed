# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After the whole story both services hold what the monolith held, with the ids that the recipe gives."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from molecule_databases import INVENTORY, PROJECT, ask, session_store, variables


def one_id(entity: str, key: int) -> str:
    """Compute a UUID by the documented recipe, without the project's code."""
    namespace = hashlib.sha256(variables("monolith")["migration_namespace"].encode()).digest()
    prefix = hashlib.sha256(namespace + entity.encode()).digest()
    digest = bytearray(hashlib.sha256(prefix + key.to_bytes(8, "big", signed=True)).digest()[:16])
    digest[6] = digest[8] = 0x80
    text = digest.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


@pytest.mark.parametrize(
    ("source", "database", "target"),
    [
        ("auth_user", "auth_service", "users"),
        ("auth_permission", "auth_service", "permissions"),
        ("students", "user_service", "student_profiles"),
        ("companies", "user_service", "company_profiles"),
    ],
)
def test_every_row_arrived(host: Any, source: str, database: str, target: str) -> None:
    assert ask(host, database, f"SELECT count(*) FROM {target}") == ask(host, "monolith", f"SELECT count(*) FROM {source}")


def test_a_user_has_the_id_of_the_recipe_and_the_same_password(host: Any) -> None:
    key, username, password = ask(host, "monolith", "SELECT id, username, password FROM auth_user ORDER BY id DESC LIMIT 1").split("|")
    found = ask(host, "auth_service", f"SELECT username, password_hash FROM users WHERE id = '{one_id('users', int(key))}'")
    assert found == f"{username}|{password}"


def test_ids_are_uuids_of_version_eight(host: Any) -> None:
    assert ask(host, "auth_service", "SELECT count(*) FROM users WHERE id::text !~ '^.{14}8.{4}[89ab]'") == "0"


def test_the_indexes_of_the_specification_exist(host: Any) -> None:
    names = "SELECT indexname FROM pg_indexes WHERE indexname LIKE 'idx%' ORDER BY 1"
    assert ask(host, "auth_service", names).split() == ["idx_users_email", "idx_users_username"]
    assert ask(host, "user_service", names).split() == ["idx_profiles_user_id", "idx_roles_active", "idx_roles_user_id"]


def test_the_id_map_is_complete_and_exported(host: Any) -> None:
    wanted = ask(host, "monolith", "SELECT count(*) FROM auth_user")
    assert ask(host, "auth_service", "SELECT count(*) FROM migration.id_map WHERE entity = 'users'") == wanted
    (exported,) = (PROJECT / "artifacts" / INVENTORY.name).glob("*/id_map.auth_service.csv")
    assert exported.read_text(encoding="utf-8").splitlines()[0] == "entity,source_key,id"


def test_the_report_says_that_nothing_differs() -> None:
    (found,) = (PROJECT / "artifacts" / INVENTORY.name).glob("*/validation.json")
    assert json.loads(found.read_text(encoding="utf-8"))["differences"] == 0


def test_every_live_session_of_a_migrated_user_is_in_the_store(host: Any) -> None:
    record = "SELECT outcome || '|' || detail::text FROM migration.records WHERE kind = '{}' ORDER BY id DESC LIMIT 1"
    outcome, _, text = ask(host, "migration_control", record.format("sessions")).partition("|")
    counts = json.loads(text)
    live = int(ask(host, "monolith", "SELECT count(*) FROM django_session WHERE expire_date > now()"))
    assert outcome == "passed"
    assert 0 <= counts["live"] - live <= 2  # one may have ended since
    assert counts["live"] == counts["carried"] + counts["not_migrated"] + counts["outdated"] + sum(counts["rejected"].values())
    with session_store() as store:
        assert 0 <= counts["carried"] - len(store.keys(":1:django.contrib.sessions.cache*")) <= 2
    assert ask(host, "migration_control", record.format("sessions compared")).startswith("passed")


def test_no_report_names_a_session(host: Any) -> None:
    keys = ask(host, "monolith", "SELECT session_key FROM django_session").split()
    files = [path.read_text(encoding="utf-8") for path in (PROJECT / "artifacts" / INVENTORY.name).rglob("*") if path.suffix in (".json", ".html", ".csv")]
    assert len(keys) > 100
    assert any("live sessions carried" in text for text in files)
    assert not [key for key in keys if any(key in text for text in files)]
