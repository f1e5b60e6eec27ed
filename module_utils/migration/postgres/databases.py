# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A database beside its content: owner, encoding, locale, tablespace, settings, grants, comment; and making another like it."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import MigrationError
from . import driver
from .driver import Endpoint
from .quote import ident, literal

APPLICATION_NAME = "edulink-migration snapshot"
# Settings whose value is a list of names, stored quoted (PostgreSQL source, GUC_LIST_QUOTE).
_LISTS = ("local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries", "temp_tablespaces", "unix_socket_directories")

# A build without ICU has a collation of it in the catalog too, but no version of it.
HAS_ICU = "SELECT true FROM pg_collation WHERE collprovider = 'i' AND pg_collation_actual_version(oid) IS NOT NULL LIMIT 1"


@dataclass(frozen=True)
class Grant:
    """One privilege on the database; an empty grantee is PUBLIC."""

    grantee: str
    privilege: str
    grantable: bool


@dataclass(frozen=True)
class Setting:
    """One setting of the database, for one role or (an empty role) for all."""

    role: str
    name: str
    value: str


@dataclass(frozen=True)
class Properties:
    """What CREATE DATABASE and ALTER DATABASE say about a database."""

    owner: str
    encoding: str
    provider: str
    collate: str
    ctype: str
    locale: str | None
    icu_rules: str | None
    tablespace: str
    connection_limit: int
    comment: str | None
    grants: tuple[Grant, ...] | None
    settings: tuple[Setting, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the properties as JSON can carry them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Properties:
        """Return the properties that to_dict() wrote."""
        grants = None if data["grants"] is None else tuple(Grant(**item) for item in data["grants"])
        return cls(**{**data, "grants": grants, "settings": tuple(Setting(**item) for item in data["settings"])})


def admin(endpoint: Endpoint, maintenance_db: str, *, autocommit: bool = True) -> driver.Connection:
    """Connect to the maintenance database of the endpoint's server as the login role, which is the one that has CREATEDB."""
    other = dataclasses.replace(endpoint, dbname=maintenance_db, session_role=None, schema="public")
    return driver.connect(other, application_name=APPLICATION_NAME, autocommit=autocommit)


def lendable(connection: driver.Connection, role: str) -> bool:
    """Return whether membership in a role lends its own objects and no power over the server; nobody is advised to grant another."""
    powers = "rolsuper OR rolcreaterole OR rolreplication OR rolbypassrls OR rolname ~ '^pg_'"
    return driver.scalar(connection, f"SELECT NOT ({powers}) FROM pg_catalog.pg_roles WHERE rolname = %s", (role,)) is True


def exists(connection: driver.Connection, dbname: str) -> bool:
    """Return whether the server has a database of this name (one that a killed DROP left invalid counts)."""
    return driver.scalar(connection, "SELECT true FROM pg_database WHERE datname = %s", (dbname,)) is True


def read(connection: driver.Connection, dbname: str) -> Properties:
    """Return the properties of a database."""
    version = connection.server_version
    locale = "datlocale" if version >= 170000 else "daticulocale" if version >= 150000 else "NULL::text"
    provider = "datlocprovider::text" if version >= 150000 else "'c'"
    rules = "daticurules" if version >= 160000 else "NULL::text"
    row = driver.rows(
        connection,
        f"SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), {provider}, datcollate, datctype, {locale}, {rules},"
        " (SELECT spcname FROM pg_tablespace t WHERE t.oid = dattablespace), datconnlimit, shobj_description(d.oid, 'pg_database'), datacl IS NULL"
        " FROM pg_database d WHERE datname = %s",
        (dbname,),
    )[0]
    owner, encoding, kind, collate, ctype, its_locale, icu_rules, tablespace, limit, comment, no_grants = row
    grants = None if no_grants else _grants(connection, dbname)
    settings = _settings(connection, dbname)
    return Properties(owner, encoding, kind, collate, ctype, its_locale, icu_rules, tablespace, limit, comment, grants, settings)


def _grants(connection: driver.Connection, dbname: str) -> tuple[Grant, ...]:
    found = driver.rows(
        connection,
        "SELECT DISTINCT CASE WHEN a.grantee = 0 THEN '' ELSE pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable"
        " FROM pg_database, aclexplode(datacl) a WHERE datname = %s ORDER BY 1, 2, 3",
        (dbname,),
    )
    return tuple(Grant(*row) for row in found)


def _settings(connection: driver.Connection, dbname: str) -> tuple[Setting, ...]:
    found = driver.rows(
        connection,
        "SELECT CASE WHEN s.setrole = 0 THEN '' ELSE pg_get_userbyid(s.setrole) END, split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)"
        " FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c WHERE d.datname = %s ORDER BY 1, 2",
        (dbname,),
    )
    return tuple(Setting(*row) for row in found)


def create(endpoint: Endpoint, maintenance_db: str, dbname: str, like: Properties, *, foreign: bool = False) -> None:
    """Make an empty database like another; a `foreign` server may lack its roles, tablespaces and locale, so it does without."""
    connection = admin(endpoint, maintenance_db)
    try:
        with driver.database_errors(endpoint.place, f"making the database {dbname}"):
            if foreign and not knows_locale(connection, like):
                like = dataclasses.replace(like, provider="c", collate="C", ctype="C", locale=None, icu_rules=None)
            driver.rows(connection, create_sql(dbname, like, connection.server_version, foreign=foreign))
    finally:
        connection.close()


def knows_locale(connection: driver.Connection, like: Properties) -> bool:
    """Return whether the server has the locale of another server's database, by the collations that it knows."""
    if like.provider == "b":
        return bool(connection.server_version >= 170000)
    if like.provider == "i":
        return bool(connection.server_version >= 150000) and driver.scalar(connection, HAS_ICU) is True
    wanted = {name.lower().replace("-", "") for name in (like.collate, like.ctype)} - {"c", "posix"}  # en_US.UTF-8 is en_US.utf8 in the catalog
    known = driver.rows(connection, "SELECT DISTINCT lower(replace(collcollate, '-', '')) FROM pg_collation WHERE collprovider = 'c'")
    return wanted <= {name for (name,) in known}


def create_sql(dbname: str, like: Properties, server_version: int, *, foreign: bool = False) -> str:
    """Return CREATE DATABASE for an empty database like another."""
    parts = [f"CREATE DATABASE {ident(dbname)} TEMPLATE template0 ENCODING {literal(like.encoding)}"]
    parts += [f"LC_COLLATE {literal(like.collate)} LC_CTYPE {literal(like.ctype)}"]
    if server_version >= 150000:
        parts.append(f"LOCALE_PROVIDER {({'c': 'libc', 'i': 'icu', 'b': 'builtin'})[like.provider]}")
    if like.locale and like.provider in ("i", "b"):
        parts.append(f"{'ICU_LOCALE' if like.provider == 'i' else 'BUILTIN_LOCALE'} {literal(like.locale)}")
    if like.icu_rules and server_version >= 160000:
        parts.append(f"ICU_RULES {literal(like.icu_rules)}")
    if not foreign:
        parts.append(f"OWNER {ident(like.owner)}")
        if like.tablespace != "pg_default":
            parts.append(f"TABLESPACE {ident(like.tablespace)}")
    return " ".join(parts)


def dress(endpoint: Endpoint, maintenance_db: str, dbname: str, like: Properties) -> None:
    """Give a database the settings, grants, comment and connection limit of `like`, in one transaction."""
    connection = admin(endpoint, maintenance_db, autocommit=False)
    try:
        with driver.database_errors(endpoint.place, f"giving {dbname} the settings and grants of its original"):
            for statement in dress_sql(dbname, like):
                driver.rows(connection, statement)
            connection.commit()
    finally:
        connection.close()


def dress_sql(dbname: str, like: Properties) -> list[str]:
    """Return the statements that give a fresh database everything but its content."""
    name = ident(dbname)
    statements = []
    if like.connection_limit >= 0:
        statements.append(f"ALTER DATABASE {name} CONNECTION LIMIT {like.connection_limit}")
    if like.comment:
        statements.append(f"COMMENT ON DATABASE {name} IS {literal(like.comment)}")
    for setting in like.settings:
        target = f"ROLE {ident(setting.role)} IN DATABASE {name}" if setting.role else f"DATABASE {name}"
        statements.append(f"ALTER {target} SET {'.'.join(ident(part) for part in setting.name.split('.'))} TO {_value(setting)}")
    if like.grants is not None:
        statements.append(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC, {ident(like.owner)}")
        for grant in like.grants:
            grantee = ident(grant.grantee) if grant.grantee else "PUBLIC"
            statements.append(f"GRANT {grant.privilege} ON DATABASE {name} TO {grantee}{' WITH GRANT OPTION' if grant.grantable else ''}")
    return statements


def _value(setting: Setting) -> str:
    if setting.name not in _LISTS:
        return literal(setting.value)
    names = [item.strip() for item in next(csv.reader([setting.value], skipinitialspace=True), [])]
    return ", ".join(literal(item) for item in names) or literal("")


def drop(endpoint: Endpoint, maintenance_db: str, dbname: str) -> None:
    """Drop a database that the migration made itself, ending what is connected to it."""
    connection = admin(endpoint, maintenance_db)
    try:
        with driver.database_errors(endpoint.place, f"dropping the scratch database {dbname}"):
            driver.rows(connection, f"DROP DATABASE IF EXISTS {ident(dbname)} WITH (FORCE)")
    finally:
        connection.close()


def derived(dbname: str, what: str, run_id: str) -> str:
    """Return the name of a database that the migration makes from another: the same for every run of one migration."""
    suffix = f"_{what}_{run_id.lower().replace('-', '_')}"
    if len(suffix) > 55:
        raise MigrationError(f"the run id {run_id} is too long to name a database after")
    return dbname.encode()[: 63 - len(suffix)].decode(errors="ignore") + suffix
