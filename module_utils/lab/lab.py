# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the whole lab into a state: compare, say what differs, and (unless it is a dry run) change it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ..migration.embedded import process
from ..migration.embedded import server as postgres
from ..migration.embedded.server import PostgresServer
from ..migration.errors import MigrationError
from ..migration.postgres import driver
from ..migration.postgres.quote import ident, literal
from ..migration.progress import Progress
from . import layout, valkey
from .layout import MONOLITH, SESSIONS, SITES, Database, Role, Site, State
from .valkey import ValkeyServer


@dataclass(frozen=True)
class Variant:
    """How one server differs from the lab's others: its programs and settings of its own."""

    bin_dir: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    state_dir: Path
    inventory_dir: Path
    monolith_dir: Path
    users: int = 20_000
    seed: int = 1
    group_permissions: int = 3
    sessions: int = 400
    postgres_settings: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    progress_file: str | None = None


@dataclass(frozen=True)
class Lab:
    """The lab's servers, whether they run or not."""

    state: State
    servers: Mapping[str, PostgresServer]
    store: ValkeyServer


def describe(options: Options, state: State) -> Lab:
    """Return the servers of the lab that the state points to; its programs are copied when they must be."""
    account = process.Account.for_servers()
    bin_dir = postgres.binaries(state.root, account)

    def server(name: str) -> PostgresServer:
        own = options.variants.get(name, Variant())
        settings = {**options.postgres_settings, **own.settings}
        return PostgresServer(name, state.root / name, own.bin_dir or bin_dir, state.secret(name, postgres.SUPERUSER), settings, account)

    servers = {site.name: server(site.name) for site in SITES}
    store = ValkeyServer(SESSIONS, state.root / SESSIONS, valkey.program(state.root, account), state.secret(SESSIONS), account=account)
    return Lab(state, servers, store)


@contextlib.contextmanager
def only_one(state_dir: Path) -> Iterator[None]:
    """Hold the lab's lock: two runs at a time would make two labs."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with open(state_dir / "lock", "a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise MigrationError(f"lab: another run is working on the lab of {state_dir}; wait until it has ended") from exc
        yield


def start(options: Options, check: bool) -> list[str]:
    """Make and start what is not there; return what was (or, in a dry run, would be) done."""
    state = layout.read_state(options.state_dir)
    if state is None or not state.root.is_dir():
        if check:
            return [
                *(f"make and start {site.name}" for site in SITES),
                f"start {SESSIONS}",
                _filling(options),
                "write the inventory's lab.yml files",
            ]
        state = State(process.new_root(), state.secrets if state else layout.new_secrets())
        layout.write_state(options.state_dir, state)
    progress = Progress(options.progress_file)
    lab = describe(options, state)
    done = _start_servers(lab, check, progress)
    if not check or all(postgres.pid(server) for server in lab.servers.values()):
        for site in SITES:
            done += _roles_and_databases(site, lab, check)
    done += _monolith(options, lab, check, progress)
    if not check:
        done += _grants(lab)
    if not (check and done):
        done += _inventory(options, lab, check)
    progress.close()
    return done


def stop(options: Options, check: bool) -> list[str]:
    """Stop the servers and keep their data."""
    state = layout.read_state(options.state_dir)
    if state is None or not state.root.is_dir():
        return []
    lab = describe(options, state)
    running = [name for name, server in lab.servers.items() if postgres.pid(server)] + ([SESSIONS] if valkey.pid(lab.store) else [])
    if not check:
        with ThreadPoolExecutor() as pool:
            list(pool.map(postgres.stop, lab.servers.values()))
        valkey.stop(lab.store)
    return [f"stop {name}" for name in running]


def delete(options: Options, check: bool) -> list[str]:
    """Stop the servers and delete everything of the lab, also what it wrote into the inventory."""
    done = stop(options, check)
    state = layout.read_state(options.state_dir)
    if state is not None:
        done.append(f"delete {state.root}")
    written = [path for path in layout.generated_files(options.inventory_dir) if path.exists()]
    done += [f"delete {path.relative_to(options.inventory_dir)}" for path in written]
    if not check:
        for path in written:
            path.unlink()
        if state is not None:
            if state.root.is_dir():
                shutil.rmtree(state.root)
            (options.state_dir / layout.STATE_FILE).unlink()
    return done


def _start_servers(lab: Lab, check: bool, progress: Progress) -> list[str]:
    """Make and start the servers, side by side."""
    progress.note("lab", "starting the servers")

    def one(server: PostgresServer) -> list[str]:
        if check:
            made = not (server.data / "PG_VERSION").exists()
            started = postgres.pid(server) is None
        else:
            made = postgres.create(server)
            started = postgres.start(server)
        return [f"make and start {server.name}" if made else f"start {server.name}"] if started else []

    def store() -> list[str]:
        started = valkey.pid(lab.store) is None if check else valkey.start(lab.store)
        return [f"start {SESSIONS}"] if started else []

    with ThreadPoolExecutor() as pool:
        waiting: list[Callable[[], list[str]]] = [partial(one, server) for server in lab.servers.values()]
        return [line for lines in pool.map(lambda call: call(), [*waiting, store]) for line in lines]


def _roles_and_databases(site: Site, lab: Lab, check: bool) -> list[str]:
    """Make the roles and databases that the server has not got."""
    server = lab.servers[site.name]
    done = []
    connection = driver.connect(server.endpoint(), application_name="lab", autocommit=True)
    try:
        roles = {name for (name,) in driver.rows(connection, "SELECT rolname FROM pg_roles")}
        databases = {name for (name,) in driver.rows(connection, "SELECT datname FROM pg_database")}
        for role in site.roles:
            if role.name not in roles:
                done.append(f"make role {role.name} on {site.name}")
                if not check:
                    driver.rows(connection, _create_role(role, site, lab.state))
        for database in site.databases:
            if database.name not in databases:
                done.append(f"make database {database.name} on {site.name}")
                if not check:
                    driver.rows(connection, f"CREATE DATABASE {ident(database.name)} OWNER {ident(database.owner)} TEMPLATE template0")
    finally:
        connection.close()
    return done


def _create_role(role: Role, site: Site, state: State) -> str:
    login = f"LOGIN PASSWORD {literal(state.secret(site.name, role.name))}" if role.login else "NOLOGIN"
    create = " CREATEDB" if role.create_databases else ""
    member = f" IN ROLE {', '.join(map(ident, role.member_of))}" if role.member_of else ""
    return f"CREATE ROLE {ident(role.name)} {login}{create}{member}"


def _monolith_database() -> Database:
    return next(site.databases[0] for site in SITES if site.name == MONOLITH)


def _filling(options: Options) -> str:
    return f"fill the monolith with {options.users:,} users"


def _monolith(options: Options, lab: Lab, check: bool, progress: Progress) -> list[str]:
    """Make the monolith's tables and fill them, once; a killed attempt has left nothing."""
    if lab.state.users is not None:
        return []
    if check:
        return [_filling(options)]
    database = _monolith_database()
    endpoint = lab.servers[MONOLITH].endpoint(database.name, user=database.owner, password=lab.state.secret(MONOLITH, database.owner))
    environment = {
        **process.environment(options.monolith_dir),
        **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},  # Django is where our own packages are
        "PGHOST": endpoint.host,
        "PGPORT": str(endpoint.port),
        "PGDATABASE": endpoint.dbname,
        "PGUSER": endpoint.user,
        "PGPASSWORD": endpoint.password or "",
        "DJANGO_SECRET_KEY": lab.state.secret("django"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
    }
    progress.note("lab", "monolith: Django's migrations")
    _manage(options, environment, progress, "migrate", "--verbosity=0")
    users = _count_users(endpoint)
    done = []
    if users == 0:
        _manage(
            options,
            environment,
            progress,
            "fill",
            "--if-empty",
            f"--users={options.users}",
            f"--seed={options.seed}",
            f"--group-permissions={options.group_permissions}",
            f"--sessions={options.sessions}",
        )
        users = _count_users(endpoint)
        done = [_filling(options)]
    layout.write_state(options.state_dir, replace(lab.state, users=users))
    return done


