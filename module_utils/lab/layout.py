# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab consists of: which servers, roles and databases, and the files that tell an inventory about them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..migration.errors import MigrationError

STATE_FILE = "lab.json"
MONOLITH = "monolith"
SESSIONS = "sessions"


@dataclass(frozen=True)
class Role:
    """A role of a server; `member_of` names roles that it may act as."""

    name: str
    login: bool = False
    create_databases: bool = False
    member_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Database:
    """A database and the inventory host that stands for it."""

    host: str
    name: str
    owner: str
    login: str  # the role that the inventory logs in as


@dataclass(frozen=True)
class Site:
    """One PostgreSQL server: its roles and databases."""

    name: str
    roles: tuple[Role, ...]
    databases: tuple[Database, ...]


def _service(name: str, *more: Database) -> Site:
    migrator = Role("migrator", login=True, create_databases=True, member_of=(name, "pg_signal_backend", "pg_monitor"))
    return Site(name, (Role(name), migrator), (Database(name, name, name, "migrator"), *more))


SITES: tuple[Site, ...] = (
    Site(
        MONOLITH,
        (Role("edulink", login=True), Role("migration_reader", login=True)),
        (Database(MONOLITH, "edulink", "edulink", "migration_reader"),),
    ),
    _service("auth_service"),
    _service("user_service", Database("migration_control", "migration_control", "migrator", "migrator")),
)


@dataclass(frozen=True)
class State:
    """What the pointer file says: where the lab is, its secrets, and how many users its monolith was filled with."""

    root: Path
    secrets: Mapping[str, str] = field(repr=False)
    users: int | None = None

    def secret(self, *names: str) -> str:
        """Return one of the lab's secrets."""
        return self.secrets["/".join(names)]


def new_secrets() -> dict[str, str]:
    """Make every secret that a lab needs."""
    names = [f"{site.name}/postgres" for site in SITES]
    names += [f"{site.name}/{role.name}" for site in SITES for role in site.roles if role.login]
    return {name: secrets.token_urlsafe(24) for name in [*names, SESSIONS, "namespace", "django"]}


def read_state(state_dir: Path) -> State | None:
    """Return what the pointer file says; None when there is none."""
    path = state_dir / STATE_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return State(Path(found["root"]), found["secrets"], found["users"])
    except FileNotFoundError:
        return None
    except PermissionError as exc:
        raise MigrationError(f"lab: {path} belongs to another user; run as that user, or set lab_state_dir") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise MigrationError(f"lab: {path} is damaged; end the lab's servers by hand and delete {state_dir}") from exc


def write_state(state_dir: Path, state: State) -> None:
    """Write the pointer file."""
    replace_file(state_dir / STATE_FILE, json.dumps({"root": str(state.root), "secrets": dict(state.secrets), "users": state.users}, indent=1) + "\n")


def inventory_files(inventory_dir: Path, state: State, homes: Mapping[str, Path], bin_dir: Path, store: tuple[str, int]) -> dict[Path, str]:
    """Return the inventory's files that depend on the lab, with their texts; `homes` has each server's socket folder."""
    host, port = store
    files = {
        inventory_dir / "group_vars" / "all" / "lab.yml": _yaml(
            {
                "migration_namespace": state.secret("namespace"),
                "sessions_secret_key": state.secret("django"),
                "session_store_hosts": [{"host": host, "port": port}],
                "session_store_password": state.secret(SESSIONS),
                "pg_bin_dir": str(bin_dir),
            }
        )
    }
    for site in SITES:
        for database in site.databases:
            values: dict[str, object] = {"login_host": str(homes[site.name]), "login_password": state.secret(site.name, database.login)}
            if database.login != database.owner and site.name == MONOLITH:
                values |= {"owner_user": database.owner, "owner_password": state.secret(site.name, database.owner)}
            files[inventory_dir / "host_vars" / database.host / "lab.yml"] = _yaml(values)
    return files


def _yaml(values: Mapping[str, object]) -> str:
    """Return literal YAML: JSON is YAML, and a string in it is never taken for a number; templating sees no braces."""
    lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())
    return f"---\n# Written by playbooks/lab.yml; git ignores it.\n{lines}"


def generated_files(inventory_dir: Path) -> list[Path]:
    """Return where the lab's files in the inventory are, whether they exist or not."""
    hosts = [database.host for site in SITES for database in site.databases]
    return [inventory_dir / "group_vars" / "all" / "lab.yml", *(inventory_dir / "host_vars" / host / "lab.yml" for host in hosts)]


def replace_file(path: Path, text: str) -> None:
    """Write a file that only its user can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
    fresh.replace(path)
