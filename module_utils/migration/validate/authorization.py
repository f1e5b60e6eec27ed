# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what each user may do, computed from the tables of both sides without the mappings.

A mapping that forgets groups agrees with itself: the projection and the target miss the same rows. So this reads Django's
own tables on the source and the services' tables on the targets and lists, for each user, its rights: the credentials
(user name, password string, active and verified flags), each permission held (own or by a group) and each role (staff,
superuser, groups with their permissions, roles of its own). Rights are digested in buckets by the user's id and summed, as
validation does with rows; buckets that differ are opened to the user, some at a time, so that memory does not grow with what
differs. It shares the id recipe with the transfer and nothing else. It knows Django's tables by name; which tables of the services
hold users, permissions and roles the mappings declare (mappings/_accounts.yml), and what is not declared it says.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..context import Context
from ..plan import ids, ownership
from ..plan.accounts import FILE, HELD, PERMISSIONS, ROLES, USERS, AccountTable
from ..plan.model import BOOKKEEPING, Lookup, Part, Target
from ..plan.predicates import replaced
from ..postgres.quote import array, ident, literal
from ..text import counted
from . import digest as d
from .drilldown import OPENED_ROWS
from .readers import Sides

DJANGO = (
    "auth_user",
    "auth_user_user_permissions",
    "auth_user_groups",
    "auth_group",
    "auth_group_permissions",
    "auth_permission",
    "django_content_type",
)
OWN_ROLES = "users_role"  # the monolith's own, where it has one
SETTLE_ATTEMPTS, SETTLE_SECONDS = 3, 2.0
KEPT = 1000

# What a right is: SQL of (user's integer id, form) on the source, of (user's uuid, form) on the target.
_SOURCE: Mapping[str, str] = {
    "credentials": """
        SELECT src.id AS user_id, record_send(ROW({form})) AS form
        FROM {schema}.auth_user AS src""",
    "permissions": """
        SELECT held.user_id, record_send(ROW((t.app_label || '.' || t.model)::text, p.codename::text)) AS form
        FROM (
            SELECT o.user_id, o.permission_id FROM {schema}.auth_user_user_permissions AS o
            UNION
            SELECT m.user_id, g.permission_id FROM {schema}.auth_user_groups AS m JOIN {schema}.auth_group_permissions AS g ON g.group_id = m.group_id
        ) AS held
        LEFT JOIN {schema}.auth_permission AS p ON p.id = held.permission_id
        LEFT JOIN {schema}.django_content_type AS t ON t.id = p.content_type_id""",
    "roles": """
        SELECT given.user_id, record_send(ROW({form})) AS form
        FROM (
            SELECT u.id AS user_id, 'staff'::text AS role, true AS is_active, NULL::text AS permissions FROM {schema}.auth_user AS u WHERE u.is_staff
            UNION ALL SELECT u.id, 'superuser', true, NULL FROM {schema}.auth_user AS u WHERE u.is_superuser
            UNION ALL
            SELECT m.user_id, g.name, true, granted.codenames
            FROM {schema}.auth_user_groups AS m JOIN {schema}.auth_group AS g ON g.id = m.group_id
            LEFT JOIN (
                SELECT x.group_id, to_jsonb(array_agg(x.codename ORDER BY x.app_label COLLATE "C", x.plain COLLATE "C"))::text AS codenames
                FROM (
                    SELECT gp.group_id, t.app_label || '.' || p.codename AS codename, t.app_label, p.codename AS plain
                    FROM {schema}.auth_group_permissions AS gp
                    JOIN {schema}.auth_permission AS p ON p.id = gp.permission_id
                    JOIN {schema}.django_content_type AS t ON t.id = p.content_type_id
                ) AS x GROUP BY x.group_id
            ) AS granted ON granted.group_id = g.id
            {own_roles}
        ) AS given""",
}
_OWN_ROLES = "UNION ALL SELECT r.user_id, r.role_type, r.is_active, r.permissions::text FROM {schema}.users_role AS r"
_CREDENTIALS = {"username": "username", "password": "password"}  # the meaning's column in auth_user
# What each meaning is on the source (where {username} and {password} know the placeholders) and as which type on the target.
_FORMS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    USERS: {"username": ("{username}", "text"), "password": ("{password}", "text"), "active": ("src.is_active", ""), "verified": ("NOT src.is_superuser", "")},
    ROLES: {"role": ("given.role", "text"), "active": ("given.is_active", ""), "permissions": ("given.permissions", "text")},
}


