# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find in a database's catalogs what the role that restores its dump could not make again.

Objects that initdb made have an oid below 16384, and members of an extension come with it: neither is in a dump, but
grants on them are. A dump names an object's owner, so an owner that the role cannot become is an obstacle of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..postgres import driver

SHOWN = 5  # objects that a line names
DATA = "use rollback_scope=data, which works all the same"
_USERS_OWN = 16384  # FirstNormalObjectId (PostgreSQL, access/transam.h)
_OWNED = (  # catalog, owner, privileges, and acldefault()'s letter for the kind
    ("pg_namespace", "nspowner", "nspacl", "'n'"),
    ("pg_class", "relowner", "relacl", "CASE relkind WHEN 'S' THEN 's' ELSE 'r' END"),
    ("pg_proc", "proowner", "proacl", "'f'"),
    ("pg_type", "typowner", "typacl", "'T'"),
    ("pg_language", "lanowner", "lanacl", "'l'"),
    ("pg_foreign_data_wrapper", "fdwowner", "fdwacl", "'F'"),
    ("pg_foreign_server", "srvowner", "srvacl", "'S'"),
    ("pg_largeobject_metadata", "lomowner", "lomacl", "'L'"),
    *((catalog, owner, "NULL::aclitem[]", "NULL") for catalog, owner in (
        ("pg_collation", "collowner"), ("pg_conversion", "conowner"), ("pg_event_trigger", "evtowner"), ("pg_opclass", "opcowner"),
        ("pg_operator", "oprowner"), ("pg_opfamily", "opfowner"), ("pg_publication", "pubowner"), ("pg_statistic_ext", "stxowner"),
        ("pg_ts_config", "cfgowner"), ("pg_ts_dict", "dictowner"),
    )),
)  # fmt: skip
# Each owned object once: no rows' types, arrays, indexes, TOAST tables, partitions' inherited parts or temporary objects.
_THINGS = " UNION ALL ".join(
    f"SELECT '{catalog.removesuffix('_metadata')}'::regclass AS kind, oid, {owner} AS owner, {acl} AS acl, ({letter})::\"char\" AS letter FROM {catalog}"
    + {
        "pg_namespace": " WHERE nspname !~ '^pg_(toast|temp)'",
        "pg_class": " WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relpersistence <> 't' AND relnamespace::regnamespace::text !~ '^pg_toast'",
        "pg_type": " WHERE typtype IN ('b', 'd', 'e', 'r') AND typelem = 0 OR typtype = 'b' AND typsubscript::text <> 'array_subscript_handler'"
        " OR typtype = 'c' AND (SELECT relkind = 'c' FROM pg_class WHERE pg_class.oid = typrelid)",
    }.get(catalog, "")
    for catalog, owner, acl, letter in _OWNED
)
_NOT_OF_AN_EXTENSION = "NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = kind AND d.objid = things.oid AND d.deptype IN ('e', 'i'))"

_FOREIGN = f"""
SELECT pg_get_userbyid(owner), (SELECT rolsuper FROM pg_roles r WHERE r.oid = owner), o.type, o.identity
FROM ({_THINGS}) AS things CROSS JOIN LATERAL pg_identify_object(kind, things.oid, 0) AS o
WHERE (things.oid >= {_USERS_OWN} OR kind = 'pg_namespace'::regclass AND o.identity = 'public' AND pg_get_userbyid(owner) <> %(public)s)
AND {_NOT_OF_AN_EXTENSION} AND NOT pg_has_role(current_user, owner, 'MEMBER')
UNION ALL
SELECT pg_get_userbyid(defaclrole), (SELECT rolsuper FROM pg_roles r WHERE r.oid = defaclrole), 'default privileges', 'of ' || pg_get_userbyid(defaclrole)
FROM pg_default_acl WHERE NOT pg_has_role(current_user, defaclrole, 'MEMBER')
ORDER BY 1, 3, 4
"""

