# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore a dump into a new database and prove that the copy is what the manifest says."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import MigrationError
from ..postgres import clients, content_digest, databases, driver
from ..postgres.clients import Clients
from ..postgres.content_digest import Content
from ..postgres.driver import Endpoint
from . import restore_blockers
from .manifest import Dumped

# Another server has other roles and tablespaces, and publishes and subscribes nothing.
_FOREIGN = ("--no-owner", "--no-privileges", "--no-tablespaces", "--no-publications", "--no-subscriptions", "--no-security-labels")

_EVENT_TRIGGER = re.compile(r"\d+; \d+ \d+ (COMMENT - )?EVENT TRIGGER ")


@dataclass(frozen=True)
class RestoreOptions:
    """How to restore: worker processes, where the clients are, and the database to connect to while others are renamed."""

    jobs: int = 2
    bin_dir: str | None = None
    maintenance_db: str = "postgres"


def restore(endpoint: Endpoint, dumped: Dumped, folder: Path, dbname: str, options: RestoreOptions, *, foreign: bool = False) -> None:
    """Make `dbname` on the endpoint's server and restore the dump in `folder` into it.

    A `foreign` server is not the one the dump is from: owners, grants and tablespaces are left out, since its roles may
    not exist there.
    """
    chosen, server_major = _clients(endpoint, dumped, options)
    databases.create(endpoint, options.maintenance_db, dbname, dumped.properties, foreign=foreign)
    fresh = replace(endpoint, dbname=dbname)
    argv = [chosen.program("pg_restore"), "--format=directory", f"--jobs={options.jobs}", "--no-password", f"--dbname={dbname}"]
    tolerated = clients.UNKNOWN_BEFORE_17 if server_major < 17 <= chosen.major else ""
    if not tolerated:
        argv.append("--exit-on-error")
    if foreign:
        argv += _FOREIGN
    elif role := restore_blockers.acting_role(endpoint):
        argv.append(f"--role={role}")
    with clients.access(fresh, databases.APPLICATION_NAME) as way:
        try:
            with _contents(chosen, folder, way, fresh.place, foreign=foreign) as listed:
                clients.run([*argv, *listed, str(folder)], way, fresh.place, "pg_restore", tolerated=tolerated)
        except MigrationError as exc:
            if foreign and server_major < (dumped_major := clients.major(dumped.server_version)):
                step = f"PostgreSQL promises no restore into an older server, so name one of version {dumped_major} in snapshot_verify_server"
                raise MigrationError(f"{exc}; {step}") from exc
            raise
    if not foreign:
        databases.dress(endpoint, options.maintenance_db, dbname, dumped.properties)


@contextlib.contextmanager
def _contents(chosen: Clients, folder: Path, way: clients.Access, place: str, *, foreign: bool) -> Iterator[list[str]]:
    """Yield the argument that leaves out what an ordinary role cannot make on a foreign server: event triggers would act on the restore, too."""
    if not foreign:
        yield []
        return
    listed = clients.run([chosen.program("pg_restore"), "--format=directory", "--list", str(folder)], way, place, "pg_restore")
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.writelines(line for line in listed.splitlines(keepends=True) if not _EVENT_TRIGGER.match(line))
        file.flush()
        yield [f"--use-list={file.name}"]


def prove(endpoint: Endpoint, dumped: Dumped, folder: Path, dbname: str, options: RestoreOptions, *, foreign: bool = False) -> list[str]:
    """Return what is different between a restored database and the manifest, in rows, content or definitions; [] proves it."""
    fresh = replace(endpoint, dbname=dbname, session_role=None if foreign else endpoint.session_role)
    found = content(fresh)
    lines = content_digest.differences(dumped.content, found)
    lines += schema_differences(fresh, dumped, folder, options, foreign=foreign)
    if not foreign:
        with contextlib.closing(databases.admin(endpoint, options.maintenance_db)) as connection:
            lines += property_differences(dumped.properties, databases.read(connection, dbname))
    return lines


def content(endpoint: Endpoint, tick: Callable[[str, int, int], None] = lambda table, done, total: None) -> Content:
    """Return the content of a database, in one snapshot of its own."""
    connection = driver.connect(endpoint, application_name=databases.APPLICATION_NAME, readonly=True)
    try:
        with driver.database_errors(endpoint.place, "digesting the tables"):
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            return content_digest.read(connection, tick)
    finally:
        connection.close()


