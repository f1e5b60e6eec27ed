# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what each user may do, computed from the tables of both sides without the mappings.

A mapping that forgets groups agrees with itself: the projection and the target miss the same rows. So this reads Django's
own tables on the source and the services' tables on the targets and lists, for each user, its rights: the credentials
(user name, password string, active and verified flags), each permission held (own or by a group) and each role (staff,
superuser, groups with their permissions, roles of its own). Rights are digested in buckets by the user's id and summed, as
validation does with rows; buckets that differ are opened to the user, some at a time, so that memory does not grow with what
differs. It shares the id recipe with the transfer and nothing else. It knows Django's and the two services' tables by name; where they
are not there it says that it does not apply.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..context import Context
from ..plan import ids
from ..plan.model import BOOKKEEPING, Target, replaced
from ..postgres.quote import array, ident, literal
from ..text import counted
from . import digest as d
from .drilldown import OPENED_ROWS
from .readers import Sides

USERS, PERMISSIONS, HELD, ROLES = "auth_service.users", "auth_service.permissions", "auth_service.user_permissions", "user_service.roles"
DJANGO = (
    "auth_user",
    "auth_user_user_permissions",
    "auth_user_groups",
    "auth_group",
    "auth_group_permissions",
    "auth_permission",
    "django_content_type",
    "users_role",
)
SETTLE_ATTEMPTS, SETTLE_SECONDS = 3, 2.0
KEPT = 1000

# What a right is: SQL of (user's integer id, form) on the source, of (user's uuid, form) on the target.
_SOURCE: Mapping[str, str] = {
    "credentials": """
        SELECT src.id AS user_id, record_send(ROW({username}, {password}, src.is_active, NOT src.is_superuser)) AS form
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
        SELECT given.user_id, record_send(ROW(given.role, given.is_active, given.permissions)) AS form
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
            UNION ALL SELECT r.user_id, r.role_type, r.is_active, r.permissions::text FROM {schema}.users_role AS r
        ) AS given""",
}
_CREDENTIALS = {"username": "username", "password": "password_hash"}  # auth_user's columns in the service
# `own` is the row that gives the right.
_TARGET: Mapping[str, tuple[str, str]] = {
    "credentials": (
        USERS,
        "SELECT own.id AS user_id, record_send(ROW(own.username::text, own.password_hash::text, own.is_active, own.is_verified)) AS form FROM {users} AS own",
    ),
    "permissions": (
        HELD,
        "SELECT own.user_id, record_send(ROW(p.content_type::text, p.codename::text)) AS form"
        " FROM {held} AS own LEFT JOIN {permissions} AS p ON p.id = own.permission_id",
    ),
    "roles": (ROLES, "SELECT own.user_id, record_send(ROW(own.role_type::text, own.is_active, own.permissions::text)) AS form FROM {roles} AS own"),
}


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

    @property
    def passed(self) -> bool:
        """Tell whether no user gained or lost a right."""
        return self.differing == 0

    @property
    def verdict(self) -> str:
        """Return one line."""
        if not self.applicable:
            return "authorisation not compared: the plan or the source does not have Django's and the services' tables"
        aside = f" ({counted(self.placeholders, 'user')} with a placeholder for name or password)" if self.placeholders else ""
        if self.passed:
            return f"all {counted(self.users, 'user')} may do what they could before{aside}"
        return f"{self.differing:,} of {counted(self.users, 'user')} may do more or less than before{aside}"

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
    targets = {target.name: target for target in context.plan.targets if target.name in (USERS, PERMISSIONS, HELD, ROLES)}
    if len(targets) < 4:
        return Equivalence(0, 0, (), applicable=False)
    with Sides(context, plan_time, tuple(targets.values()), None, workers, 0) as sides:
        listed = ", ".join(literal(name) for name in DJANGO)
        there = (
            "SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            f" WHERE n.nspname = {literal(sides.schema)} AND c.relname IN ({listed})"
        )
        if sides.source(there, "looking for Django's tables").result()[0][0][0] < len(DJANGO):
            return Equivalence(0, 0, (), applicable=False)
        agreed = d.handshake(sides.leaders(), tuple(targets.values()), digest)
        credentials, replaced_if = _credentials(targets[USERS])
        rights = _rights(context, sides, targets, credentials, after_cutover)
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
    return Equivalence(found.users, found.differing, findings, placeholders=placeholders)


