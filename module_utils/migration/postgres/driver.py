# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that knows psycopg2: where a database is, how to reach it, what its errors may say."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import tls
from ..errors import DatabaseError, MigrationError, unknown
from . import faults
from .connect_errors import POOLER, lost, why

try:
    import psycopg2
    import psycopg2.errors
    import psycopg2.extensions

    IMPORT_ERROR: str | None = None
except ImportError as exc:  # a runner without psycopg2 gets a line that says how to get it
    IMPORT_ERROR = str(exc)

__all__ = ["ENDPOINT_SPEC", "PINNED", "Connection", "Endpoint", "connect", "database_errors", "escaped", "redact", "rows", "scalar", "told"]

Connection = Any  # psycopg2.extensions.connection; psycopg2 may be absent

PINNED: Mapping[str, str] = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmloption": "content",
    "standard_conforming_strings": "on",
    "lc_monetary": "C",
    # A role or a database may bring defaults of its own (ALTER ROLE ... SET); none may end our work or change what a statement means.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "row_security": "off",  # rows that a policy hides are an error, not missing
    "transform_null_equals": "off",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "exit_on_error": "off",
    "client_min_messages": "error",  # psycopg2 loses an error when a warning (of a crashing server, say) comes with it
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "jit": "off",  # compiling the long expressions of a projection takes longer than running them for a chunk
    # The server's side: a runner that vanishes gives its locks back within a minute.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
CONNECT_TIMEOUT = 10  # seconds
HAS_TRANSACTION_TIMEOUT = 170000

ENDPOINT_SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "login_host": {"type": "str", "default": ""},
    "login_port": {"type": "int", "default": 5432},
    "login_db": {"type": "str", "required": True},
    "login_user": {"type": "str", "required": True},
    "login_password": {"type": "str", "no_log": True},
    "ssl_mode": {"type": "str", "choices": ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]},
    "ca_cert": {"type": "path"},
    "ssl_cert": {"type": "path"},
    "ssl_key": {"type": "path", "no_log": False},
    "session_role": {"type": "str"},
    "schema": {"type": "str"},
}


@dataclass(frozen=True)
class Endpoint:
    """One database and the way to it; `name` is its inventory host. One that could be spoken to in clear unasked cannot be made."""

    name: str
    host: str
    port: int
    dbname: str
    user: str
    password: str | None = field(default=None, repr=False)
    sslmode: str | None = None
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    session_role: str | None = None
    schema: str = "public"

    def __post_init__(self) -> None:
        if refused := tls.database_refusal(self.host, self.sslmode):
            fault, step = refused
            raise MigrationError(f"{self.place}: {fault}, so nothing was sent; {step} in host_vars/{self.name} or group_vars/databases")

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Endpoint:
        """Return the endpoint that a module's options (ENDPOINT_SPEC) describe."""
        return cls(
            name=params["name"],
            host=params.get("login_host") or "",
            port=int(params.get("login_port") or 5432),
            dbname=params["login_db"],
            user=params["login_user"],
            password=params.get("login_password"),
            sslmode=params.get("ssl_mode"),
            sslrootcert=params.get("ca_cert"),
            sslcert=params.get("ssl_cert"),
            sslkey=params.get("ssl_key"),
            session_role=params.get("session_role"),
            schema=params.get("schema") or "public",
        )

    @property
    def place(self) -> str:
        """Return where the database is, for messages."""
        return f"{self.name} ({self.user}@{self.host or 'local'}:{self.port}/{self.dbname})"


def redact(exc: BaseException) -> str:
    """Return what an error may say aloud: of PostgreSQL's the fault without its text, of an unknown one its place in the program."""
    if isinstance(exc, MigrationError):
        return str(exc)
    if getattr(exc, "pgcode", None):
        return faults.fault_of(exc).text
    if IMPORT_ERROR is None and isinstance(exc, psycopg2.Error):
        return lost(str(exc))
    return unknown(exc)


def told(exc: BaseException) -> str:
    """Return the line that an error ends a phase with when nobody named its place: where, what, and a next step."""
    if isinstance(exc, MigrationError):
        return str(exc)
    info = getattr(getattr(getattr(exc, "cursor", None), "connection", None), "info", None)
    where = f"{info.dbname} on {info.host or 'local'}:{info.port}: " if info is not None else ""
    if getattr(exc, "pgcode", None):
        fault = faults.fault_of(exc)
        return f"{where}{fault.text}; {fault.step}"
    if IMPORT_ERROR is None and isinstance(exc, psycopg2.Error):
        return f"{where}{redact(exc)}; {faults.LOST_STEP}"
    return f"{unknown(exc)}; mend that on the runner, then run this again" if isinstance(exc, OSError) else unknown(exc)


@contextlib.contextmanager
def database_errors(place: str, doing: str) -> Iterator[None]:
    """Turn an error of PostgreSQL into a DatabaseError that names the place, what was being done, and a next step."""
    if IMPORT_ERROR is not None:
        raise MigrationError(_no_driver())
    try:
        yield
    except psycopg2.Error as exc:
        if exc.pgcode:
            fault = faults.fault_of(exc)
            raise DatabaseError(f"{place}: {doing}", fault.text, fault.step, fault.state, fault.names) from exc
        raise DatabaseError(f"{place}: {doing}", redact(exc), faults.LOST_STEP) from exc