def _count_users(endpoint: driver.Endpoint) -> int:
    connection = driver.connect(endpoint, application_name="lab", readonly=True)
    try:
        return int(driver.scalar(connection, "SELECT count(*) FROM auth_user"))
    finally:
        connection.close()


def _manage(options: Options, environment: Mapping[str, str], progress: Progress, command: str, *arguments: str) -> None:
    """Run a command of the Django project and hand its lines on as progress."""
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "manage.py", command, *arguments],
        cwd=options.monolith_dir,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        for line in child.stdout or ():
            said = [*said[-4:], line.strip()]
            progress.note("lab", f"monolith: {line.strip()}")
    if child.returncode:
        raise MigrationError(f"lab: manage.py {command} failed in {options.monolith_dir}: {said[-1] if said else 'it said nothing'}")


def _grants(lab: Lab) -> list[str]:
    """Let the reading role read every table of the monolith, those of later Django migrations too."""
    database = _monolith_database()
    connection = driver.connect(lab.servers[MONOLITH].endpoint(database.name), application_name="lab", autocommit=True)
    try:
        reader = database.login
        unreadable = driver.scalar(
            connection,
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S')"
            " AND NOT has_table_privilege(%s, oid, 'SELECT')",
            [reader],
        )
        if not unreadable:
            return []
        for statement in (
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {ident(reader)}",
            f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {ident(reader)}",  # pg_dump reads their values
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {ident(database.owner)} IN SCHEMA public GRANT SELECT ON TABLES TO {ident(reader)}",
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {ident(database.owner)} IN SCHEMA public GRANT SELECT ON SEQUENCES TO {ident(reader)}",
        ):
            driver.rows(connection, statement)
        return [f"grant SELECT on {unreadable} tables and sequences to {reader}"]
    finally:
        connection.close()


def _inventory(options: Options, lab: Lab, check: bool) -> list[str]:
    """Write the inventory's files where they differ."""
    homes = {name: server.home for name, server in lab.servers.items()}
    bin_dir = next(iter(lab.servers.values())).bin_dir
    files = layout.inventory_files(options.inventory_dir, lab.state, homes, bin_dir, (valkey.HOST, valkey.port(lab.store) or 0))
    done = []
    for path, text in files.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            done.append(f"write {path.relative_to(options.inventory_dir)}")
            if not check:
                layout.replace_file(path, text)
    return done