_OWNERS = f"""
SELECT DISTINCT pg_get_userbyid(owner) FROM ({_THINGS}) AS things WHERE things.oid >= {_USERS_OWN} AND {_NOT_OF_AN_EXTENSION}
UNION SELECT pg_get_userbyid(defaclrole) FROM pg_default_acl
"""

_GRANTORS = f"""
SELECT DISTINCT o.type, o.identity FROM ({_THINGS}) AS things CROSS JOIN LATERAL aclexplode(acl) AS a
CROSS JOIN LATERAL pg_identify_object(kind, things.oid, 0) AS o WHERE a.grantor <> owner
UNION
SELECT DISTINCT o.type, o.identity FROM pg_attribute c JOIN pg_class t ON t.oid = c.attrelid CROSS JOIN LATERAL aclexplode(c.attacl) AS a
CROSS JOIN LATERAL pg_identify_object('pg_class'::regclass, c.attrelid, c.attnum) AS o WHERE a.grantor <> t.relowner
ORDER BY 1, 2
"""

# pg_dump leaves information_schema out.
_GRANTS = rf"""
SELECT DISTINCT o.type, o.identity FROM ({_THINGS}) AS things LEFT JOIN pg_init_privs i ON i.classoid = kind AND i.objoid = things.oid AND i.objsubid = 0
CROSS JOIN LATERAL pg_identify_object(kind, things.oid, 0) AS o
WHERE (things.oid < {_USERS_OWN} OR EXISTS (SELECT FROM pg_depend d WHERE d.classid = kind AND d.objid = things.oid AND d.deptype = 'e'))
AND NOT pg_has_role(current_user, owner, 'MEMBER') AND o.identity !~ '^information_schema(\.|$)'
AND (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(coalesce(acl, acldefault(letter, owner))) AS a)
    IS DISTINCT FROM (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(coalesce(i.initprivs, acldefault(letter, owner))) AS a)
ORDER BY 1, 2
"""

_OWN = "{alias}.oid >= " + str(_USERS_OWN) + " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{catalog}'::regclass AND d.objid = {alias}.oid"
_OWN += " AND d.deptype IN ('e', 'i'))"


def _own(catalog: str, alias: str = "x") -> str:
    return _OWN.format(catalog=catalog, alias=alias)


# What only a superuser may create, whoever owns it: the words for it, and a SELECT of (catalog, oid).
_KINDS = (
    ("publications of all tables or whole schemas", "SELECT 'pg_publication'::regclass, x.oid FROM pg_publication x WHERE x.puballtables"),
    ("event triggers", f"SELECT 'pg_event_trigger'::regclass, x.oid FROM pg_event_trigger x WHERE {_own('pg_event_trigger')}"),
    (
        "foreign data wrappers",
        f"SELECT 'pg_foreign_data_wrapper'::regclass, x.oid FROM pg_foreign_data_wrapper x WHERE {_own('pg_foreign_data_wrapper')}",
    ),
    ("languages", f"SELECT 'pg_language'::regclass, x.oid FROM pg_language x WHERE {_own('pg_language')}"),
    (
        "functions in untrusted languages",
        "SELECT 'pg_proc'::regclass, x.oid FROM pg_proc x JOIN pg_language l ON l.oid = x.prolang"
        f" WHERE NOT l.lanpltrusted AND l.lanname <> 'sql' AND x.prokind <> 'a' AND {_own('pg_proc')}",
    ),
    ("LEAKPROOF functions", f"SELECT 'pg_proc'::regclass, x.oid FROM pg_proc x WHERE x.proleakproof AND {_own('pg_proc')}"),
    ("functions with a SUPPORT function", f"SELECT 'pg_proc'::regclass, x.oid FROM pg_proc x WHERE x.prosupport <> 0 AND {_own('pg_proc')}"),
    ("access methods", f"SELECT 'pg_am'::regclass, x.oid FROM pg_am x WHERE {_own('pg_am')}"),
    ("operator classes", f"SELECT 'pg_opclass'::regclass, x.oid FROM pg_opclass x WHERE {_own('pg_opclass')}"),
    ("operator families", f"SELECT 'pg_opfamily'::regclass, x.oid FROM pg_opfamily x WHERE {_own('pg_opfamily')}"),
    ("text search parsers", f"SELECT 'pg_ts_parser'::regclass, x.oid FROM pg_ts_parser x WHERE {_own('pg_ts_parser')}"),
    ("text search templates", f"SELECT 'pg_ts_template'::regclass, x.oid FROM pg_ts_template x WHERE {_own('pg_ts_template')}"),
    (
        "base types",
        f"SELECT 'pg_type'::regclass, x.oid FROM pg_type x WHERE x.typtype = 'b' AND x.typcategory <> 'A' AND {_own('pg_type')}",
    ),
    (
        "casts",
        f"SELECT 'pg_cast'::regclass, x.oid FROM pg_cast x WHERE {_own('pg_cast')} AND (x.castmethod = 'b' OR NOT EXISTS ("
        "SELECT FROM pg_type t WHERE t.oid IN (x.castsource, x.casttarget) AND {own_type}))",
    ),
    (
        "transforms",
        f"SELECT 'pg_transform'::regclass, x.oid FROM pg_transform x JOIN pg_type t ON t.oid = x.trftype WHERE {_own('pg_transform')}"
        " AND NOT {own_type}",
    ),
)
_NOT_OF_A_PROOF = ("publications", "event triggers")  # the proof on another server leaves them out
_SUBSCRIPTIONS = "SELECT s.subname FROM pg_subscription s JOIN pg_database b ON b.oid = s.subdbid WHERE b.datname = current_database() ORDER BY 1"

