# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which database a connection has reached, by what its server says: an address, a socket, a name and a pooler may all lead to one.

A running server is told by the moment at which it started, a database in it by its oid. A standby is another process with the
same databases, which the system identifier tells; a copy of a server that was restored and runs on its own has the
identifier of its origin too, but takes writes, so it is another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import MigrationError
from . import driver
from .driver import Endpoint

APPLICATION_NAME = "edulink-migration identity"
SOURCE, TARGET, CONTROL = "source", "target", "control"


@dataclass(frozen=True)
class Identity:
    """A database of a running server; `system` is empty where the role may not ask for it."""

    started: str
    oid: int
    standby: bool
    system: str

    def same_server(self, other: Identity) -> bool:
        """Return whether both are on one server, or one of them on a standby of the other's."""
        copies = self.standby or other.standby
        return self.started == other.started or (copies and self.system != "" and self.system == other.system)

    def same_database(self, other: Identity) -> bool:
        """Return whether both are one database, or one of them a standby's copy of the other."""
        return self.oid == other.oid and self.same_server(other)


@dataclass(frozen=True)
class Clash:
    """Two hosts of the inventory that are one database: why that is harmful, and what to do."""

    places: tuple[Endpoint, Endpoint]
    fault: str
    step: str

    def __str__(self) -> str:
        one, two = self.places
        return f"{one.place} and {two.place} are the same database: {self.fault}; {self.step} (login_* in host_vars/{two.name})"


# Why two roles of a migration cannot share a database.
_HARM: Mapping[tuple[str, str], tuple[str, str]] = {
    (SOURCE, TARGET): ("the services' tables and settings would be made in the monolith itself", "give the service a database of its own"),
    (TARGET, TARGET): ("one service's rollback would take the other's rows and ledger for its own", "give each service a database of its own"),
    (SOURCE, CONTROL): ("the monolith is only read, and what becomes of it must not reach the migration's records", "give the records a database of their own"),
    (TARGET, CONTROL): ("a rollback would take the migration's records with it", "give the records a database of their own"),
}


def read(connection: driver.Connection) -> Identity:
    """Return which database a connection (in autocommit) has reached."""
    started, oid, standby, allowed = driver.rows(
        connection,
        "SELECT pg_catalog.extract('epoch', pg_catalog.pg_postmaster_start_time())::text, d.oid::bigint, pg_catalog.pg_is_in_recovery(),"
        " pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
        " FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
    )[0]
    system = driver.scalar(connection, "SELECT system_identifier::text FROM pg_catalog.pg_control_system()") if allowed else ""
    return Identity(str(started), int(oid), bool(standby), str(system))


def reach(endpoint: Endpoint) -> Identity | None:
    """Return which database an endpoint leads to; None when it cannot be reached, which whoever needs it will say."""
    with contextlib.suppress(MigrationError):
        connection = driver.connect(endpoint, application_name=APPLICATION_NAME, readonly=True, autocommit=True)
        with contextlib.closing(connection), driver.database_errors(endpoint.place, "asking which server it is"):
            return read(connection)
    return None


def clashes(found: Sequence[tuple[str, Endpoint, Identity]]) -> list[Clash]:
    """Return each pair that is one database."""
    pairs = [(one, two) for number, one in enumerate(found) for two in found[number + 1 :] if one[2].same_database(two[2])]
    return [Clash((one[1], two[1]), *_HARM[one[0], two[0]]) for one, two in pairs if (one[0], two[0]) in _HARM]


def require_distinct(source: Endpoint, targets: Sequence[Endpoint], control: Endpoint) -> None:
    """MigrationError when two of the hosts are one database; what cannot be reached is left to whoever needs it."""
    asked = [(SOURCE, source), *((TARGET, target) for target in targets), (CONTROL, control)]
    with ThreadPoolExecutor(len(asked)) as pool:
        reached = list(pool.map(lambda item: reach(item[1]), asked))
    found = [(role, endpoint, identity) for (role, endpoint), identity in zip(asked, reached, strict=True) if identity is not None]
    if same := clashes(found):
        raise MigrationError("; ".join(map(str, same)))