@dataclass(frozen=True)
class _Declared:
    """The tables that the mappings declare, by section, with the target of each."""

    tables: Mapping[str, tuple[AccountTable, Target]]

    def form(self, section: str) -> tuple[str, str]:
        """Return the columns of a right on the source and on the target (alias own): those that are declared."""
        table, _ = self.tables[section]
        pairs = [(there, kind, table.column(meaning)) for meaning, (there, kind) in _FORMS[section].items()]
        own = [f"own.{ident(column)}{f'::{kind}' if kind else ''}" for _, kind, column in pairs if column]
        return ", ".join(there for there, _, column in pairs if column), ", ".join(own)

    def statements(self) -> dict[str, tuple[str, str]]:
        """Return each right that can be compared: the section of its rows and the SQL of (user's uuid, form); `own` is the row that gives it."""
        users = self.tables[USERS][1]
        select = f"SELECT own.{ident(users.identity[0])} AS user_id, record_send(ROW({self.form(USERS)[1]})) AS form FROM {users.qualified} AS own"
        result = {"credentials": (USERS, select)}
        if HELD in self.tables and PERMISSIONS in self.tables:
            (held, held_target), (known, known_target) = self.tables[HELD], self.tables[PERMISSIONS]
            form = ", ".join(f"p.{ident(str(known.column(meaning)))}::text" for meaning in ("content_type", "codename"))
            join = f"LEFT JOIN {known_target.qualified} AS p ON p.{ident(known_target.identity[0])} = own.{ident(str(held.column('permission')))}"
            select = f"SELECT own.{ident(str(held.column('user')))} AS user_id, record_send(ROW({form})) AS form"
            result["permissions"] = (HELD, f"{select} FROM {held_target.qualified} AS own {join}")
        if ROLES in self.tables:
            roles, target = self.tables[ROLES]
            user = ident(str(roles.column("user")))
            result["roles"] = (ROLES, f"SELECT own.{user} AS user_id, record_send(ROW({self.form(ROLES)[1]})) AS form FROM {target.qualified} AS own")
        return result


@dataclass(frozen=True)
class Equivalence:
    """How many users have the same rights on both sides; `findings` name users by id, with what differs.

    `placeholders` users have a user name or password that a policy of the mapping gave them: expected with it, and counted.
    """

    users: int
    differing: int
    findings: tuple[tuple[str, str], ...]
    applicable: bool = True
    placeholders: int = 0
    reason: str = ""
    undeclared: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Tell whether no user gained or lost a right."""
        return self.differing == 0

    @property
    def verdict(self) -> str:
        """Return one line."""
        if not self.applicable:
            return f"authorisation not compared: {self.reason}"
        lacking = f"; not declared in {FILE} of the mappings: {', '.join(self.undeclared)}" if self.undeclared else ""
        aside = f" ({counted(self.placeholders, 'user')} with a placeholder for name or password)" if self.placeholders else ""
        if self.passed:
            return f"all {counted(self.users, 'user')} may do what they could before{aside}{lacking}"
        return f"{self.differing:,} of {counted(self.users, 'user')} may do more or less than before{aside}{lacking}"

    @property
    def lines(self) -> tuple[str, ...]:
        """Return a line for each finding."""
        return tuple(f"authorisation: user {key}: {what}" for key, what in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return what validation.json keeps."""
        return {
            "passed": self.passed,
            "applicable": self.applicable,
            "verdict": self.verdict,
            "users": self.users,
            "differing": self.differing,
            "placeholders": self.placeholders,
            "findings": [{"user": key, "what": what} for key, what in self.findings],
        }


@dataclass(frozen=True)
class _Right:
    """One kind of right: its statements on both sides, of (16 bytes of the user's id, form)."""

    name: str
    service: str
    source: str
    target: str
    rows: float


