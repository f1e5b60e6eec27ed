# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore a dump into a new database and prove that the copy is what the manifest says."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
    _run_restore(endpoint, dumped, folder, dbname, options, foreign=foreign)
    if not foreign:
        databases.dress(endpoint, options.maintenance_db, dbname, dumped.properties)


def _run_restore(
    endpoint: Endpoint, dumped: Dumped, folder: Path, dbname: str, options: RestoreOptions, *, foreign: bool, schema_only: bool = False
) -> None:
    """Make `dbname` and run pg_restore into it, as the role that reaches every owner of the endpoint's own database."""
    chosen, server_major = _clients(endpoint, dumped, options)
    fresh = replace(endpoint, dbname=dbname)
    databases.create(endpoint, options.maintenance_db, dbname, dumped.properties, foreign=foreign)
    argv = [chosen.program("pg_restore"), "--format=directory", f"--jobs={options.jobs}", "--no-password", f"--dbname={clients.dbname(dbname)}"]
    tolerated = clients.UNKNOWN_BEFORE_17 if server_major < 17 <= chosen.major else ""
    if not tolerated:
        argv.append("--exit-on-error")
    if schema_only:
        argv.append("--schema-only")
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
    lines += schema_differences(endpoint, dumped, folder, dbname, options, foreign=foreign)
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


def schema_differences(endpoint: Endpoint, dumped: Dumped, folder: Path, dbname: str, options: RestoreOptions, *, foreign: bool) -> list[str]:
    """Return a line when definitions of a copy differ from those in the dump that it was restored from."""
    lines = definition_differences(endpoint, dumped, folder, dbname, options, foreign=foreign)
    return [f"the definitions differ in {len(lines)} lines, first: {lines[0].strip()[:120]}"] if lines else []


def definition_differences(endpoint: Endpoint, dumped: Dumped, folder: Path, dbname: str, options: RestoreOptions, *, foreign: bool) -> list[str]:
    """Return the lines that are in the definitions of a copy or of the dump that it was restored from, and not in both.

    PostgreSQL prints an expression otherwise once it has read it back (`x IN ('a', 'b')` gets its casts in other places), so the
    text of the dump is no identity. Where the texts differ, the dump's definitions are restored into a scratch database, and
    its text is compared: both have gone the same way. What PostgreSQL never rewrites (owners, grants, comments) must be
    in the copy as the dump has it, since a restore only warns of a GRANT or REVOKE that it may not give.
    """
    chosen, server_major = _clients(endpoint, dumped, options)
    fresh = replace(endpoint, dbname=dbname, session_role=None if foreign else endpoint.session_role)
    alike = server_major == dumped.major and chosen.major == clients.major(dumped.client_version)
    common = ["--schema-only", *(_FOREIGN if foreign or not alike else [])]
    with clients.access(fresh, databases.APPLICATION_NAME) as way, _contents(chosen, folder, way, fresh.place, foreign=foreign) as listed:
        argv = [chosen.program("pg_restore"), "--format=directory", *common, *listed, "--file=-", str(folder)]
        wanted = clients.run(argv, way, fresh.place, "pg_restore")
    found = _dumped_text(fresh, dumped, chosen, common)
    if not alike:
        return _apart(_objects(wanted), _objects(found))
    if _statements(wanted) == _statements(found):
        return []
    scratch = read_back(dbname)
    databases.drop(endpoint, options.maintenance_db, scratch)
    try:
        _run_restore(endpoint, dumped, folder, scratch, options, foreign=foreign, schema_only=True)
        again = _dumped_text(replace(fresh, dbname=scratch), dumped, chosen, common)
    finally:
        databases.drop(endpoint, options.maintenance_db, scratch)
    kept = _apart(_objects(wanted) + _verbatim(wanted), _objects(found) + _verbatim(found))
    return [*kept, *_apart(_statements(again), _statements(found))]


def read_back(dbname: str) -> str:
    """Return the name of the scratch database that holds the definitions of a copy's dump only."""
    return f"migration_read_back_{hashlib.sha256(dbname.encode()).hexdigest()[:16]}"


def _dumped_text(endpoint: Endpoint, dumped: Dumped, chosen: Clients, common: Sequence[str]) -> str:
    """Return the definitions of a database as pg_dump prints them."""
    role = [f"--role={endpoint.session_role}"] if endpoint.session_role else []
    argv = [chosen.program("pg_dump"), *common, *role, f"--encoding={dumped.properties.encoding}", "--no-password"]
    with clients.access(endpoint, databases.APPLICATION_NAME) as way:
        return clients.run(argv, way, endpoint.place, "pg_dump")


def _apart(wanted: Counter[str], found: Counter[str]) -> list[str]:
    """Return the lines that only one of the two has."""
    return [*(wanted - found).elements(), *(found - wanted).elements()]


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


def _verbatim(text: str) -> Counter[str]:
    """Return the lines that PostgreSQL writes as it has read them: who owns, who may, what is said of it."""
    kept = re.compile(r"(GRANT|REVOKE|COMMENT ON|ALTER DEFAULT PRIVILEGES|SECURITY LABEL|CREATE EXTENSION) |ALTER .* OWNER TO ")
    return Counter(line for line in text.splitlines() if kept.match(line))


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