_FUNCTIONS_SETTINGS = f"""
SELECT x.oid::regprocedure::text, split_part(given.line, '=', 1) FROM pg_proc x CROSS JOIN LATERAL unnest(x.proconfig) AS given (line)
LEFT JOIN pg_settings s ON s.name = split_part(given.line, '=', 1)
WHERE s.context IN ('superuser', 'superuser-backend') AND {_own('pg_proc')} AND NOT {{granted}} ORDER BY 1, 2
"""

_EXTENSIONS = """
SELECT e.extname FROM pg_extension e LEFT JOIN pg_available_extension_versions v ON v.name = e.extname AND v.version = e.extversion
WHERE e.extname <> 'plpgsql' AND v.trusted IS NOT TRUE AND v.superuser IS NOT FALSE ORDER BY 1
"""

_EXTENSIONS_ROWS = """
SELECT DISTINCT e.extname FROM pg_extension e CROSS JOIN LATERAL unnest(e.extconfig) AS t (oid) JOIN pg_class c ON c.oid = t.oid
WHERE NOT pg_has_role(current_user, c.relowner, 'MEMBER') ORDER BY 1
"""


@dataclass(frozen=True)
class Obstacle:
    """What stands in the way of a restore, and what somebody can do about it."""

    fault: str
    remedy: str

    @property
    def line(self) -> str:
        """Return both in one line."""
        return f"{self.fault}; {self.remedy}"


def owners(connection: driver.Connection) -> list[str]:
    """Return the roles that own something of a dump of the connected database."""
    return sorted(name for (name,) in driver.rows(connection, _OWNERS))


def obstacles(connection: driver.Connection, database_owner: str) -> list[Obstacle]:
    """Return what the connection's role could not make again from a dump of the connected database.

    For a role that is no superuser; `database_owner` is the role whose objects it may make.
    """
    faults = [*_foreign(connection, database_owner), *_kinds(connection)]
    extensions = [name for (name,) in driver.rows(connection, _EXTENSIONS)]
    if extensions:
        faults.append(_only(f"the extensions {_some(extensions)} can be made again by a superuser only", "drop them if nothing needs them"))
    filled = [name for (name,) in driver.rows(connection, _EXTENSIONS_ROWS) if name not in extensions]
    if filled:
        fault = f"rows in tables of the extensions {_some(filled)} can be restored by a superuser only"
        faults.append(_only(fault, "empty these tables if nothing needs them"))
    grantors = _named(driver.rows(connection, _GRANTORS))
    if grantors:
        faults.append(
            _only(f"grants on {_some(grantors)} were made by another role than the owner (WITH GRANT OPTION)", "REVOKE them and have the owner GRANT them")
        )
    grants = _named(driver.rows(connection, _GRANTS))
    if grants:
        faults.append(
            _only(f"grants on {_some(grants)}, which belong to PostgreSQL or an extension, would be lost", "undo these GRANTs and REVOKEs")
        )
    granted = "has_parameter_privilege(s.name, 'SET')" if connection.server_version >= 150000 else "false"
    settings = [f"{function} ({name})" for function, name in driver.rows(connection, _FUNCTIONS_SETTINGS.format(granted=granted))]
    if settings:
        faults.append(_only(f"functions have settings that only a superuser may give: {_some(settings)}", "ALTER FUNCTION ... RESET them"))
    return faults