@dataclass(frozen=True)
class _Found:
    """How many users there are and how many differ, with what differs for KEPT of them."""

    users: int
    differing: int
    kept: Mapping[str, set[str]]


def compare(context: Context, plan_time: str, *, workers: int = 2, digest: str = d.AUTO, after_cutover: bool = False) -> Equivalence:
    """Compare the rights of every user who is not quarantined, nor lost a right to quarantine; after the cutover without what the services gave."""
    plan = context.plan
    declared = _Declared({name: pair for name in (USERS, PERMISSIONS, HELD, ROLES) if (pair := plan.account(name))})
    targets = {section: target for section, (_, target) in declared.tables.items()}
    if USERS not in targets:
        reason = f"not declared; {FILE} in the folder of the mappings says which tables have users, permissions and roles"
        return Equivalence(0, 0, (), applicable=False, reason=reason)
    undeclared = tuple(section for section in (HELD, ROLES) if section not in targets)
    with Sides(context, plan_time, tuple(targets.values()), None, workers, 0) as sides:
        listed = ", ".join(literal(name) for name in (*DJANGO, OWN_ROLES))
        there = (
            "SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            f" WHERE n.nspname = {literal(sides.schema)} AND c.relname IN ({listed})"
        )
        names = {row[0] for row in sides.source(there, "looking for Django's tables").result()[0]}
        missing = sorted(set(DJANGO) - names)
        if missing:
            return Equivalence(0, 0, (), applicable=False, reason=f"the monolith has no table {', '.join(missing)} in schema {sides.schema}")
        agreed = d.handshake(sides.leaders(), tuple(targets.values()), digest)
        credentials, replaced_if = _credentials(*declared.tables[USERS])
        own_roles = _OWN_ROLES if OWN_ROLES in names else ""
        rights = _rights(sides, declared, {**credentials, "own_roles": own_roles.format(schema=ident(sides.schema))}, after_cutover)
        found = _differing(sides, rights, agreed)
        for _ in range(SETTLE_ATTEMPTS):
            if not found.differing or not sides.written_to():
                break
            time.sleep(SETTLE_SECONDS)
            sides.renew()
            # Where more differ than are kept, those of the newer point are counted.
            found = _differing(sides, rights, agreed, only=found.kept if found.differing == len(found.kept) else None)
        counting = f"SELECT count(*) FROM {ident(sides.schema)}.auth_user AS src WHERE {' OR '.join(replaced_if)}"
        placeholders = sides.source(counting, "counting placeholders").result()[0][0][0] if replaced_if else 0
    findings = tuple((key, ", ".join(sorted(what))) for key, what in sorted(found.kept.items()))
    return Equivalence(found.users, found.differing, findings, placeholders=placeholders, undeclared=undeclared)


def _credentials(table: AccountTable, users: Target) -> tuple[dict[str, str], list[str]]:
    """Return the SQL (over auth_user AS src) of user name and password as the service must have them, and when a placeholder stands in."""
    wanted, conditions = {}, []
    for meaning, column in _CREDENTIALS.items():
        carried = table.column(meaning)
        sql = f"src.{column}::text"
        for policy in users.policies:
            condition = replaced(policy.rule, f"src.{column}", "text")
            if policy.column == carried and policy.policy == "placeholder" and policy.placeholder is not None and condition is not None:
                sql = f"CASE WHEN {condition} THEN (\n{policy.placeholder}\n)::text ELSE {sql} END"
                conditions.append(f"({condition})")
        wanted[meaning] = sql
    return wanted, conditions


