# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Differing keys are kept outside memory, whole and in order."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.repair.key_spool import Spool
from ansible.module_utils.migration.validate.result import DIFFERENT, EXTRA, Finding

USERS: Any = SimpleNamespace(name="auth_service.users")
ROLES: Any = SimpleNamespace(name="user_service.roles")


def test_keys_and_ids_come_back_by_target_and_part_whatever_is_in_them() -> None:
    odd = 'a\nb"\u2028\\'
    with Spool() as spool:
        spool.add(Finding(USERS.name, "users", DIFFERENT, key, f"id {key}") for key in ("1", odd))
        spool.add([Finding(USERS.name, None, EXTRA, None, "id 3"), Finding(USERS.name, "more", DIFFERENT, "4", None)])
        assert {part: list(keys) for part, keys in spool.keys(USERS).items()} == {"users": ["1", odd], "more": ["4"]}
        assert list(spool.ids(USERS)) == ["id 1", f"id {odd}", "id 3"]
        assert spool.has(USERS)
        assert not spool.has(ROLES)
        assert list(spool.ids(ROLES)) == []


def test_a_folder_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with Spool() as spool, pytest.raises(MigrationError, match=r"none: the keys of rows that differ cannot be kept: No such file"):
        spool.add([Finding(USERS.name, None, EXTRA, None, "id")])