def _credentials(users: Target) -> tuple[dict[str, str], list[str]]:
    """Return the SQL (over auth_user AS src) of user name and password as the service must have them, and when a placeholder stands in."""
    wanted, conditions = {}, []
    for column, carried in _CREDENTIALS.items():
        sql = f"src.{column}::text"
        for policy in users.policies:
            condition = replaced(policy.rule, f"src.{column}", "text")
            if policy.column == carried and policy.policy == "placeholder" and policy.placeholder is not None and condition is not None:
                sql = f"CASE WHEN {condition} THEN (\n{policy.placeholder}\n)::text ELSE {sql} END"
                conditions.append(f"({condition})")
        wanted[column] = sql
    return wanted, conditions


def _rights(context: Context, sides: Sides, targets: Mapping[str, Target], credentials: Mapping[str, str], after_cutover: bool) -> list[_Right]:
    aside = _set_aside(sides, targets)
    names = {
        "users": targets[USERS].qualified,
        "permissions": targets[PERMISSIONS].qualified,
        "held": targets[HELD].qualified,
        "roles": targets[ROLES].qualified,
    }
    entity = targets[USERS].parts[0].entity
    rights = []
    made = f" WHERE {ids.minted_sql('own.id')}" if after_cutover else ""  # what a service gave itself is its own
    for name, (table, statement) in _TARGET.items():
        own = ids.expression(entity, [ids.integer_field("rights.user_id")])
        source = f"SELECT {own} AS k, rights.form AS r FROM ({_SOURCE[name].format(schema=ident(sides.schema), **credentials)}) AS rights"
        target = f"SELECT uuid_send(rights.user_id) AS k, rights.form AS r FROM ({statement.format(**names)}{made}) AS rights"
        if aside:
            keys = literal("{" + ",".join(aside) + "}")
            source += f" WHERE NOT EXISTS (SELECT FROM unnest({keys}::bigint[]) AS aside (id) WHERE aside.id = rights.user_id)"
            hashed = f"SELECT {ids.expression(entity, [ids.integer_field('aside.id')])} FROM unnest({keys}::bigint[]) AS aside (id)"
            uuids = [row[0] for row in sides.source(f"SELECT encode(x.i, 'hex') FROM ({hashed}) AS x (i)", "naming quarantined users").result()[0]]
            target += f" WHERE NOT EXISTS (SELECT FROM unnest({literal('{' + ','.join(uuids) + '}')}::uuid[]) AS aside (id) WHERE aside.id = rights.user_id)"
        rights.append(_Right(name, targets[table].service, source, target, sides.estimate(targets[table])))
    return rights


def _set_aside(sides: Sides, targets: Mapping[str, Target]) -> list[str]:
    """Return the integer ids of users who are quarantined, or some of whose rights are."""
    found: set[str] = set()
    for target in targets.values():
        if target.name == PERMISSIONS or sides.ask(target.service, f"SELECT to_regclass('{BOOKKEEPING}.rejects')")[0][0] is None:
            continue
        statement = f"SELECT DISTINCT coalesce(part, ''), source_key FROM {BOOKKEEPING}.rejects WHERE target = {literal(target.name)}"
        rejected: dict[str, list[str]] = defaultdict(list)
        for part, key in sides.ask(target.service, statement):
            rejected[part].append(key)
        for part in target.parts:
            keys = rejected.get(part.name)
            if not keys:
                continue
            user = next((cell.key for cell in part.cells if cell.name == "user_id" and cell.key), f"src.{ident(part.key[0])}")
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