def _rights(sides: Sides, declared: _Declared, known: Mapping[str, str], after_cutover: bool) -> list[_Right]:
    """Return what is compared; `known` has the SQL of the credentials and of the monolith's own roles."""
    targets = {section: target for section, (_, target) in declared.tables.items()}
    aside = _set_aside(sides, declared)
    rights = []
    for name, (table, statement) in declared.statements().items():
        own, joined = _user_id(targets[USERS].parts[0], "rights.user_id", sides.schema)
        source = f"SELECT {own} AS k, rights.form AS r FROM ({_source(name, declared, sides.schema, known)}) AS rights{joined}"
        ours = ownership.condition(targets[table], "own")
        made = f" WHERE {ours}" if after_cutover and ours != "false" else ""  # what a service gave itself is its own, where that can be told
        target = f"SELECT uuid_send(rights.user_id) AS k, rights.form AS r FROM ({statement}{made}) AS rights"
        source += f" WHERE {_selected(targets[USERS], sides.schema)}"
        if aside:
            keys = literal("{" + ",".join(aside) + "}")
            source += f" AND NOT EXISTS (SELECT FROM unnest({keys}::bigint[]) AS aside (id) WHERE aside.id = rights.user_id)"
            hidden, looked_up = _user_id(targets[USERS].parts[0], "aside.id", sides.schema)
            hashed = f"SELECT {hidden} FROM unnest({keys}::bigint[]) AS aside (id){looked_up}"
            uuids = [row[0] for row in sides.source(f"SELECT encode(x.i, 'hex') FROM ({hashed}) AS x (i)", "naming quarantined users").result()[0]]
            target += f" WHERE NOT EXISTS (SELECT FROM unnest({literal('{' + ','.join(uuids) + '}')}::uuid[]) AS aside (id) WHERE aside.id = rights.user_id)"
        rights.append(_Right(name, targets[table].service, source, target, sides.estimate(targets[table])))
    return rights


def _selected(users: Target, schema: str) -> str:
    """Return the condition that a user (rights.user_id) is carried at all, and not left out by a `where` of the mapping."""
    if any(part.where is None for part in users.parts):
        return "true"
    return " OR ".join(f"EXISTS (SELECT FROM {part.source(schema)} WHERE src.{ident(part.key[0])} = rights.user_id)" for part in users.parts).join("()")


def _source(name: str, declared: _Declared, schema: str, known: Mapping[str, str]) -> str:
    section = {"credentials": USERS, "roles": ROLES}.get(name)
    form = declared.form(section)[0].format(**known) if section else ""
    return _SOURCE[name].format(schema=ident(schema), form=form, own_roles=known["own_roles"])


def _user_id(users: Part, key: str, schema: str) -> tuple[str, str]:
    """Return the SQL of a user's id by that of the integer key, and the join that it needs."""
    if users.keep is None:
        return ids.expression(users.entity, [ids.integer_field(key)]), ""
    return "uuid_send(kept.kept)", Lookup("kept", key, users).joined(schema)


def _set_aside(sides: Sides, declared: _Declared) -> list[str]:
    """Return the integer ids of users who are quarantined, or some of whose rights are."""
    found: set[str] = set()
    for section, (table, target) in declared.tables.items():
        if section == PERMISSIONS or sides.ask(target.service, f"SELECT to_regclass('{BOOKKEEPING}.rejects')")[0][0] is None:
            continue
        statement = f"SELECT DISTINCT coalesce(part, ''), source_key FROM {BOOKKEEPING}.rejects WHERE target = {literal(target.name)}"
        rejected: dict[str, list[str]] = defaultdict(list)
        for part, key in sides.ask(target.service, statement):
            rejected[part].append(key)
        for part in target.parts:
            keys = rejected.get(part.name)
            if not keys:
                continue
            user = next((cell.key for cell in part.cells if cell.name == table.column("user") and cell.key), f"src.{ident(part.key[0])}")
            select = part.select_columns([f"({user})::text"], sides.schema) + f" WHERE {part.key_text} = ANY ({array(keys)}::text[])"
            found |= {row[0] for row in sides.source(select, "finding the users of quarantined rows").result()[0] if row[0] is not None}
    return sorted(found)


