# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill an empty monolith: set-based SQL for the many, Django for the accounts and sessions that must be real."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection, transaction

from edulink.accounts import ACCOUNTS
from edulink.sessions import fill_sessions

SQL = Path(__file__).resolve().parents[2] / "fill.sql"
TABLES = (
    "django_content_type",
    "auth_permission",
    "auth_group",
    "auth_group_permissions",
    "auth_user",
    "auth_user_groups",
    "auth_user_user_permissions",
    "django_session",
    "institutions",
    "users_profile",
    "students",
    "companies",
    "users_role",
)
FEWEST = 60
LOCK = 20120301  # any number: one fill at a time, also when the caller of another was killed and it goes on

# Foreign keys, unique constraints and secondary indexes are made again after the load, as they were: much faster, and
# no queue of deferred checks grows with the rows.
OBJECTS = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid)), contype = 'f'
FROM pg_constraint WHERE conrelid = ANY (%s::regclass[]) AND contype IN ('f', 'u')
UNION ALL
SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid), false
FROM pg_index AS i WHERE indrelid = ANY (%s::regclass[])
AND NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conindid = i.indexrelid AND c.contype IN ('p', 'u'))
ORDER BY 3, 1
"""


def steps(users: int, seed: int, group_permissions: int) -> Iterator[tuple[str, str]]:
    """Return the name and the SQL of each section of fill.sql; its only parameters are integers."""
    numbers = {"bulk": users - len(ACCOUNTS), "seed": seed, "group_permissions": group_permissions}
    text = re.sub(r":(bulk|seed|group_permissions)\b", lambda found: str(int(numbers[found[1]])), SQL.read_text(encoding="utf-8"))
    sections = re.split(r"^-- step: (\w+)$", text, flags=re.MULTILINE)[1:]
    return zip(sections[::2], sections[1::2], strict=True)


class Command(BaseCommand):
    """`manage.py fill`: all or nothing, in one transaction."""

    help = "Fill an empty monolith with users and everything they own."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--users", type=int, default=20_000, help=f"how many users, at least {FEWEST}")
        parser.add_argument("--seed", type=int, default=1, help="another seed, other data")
        parser.add_argument("--group-permissions", type=int, default=3, help="how many permissions a group has")
        parser.add_argument("--sessions", type=int, default=400, help="how many sessions beside those of the known accounts")
        parser.add_argument("--if-empty", action="store_true", help="leave a filled monolith as it is, without an error")

    def handle(self, *args: Any, **options: Any) -> None:
        """Fill, and tell after each step what it made."""
        users, sessions, group_permissions = options["users"], options["sessions"], options["group_permissions"]
        if users < FEWEST or sessions < 0 or group_permissions < 0:
            raise CommandError(f"users must be {FEWEST} or more, sessions and group permissions 0 or more")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK])
            cursor.execute("SELECT EXISTS (SELECT FROM auth_user)")
            if cursor.fetchone()[0]:
                if options["if_empty"]:
                    return
                raise CommandError("this monolith has users already; fill only an empty one")
            with transaction.atomic():
                self._load(cursor, users, options["seed"], group_permissions, sessions)
            self._step("vacuum", cursor, f"VACUUM (ANALYZE) {', '.join(TABLES)}")

    def _load(self, cursor: Any, users: int, seed: int, group_permissions: int, sessions: int) -> None:
        cursor.execute("SET LOCAL maintenance_work_mem = '256MB'")
        cursor.execute(OBJECTS.replace("%s::regclass[]", "@").replace("%", "%%").replace("@", "%s::regclass[]"), [list(TABLES)] * 2)
        objects = cursor.fetchall()
        for drop, _, _ in sorted(objects, key=lambda found: not found[2]):
            cursor.execute(drop)
        for name, statements in steps(users, seed, group_permissions):
            self._step(name, cursor, statements)
        for table in TABLES:
            if table != "django_session":
                cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))")
        add_accounts(cursor)
        started = time.monotonic()
        count = fill_sessions(sessions)
        self._say("django_session", count, started)
        self._step("indexes", cursor, ";\n".join(create for _, create, foreign in objects if not foreign))
        self._step("foreign_keys", cursor, ";\n".join(create for _, create, foreign in objects if foreign))

    def _step(self, name: str, cursor: Any, statements: str) -> None:
        started = time.monotonic()
        cursor.execute(statements)
        self._say(name, cursor.rowcount, started)

    def _say(self, name: str, rows: int, started: float) -> None:
        made = f" {rows:,} rows" if rows > 0 else ""
        self.stdout.write(f"{name}{made} {time.monotonic() - started:.1f} s")
        self.stdout.flush()


def add_accounts(cursor: Any) -> None:
    """Add the users whose passwords are known, with their groups, own permissions and profiles."""
    for account in ACCOUNTS:
        cursor.execute(
            "INSERT INTO auth_user (id, username, email, password, first_name, last_name, is_active, is_staff, is_superuser, date_joined)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, '2020-02-29 12:34:56.789012+00')",
            [
                account.id,
                account.username,
                account.email,
                account.hash,
                account.first_name,
                account.last_name,
                account.is_active,
                account.is_staff,
                account.is_superuser,
            ],
        )
        cursor.execute(
            "INSERT INTO auth_user_groups (user_id, group_id) SELECT %s, id FROM auth_group WHERE name = ANY (%s)",
            [account.id, list(account.groups)],
        )
        cursor.execute(
            "INSERT INTO auth_user_user_permissions (user_id, permission_id)"
            " SELECT %s, p.id FROM auth_permission AS p JOIN django_content_type AS c ON c.id = p.content_type_id"
            " WHERE c.app_label || '.' || p.codename = ANY (%s)",
            [account.id, list(account.permissions)],
        )
        if account.has_profile:
            cursor.execute(
                "INSERT INTO users_profile (user_id, first_name, profile_type, is_public, created_at, updated_at)"
                " VALUES (%s, %s, 'individual', true, '2020-02-29 12:34:56+00', '2020-02-29 12:34:56+00')",
                [account.id, account.username.title() if account.username != "ada" else None],
            )