def schema_differences(fresh: Endpoint, dumped: Dumped, folder: Path, options: RestoreOptions, *, foreign: bool) -> list[str]:
    """Compare the definitions in the dump with those of the copy: line by line where one version wrote both, else what there is."""
    chosen, server_major = _clients(fresh, dumped, options)
    alike = server_major == dumped.major and chosen.major == clients.major(dumped.client_version)
    common = ["--schema-only", *(_FOREIGN if foreign or not alike else [])]
    with clients.access(fresh, databases.APPLICATION_NAME) as way:
        with _contents(chosen, folder, way, fresh.place, foreign=foreign) as listed:
            argv = [chosen.program("pg_restore"), "--format=directory", *common, *listed, "--file=-", str(folder)]
            wanted = clients.run(argv, way, fresh.place, "pg_restore")
        role = [f"--role={fresh.session_role}"] if fresh.session_role else []
        own = [*role, f"--encoding={dumped.properties.encoding}", "--no-password"]
        found = clients.run([chosen.program("pg_dump"), *common, *own], way, fresh.place, "pg_dump")
    said = _statements if alike else _objects
    missing, added = said(wanted) - said(found), said(found) - said(wanted)
    if not missing and not added:
        return []
    first = next(iter([*missing, *added])).strip()[:120]
    return [f"the definitions differ in {missing.total() + added.total()} lines, first: {first}"]


def property_differences(wanted: databases.Properties, found: databases.Properties) -> list[str]:
    """Return which properties of the database itself are different."""
    names = ("owner", "encoding", "provider", "collate", "ctype", "locale", "icu_rules", "tablespace", "connection_limit", "comment", "grants", "settings")
    return [f"the database's {name} differs" for name in names if getattr(wanted, name) != getattr(found, name)]


def _objects(text: str) -> Counter[str]:
    """Return what pg_dump's comments name; each version writes the same definition in its own way, but names it alike.

    The schema public, which every database has, is named only where its owner is not the version's usual one.
    """
    named = (line.partition("; Owner:")[0] for line in text.splitlines() if line.startswith("-- Name: "))
    return Counter(name for name in named if not re.match(r"-- Name: ((SCHEMA )?public; Type: (SCHEMA|COMMENT)|.*; Type: MATERIALIZED VIEW DATA)", name))


def _statements(text: str) -> Counter[str]:
    """Return the lines that define something; pg_dump's comments, session settings and random \\restrict keys say nothing.

    A refresh of a materialized view is in what pg_restore writes and not in what pg_dump does, although both leave data out.
    """
    silent = ("--", "SET ", "\\restrict", "\\unrestrict", "SELECT pg_catalog.set_config", "REFRESH MATERIALIZED VIEW ")
    return Counter(line for line in text.splitlines() if line and not line.startswith(silent))


def _clients(endpoint: Endpoint, dumped: Dumped, options: RestoreOptions) -> tuple[Clients, int]:
    """Return clients that are older neither than the server nor than the pg_dump that wrote the archive, and the server's major version."""
    with contextlib.closing(databases.admin(endpoint, options.maintenance_db)) as connection:
        major = int(connection.server_version) // 10000
    needed = max(major, clients.major(dumped.client_version))
    return clients.choose(clients.candidates(options.bin_dir), needed, endpoint.place, options.bin_dir), major


def proven_copy(endpoint: Endpoint, dumped: Dumped, folder: Path, dbname: str, options: RestoreOptions) -> None:
    """Make sure that `dbname` is a proven copy with statistics for its planner; what a killed attempt left is proven or made anew."""
    with contextlib.closing(databases.admin(endpoint, options.maintenance_db)) as connection:
        left_over = databases.exists(connection, dbname)
    if left_over:
        with contextlib.suppress(MigrationError):
            if not prove(endpoint, dumped, folder, dbname, options):
                _analyze(endpoint, dbname)
                return
        databases.drop(endpoint, options.maintenance_db, dbname)
    restore(endpoint, dumped, folder, dbname, options)
    lines = prove(endpoint, dumped, folder, dbname, options)
    if lines:
        raise MigrationError(
            f"{endpoint.place}: the copy restored as {dbname} is not what the manifest says: {content_digest.in_words(lines)};"
            " the service is untouched; look at the copy, then drop it and run playbooks/rollback.yml again"
        )
    _analyze(endpoint, dbname)


def _analyze(endpoint: Endpoint, dbname: str) -> None:
    """Give the planner what a dump does not hold; tables of other owners wait for autovacuum."""
    connection = driver.connect(replace(endpoint, dbname=dbname), application_name=databases.APPLICATION_NAME, autocommit=True)
    with contextlib.closing(connection), driver.database_errors(endpoint.place, f"analyzing {dbname}"):
        driver.rows(connection, "ANALYZE")