def _foreign(connection: driver.Connection, database_owner: str) -> list[Obstacle]:
    """Return an obstacle for each owner whose objects the role cannot give back to it."""
    usual = "pg_database_owner" if connection.server_version >= 150000 else driver.scalar(connection, "SELECT pg_get_userbyid(10)")
    owned: dict[tuple[str, bool], list[str]] = {}
    for owner, superuser, kind, identity in driver.rows(connection, _FOREIGN, {"public": usual}):
        owned.setdefault((owner, superuser), []).append(f"{kind} {identity}")
    faults = []
    for (owner, superuser), things in owned.items():
        remedy = f"ALTER them to OWNER TO {database_owner}"
        if not superuser:
            remedy += f", or GRANT {owner} to the role"
        faults.append(_only(f"{owner} owns {_some(things)}, and the role cannot become {owner}", remedy))
    return faults


def _kinds(connection: driver.Connection) -> list[Obstacle]:
    """Return an obstacle for each kind of object that takes a superuser."""
    faults = [
        _only(f"only a superuser can make {words} again: {_some(things)}", "drop them meanwhile")
        for words, things in _made_by_superusers(connection, "pg_has_role(current_user, t.typowner, 'MEMBER')")
    ]
    if subscriptions := [name for (name,) in driver.rows(connection, _SUBSCRIPTIONS)]:
        faults.append(_only(f"only a superuser can make subscriptions again: {_some(subscriptions)}", "drop them meanwhile"))
    return faults


def _made_by_superusers(connection: driver.Connection, own_type: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the kinds of object that take a superuser, with those that the database has; `own_type` tells the types `t` that the restoring role owns."""
    publications = "SELECT 'pg_publication'::regclass, n.pnpubid FROM pg_publication_namespace n" if connection.server_version >= 150000 else ""
    for words, statement in _KINDS:
        text = f"{statement} UNION {publications}" if publications and words.startswith("publications") else statement
        found = driver.rows(
            connection,
            f"SELECT o.type, o.identity FROM ({text.format(own_type=own_type)}) AS x (kind, oid)"
            " CROSS JOIN LATERAL pg_identify_object(x.kind, x.oid, 0) AS o ORDER BY 1, 2",
        )
        if found:
            yield words, _named(found)


def elsewhere(connection: driver.Connection) -> list[str]:
    """Return what an ordinary role of another server, which would own whatever it restores there, could not make, in words."""
    found = _made_by_superusers(connection, f"t.oid >= {_USERS_OWN}")
    return [f"{words} ({_some(things)})" for words, things in found if not words.startswith(_NOT_OF_A_PROOF)]


def _only(fault: str, remedy: str) -> Obstacle:
    """Return an obstacle of whole databases; removing rows needs none of it."""
    return Obstacle(fault, f"{remedy}, or {DATA}")


def _named(found: list[tuple[str, str]]) -> list[str]:
    return [f"{kind} {identity}" for kind, identity in found]


def _some(things: list[str]) -> str:
    """Return the first few names, on one line whatever they are."""
    shown = ", ".join(" ".join(thing.split()) for thing in things[:SHOWN])
    return shown + (f" and {len(things) - SHOWN} more" if len(things) > SHOWN else "")