def _no_driver() -> str:
    return f"psycopg2 is missing on this runner ({IMPORT_ERROR}); install the package psycopg2-binary there (pip) or python3-psycopg2 (Debian)"


def connect(
    endpoint: Endpoint,
    *,
    application_name: str,
    readonly: bool = False,
    settings: Mapping[str, str] | None = None,
    autocommit: bool = False,
    unpinned: Sequence[str] = (),
) -> Connection:
    """Connect with pinned settings (but for those `unpinned`); raise MigrationError, in one line, when that fails.

    `settings` are further startup settings, in their own units. A pooler that refuses startup options cannot be used.
    """
    if IMPORT_ERROR is not None:
        raise MigrationError(_no_driver())
    faults.know((endpoint.dbname, endpoint.user, endpoint.session_role, endpoint.schema))
    pinned = {name: value for name, value in PINNED.items() if name not in unpinned}
    chosen = {**pinned, "search_path": _search_path(endpoint.schema), **(settings or {})}
    if readonly:
        chosen["default_transaction_read_only"] = "on"
    if endpoint.session_role:
        chosen["role"] = endpoint.session_role
    arguments: dict[str, Any] = {
        "host": endpoint.host,
        "port": endpoint.port,
        "dbname": endpoint.dbname,
        "user": endpoint.user,
        "password": endpoint.password,
        "sslmode": endpoint.sslmode,
        "sslrootcert": endpoint.sslrootcert,
        "sslcert": endpoint.sslcert,
        "sslkey": endpoint.sslkey,
    }
    _forget_environment()
    try:
        connection = psycopg2.connect(
            **{name: value for name, value in arguments.items() if value not in (None, "")},
            options=" ".join(f"-c {name}={escaped(value)}" for name, value in chosen.items()),
            application_name=application_name,
            client_encoding="UTF8",
            connect_timeout=CONNECT_TIMEOUT,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
        )
    except psycopg2.Error as exc:
        fault, step = why(str(exc))
        raise MigrationError(f"cannot connect to {endpoint.place}: {fault}; {step} host_vars/{endpoint.name}") from exc
    try:
        connection.autocommit = True
        with database_errors(endpoint.place, "asking for the session's settings"):
            _require(connection, endpoint, {**chosen, "client_encoding": "UTF8"})
        connection.autocommit = autocommit
    except MigrationError:
        connection.close()
        raise
    return connection


def _forget_environment() -> None:
    """Take libpq's variables (PGSERVICE, PGHOST, PGOPTIONS, ...) out of this process: only the inventory says where a connection goes and how."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def _require(connection: Connection, endpoint: Endpoint, chosen: Mapping[str, str]) -> None:
    """Ask the server, in one statement, for every setting and role of a new session; MigrationError when one did not arrive.

    The server itself writes a wanted value as it writes its own (5000 as 5s); the change ends with the statement. The values of
    custom settings are secrets, so they are never sent in a statement, which logs could show.
    """
    own = {name: value for name, value in chosen.items() if "." in name}
    named = {name: value for name, value in chosen.items() if name not in own}
    pinning = ", set_config('transaction_timeout', '0', false)" if connection.server_version >= HAS_TRANSACTION_TIMEOUT else ""
    answer = rows(
        connection,
        "SELECT session_user::text, ARRAY(SELECT current_setting(name, true) FROM unnest(%(own)s::text[]) AS asked (name)),"
        " ARRAY(SELECT name FROM unnest(%(names)s::text[], %(values)s::text[]) AS asked (name, value)"
        f" WHERE current_setting(name, true) IS DISTINCT FROM set_config(name, value, true)){pinning}",
        {"own": list(own), "names": list(named), "values": list(named.values())},
    )[0]
    lost = [name for name, had in zip(own, answer[1], strict=True) if had != own[name]] + list(answer[2])
    if answer[0] != endpoint.user:
        fault = f"the session is {answer[0]}'s, not {endpoint.user}'s"
    elif lost:
        shown = [name for name in lost if name in named] or ["those for the ids"]
        fault = f"the settings that a session must have did not arrive at the server ({', '.join(shown[:3])}{', ...' if len(shown) > 3 else ''})"
    else:
        return
    raise MigrationError(f"{endpoint.place}: {fault}; {POOLER} host_vars/{endpoint.name}")


def _search_path(schema: str) -> str:
    return '"' + schema.replace('"', '""') + '", pg_temp'


def escaped(value: str) -> str:
    """Escape a value of the options string: backslashes and blanks (libpq, "options")."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def rows(connection: Connection, statement: str, arguments: Sequence[Any] | Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
    """Run a statement and return all rows of its (small) result."""
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        return list(cursor.fetchall()) if cursor.description else []


def scalar(connection: Connection, statement: str, arguments: Sequence[Any] | Mapping[str, Any] | None = None) -> Any:
    """Run a statement and return the one value of its first row, or None when there is no row."""
    found = rows(connection, statement, arguments)
    return found[0][0] if found else None


def copy_text(value: str) -> str:
    """Return a value as a field of COPY's text format."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