def _differing(sides: Sides, rights: Sequence[_Right], agreed: d.Digest, only: Mapping[str, set[str]] | None = None) -> _Found:
    """Return the users (of `only`, if given) whose rights differ. All rights have the same buckets, by the user's id, so each user is met once."""
    bits = d.bits_for(max(right.rows for right in rights))
    jobs = []
    for right in rights:
        one, other = (_buckets(statement, agreed, bits) for statement in (right.source, right.target))
        jobs.append((sides.source(one, f"reading users' {right.name}"), sides.target(right.service, other, f"reading users' {right.name}")))
    users = 0
    differ: dict[int, dict[str, int]] = defaultdict(dict)  # bucket -> the rights that differ there, with the rows of both sides
    for right, (one_job, other_job) in zip(rights, jobs, strict=True):
        one_side, other_side = ({row[0]: tuple(row[1:]) for row in job.result()[0]} for job in (one_job, other_job))
        if right.name == "credentials":
            users = sum(int(row[0]) for row in one_side.values())
        for number in one_side.keys() | other_side.keys():
            if one_side.get(number) != other_side.get(number):
                differ[-1 if number is None else number][right.name] = sum(int(side[number][0]) for side in (one_side, other_side) if number in side)
    count = 0
    kept: dict[str, set[str]] = {}
    for batch in _batches(differ):
        for key, what in _open(sides, rights, agreed, bits, {number: differ[number] for number in batch}).items():
            if only is None or key in only:
                count += 1
                if len(kept) < KEPT:
                    kept[key] = what
    return _Found(users, count, kept)


def _batches(differ: Mapping[int, Mapping[str, int]]) -> Iterator[list[int]]:
    """Yield the buckets, some at a time, so that about OPENED_ROWS rows are in them; those without a user (-1) come first."""
    batch: list[int] = []
    held = 0
    for number in sorted(differ):
        rows = sum(differ[number].values())
        if batch and held + rows > OPENED_ROWS:
            yield batch
            batch, held = [], 0
        batch.append(number)
        held += rows
    if batch:
        yield batch


def _open(sides: Sides, rights: Sequence[_Right], agreed: d.Digest, bits: int, differ: Mapping[int, Mapping[str, int]]) -> dict[str, set[str]]:
    """Return the users in some buckets whose rights differ, with what differs."""
    found: dict[str, set[str]] = defaultdict(set)
    for right in rights:
        numbers = [number for number, names in differ.items() if right.name in names]
        if not numbers:
            continue
        opened = [_opened(statement, agreed, bits, numbers) for statement in (right.source, right.target)]
        there = sides.source(opened[0], f"opening users' {right.name}")
        here = sides.target(right.service, opened[1], f"opening users' {right.name}")
        wanted, present = ({row[0]: row[1:] for row in job.result()[0]} for job in (there, here))
        for key in wanted.keys() | present.keys():
            if wanted.get(key) != present.get(key):
                found[key or "(none)"].add(right.name)
    return found


def _lanes(statement: str, agreed: d.Digest) -> str:
    """Return the FROM item with k, and r (the key and the form in one, so that exchanged rights do not cancel out)."""
    return f"(SELECT own.k, record_send(ROW(own.k, own.r)) AS r FROM ({statement} OFFSET 0) AS own OFFSET 0) AS keyed{_hash(agreed)}"


def _hash(agreed: d.Digest) -> str:
    return " CROSS JOIN LATERAL (SELECT sha256(r) AS d OFFSET 0) AS hash" if agreed.method == d.SHA256 else ""


def _buckets(statement: str, agreed: d.Digest, bits: int) -> str:
    first, second = agreed.lanes
    return (
        f"SELECT b, count(*), sum(h1), sum(h2) FROM (SELECT {d.bucket_of('k', 0, bits)} AS b, {first} AS h1, {second} AS h2"
        f" FROM {_lanes(statement, agreed)}) AS digested GROUP BY b"
    )


def _opened(statement: str, agreed: d.Digest, bits: int, numbers: Sequence[int]) -> str:
    first, second = agreed.lanes
    listed = ",".join(map(str, numbers))
    nobody = " OR k IS NULL" if -1 in numbers else ""
    return (
        f"SELECT encode(k, 'hex')::uuid::text, count(*), sum({first})::text, sum({second})::text FROM {_lanes(statement, agreed)}"
        f" WHERE {d.bucket_of('k', 0, bits)} = ANY ('{{{listed}}}'::int[]){nobody} GROUP BY k"
    )
