# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's monolith has the tables that the strategy reads, and data as awkward as production's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.postgres.driver import Endpoint, connect, rows
from edulink.accounts import ACCOUNTS, BY_NAME

MONOLITH = Path(__file__).resolve().parents[1] / "monolith"
USERS = 3000

# name: columns in order; ! is NOT NULL, # an identity, > a deferred foreign key, ~ a unique key of its own
TABLES = {
    "django_content_type": "id integer!# | app_label character varying(100)! | model character varying(100)!",
    "auth_permission": "id integer!# | name character varying(255)! | content_type_id integer!>django_content_type | codename character varying(100)!",
    "auth_group": "id integer!# | name character varying(150)!~",
    "auth_group_permissions": "id bigint!# | group_id integer!>auth_group | permission_id integer!>auth_permission",
    "auth_user": "id integer!# | password character varying(128)! | last_login timestamp with time zone | is_superuser boolean!"
    " | username character varying(150)!~ | first_name character varying(150)! | last_name character varying(150)!"
    " | email character varying(254)! | is_staff boolean! | is_active boolean! | date_joined timestamp with time zone!",
    "auth_user_groups": "id bigint!# | user_id integer!>auth_user | group_id integer!>auth_group",
    "auth_user_user_permissions": "id bigint!# | user_id integer!>auth_user | permission_id integer!>auth_permission",
    "django_session": "session_key character varying(40)! | session_data text! | expire_date timestamp with time zone!",
    "institutions": "id bigint!# | name character varying(200)! | country character varying(100) | created_at timestamp with time zone!",
    "users_profile": "id bigint!# | user_id integer!>auth_user~ | first_name character varying(100) | last_name character varying(100)"
    " | phone character varying(20) | date_of_birth date | gender character varying(10) | address text | city character varying(100)"
    " | country character varying(100) | postal_code character varying(20) | bio text | avatar_url character varying(500)"
    " | linkedin_url character varying(500) | github_url character varying(500) | website_url character varying(500)"
    " | profile_type character varying(20)! | is_public boolean! | created_at timestamp with time zone! | updated_at timestamp with time zone!",
    "students": "id bigint!# | user_id integer!>auth_user~ | student_id character varying(50)~ | institution_id bigint>institutions"
    " | program character varying(200) | year_of_study integer | gpa numeric(3,2) | graduation_date date | skills jsonb | interests jsonb"
    " | resume_url character varying(500) | portfolio_url character varying(500) | is_seeking_internship boolean!"
    " | created_at timestamp with time zone! | updated_at timestamp with time zone!",
    "companies": "id bigint!# | user_id integer!>auth_user~ | company_name character varying(200)! | industry character varying(100)"
    " | company_size character varying(50) | description text | website_url character varying(500) | logo_url character varying(500)"
    " | headquarters character varying(200) | founded_year integer | is_verified boolean!"
    " | created_at timestamp with time zone! | updated_at timestamp with time zone!",
    "users_role": "id bigint!# | user_id integer!>auth_user | role_type character varying(50)! | institution_id bigint>institutions"
    " | company_id bigint>companies | permissions jsonb | is_active boolean! | granted_by integer>auth_user"
    " | granted_at timestamp with time zone! | expires_at timestamp with time zone"
    " | created_at timestamp with time zone! | updated_at timestamp with time zone!",
}
PAIRS = {
    ("auth_group_permissions", "group_id,permission_id"),
    ("auth_permission", "content_type_id,codename"),
    ("auth_user_groups", "user_id,group_id"),
    ("auth_user_user_permissions", "user_id,permission_id"),
    ("django_content_type", "app_label,model"),
}
DESCRIBE = """
SELECT c.relname, string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN '!' ELSE '' END
  || CASE WHEN a.attidentity = 'd' THEN '#' ELSE '' END
  || coalesce((SELECT '>' || confrelid::regclass FROM pg_constraint WHERE conrelid = c.oid AND contype = 'f' AND conkey = ARRAY[a.attnum]
               AND condeferrable AND condeferred AND convalidated), '')
  || CASE WHEN EXISTS (SELECT FROM pg_constraint WHERE conrelid = c.oid AND contype = 'u' AND conkey = ARRAY[a.attnum]) THEN '~' ELSE '' END,
  ' | ' ORDER BY a.attnum)
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname <> 'django_migrations' GROUP BY c.relname
"""
UNIQUE_PAIRS = """
SELECT conrelid::regclass::text,
  (SELECT string_agg(attname, ',' ORDER BY place) FROM unnest(conkey) WITH ORDINALITY AS k (n, place)
   JOIN pg_attribute ON attrelid = conrelid AND attnum = n)
FROM pg_constraint WHERE contype = 'u' AND cardinality(conkey) > 1 AND connamespace = 'public'::regnamespace
"""
INDEXES = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"


def manage(endpoint: Endpoint, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PGHOST": endpoint.host,
        "PGPORT": str(endpoint.port),
        "PGDATABASE": endpoint.dbname,
        "PGUSER": endpoint.user,
        "PGPASSWORD": endpoint.password or "",
        "DJANGO_SECRET_KEY": "of the tests",
    }
    return subprocess.run([sys.executable, "manage.py", *arguments], cwd=MONOLITH, env=environment, capture_output=True, text=True, check=False)


def ask(endpoint: Endpoint, statement: str) -> list[tuple[Any, ...]]:
    connection = connect(endpoint, application_name="tests", readonly=True)
    try:
        return rows(connection, statement)
    finally:
        connection.close()


def one(endpoint: Endpoint, statement: str) -> Any:
    return ask(endpoint, statement)[0][0]


@pytest.fixture(scope="module")
def monolith(postgres: PostgresServer) -> Iterator[Endpoint]:
    connection = connect(postgres.endpoint(), application_name="tests", autocommit=True)
    rows(connection, "CREATE DATABASE monolith_of_the_tests TEMPLATE template0")
    endpoint = postgres.endpoint("monolith_of_the_tests")
    made = manage(endpoint, "migrate", "--verbosity=0")
    assert made.returncode == 0, made.stderr
    before = ask(endpoint, INDEXES)
    filled = manage(endpoint, "fill", f"--users={USERS}", "--sessions=120")
    assert filled.returncode == 0, filled.stderr
    assert ask(endpoint, INDEXES) == before, "the fill must leave the indexes as Django made them"
    yield endpoint
    rows(connection, "DROP DATABASE monolith_of_the_tests WITH (FORCE)")
    connection.close()


def test_the_tables_are_those_of_the_strategy(monolith: Endpoint) -> None:
    assert dict(ask(monolith, DESCRIBE)) == TABLES
    pairs = ask(monolith, UNIQUE_PAIRS)
    assert set(pairs) == PAIRS


def test_django_sees_no_difference_to_its_models(monolith: Endpoint) -> None:
    assert manage(monolith, "makemigrations", "--check", "--dry-run").returncode == 0


def test_every_user_was_made_and_fits_both_services(monolith: Endpoint) -> None:
    assert one(monolith, "SELECT count(*) FROM auth_user") == USERS
    assert one(monolith, "SELECT count(*) - count(DISTINCT email) + count(*) FILTER (WHERE trim(email) = '') FROM auth_user") == 0
    assert one(monolith, "SELECT max(length(name)) FROM auth_permission") == 100
    assert one(monolith, "SELECT max(length(name)) FROM auth_group") == 50
    for name in ("first_name", "last_name"):
        longest = f"""SELECT max(length(u.{name})) FROM auth_user AS u LEFT JOIN users_profile AS p ON p.user_id = u.id
                      WHERE coalesce(trim(p.{name}), '') = ''"""
        assert one(monolith, longest) <= 100


def test_the_shape_is_that_of_a_real_monolith(monolith: Endpoint) -> None:
    def share(table: str) -> float:
        return float(one(monolith, f"SELECT count(*) FROM {table}")) / USERS

    assert 0.85 < share("users_profile") < 0.95
    assert 0.55 < share("students") < 0.65
    assert 0.07 < share("companies") < 0.09
    assert 0.8 < share("users_role") < 1.1
    assert one(monolith, "SELECT max(id) > 2 * count(*) FROM auth_user"), "ids have gaps"


@pytest.mark.parametrize(
    "what",
    [
        "auth_user WHERE password LIKE '!%'",
        "auth_user WHERE password LIKE 'argon2$%'",
        "auth_user WHERE password LIKE 'bcrypt%'",
        "auth_user WHERE length(password) = 128",
        "auth_user WHERE length(username) = 150",
        "auth_user WHERE length(email) = 254",
        "auth_user WHERE NOT is_active",
        "auth_user WHERE is_staff AND NOT is_superuser",
        "auth_user WHERE is_superuser",
        "auth_user WHERE last_login IS NULL",
        "auth_user AS u WHERE first_name <> '' AND NOT EXISTS (SELECT FROM users_profile WHERE user_id = u.id)",
        "auth_user AS u WHERE first_name = '' AND last_name = '' AND NOT EXISTS (SELECT FROM users_profile WHERE user_id = u.id)",
        "users_profile WHERE phone = ''",
        "users_profile WHERE phone IS NULL",
        r"users_profile WHERE bio LIKE '%\\%'",
        "users_profile WHERE bio LIKE E'%\\n%'",
        "users_profile WHERE bio LIKE E'%\\t%'",
        "users_profile WHERE bio LIKE '%''%' OR first_name LIKE '%\"%'",
        "users_profile WHERE concat(bio, first_name, address) ~ '[\\U0001F000-\\U0001FFFF]'",
        "users_profile WHERE length(website_url) = 500",
        "users_profile WHERE date_of_birth = '9999-12-31'",
        "students WHERE gpa = 9.99",
        "students WHERE year_of_study = 2147483647",
        "students WHERE student_id = ''",
        *(f"students WHERE jsonb_typeof(skills) = '{kind}'" for kind in ("null", "boolean", "number", "string", "array", "object")),
        "students WHERE skills IS NULL",
        "users_role WHERE company_id IS NOT NULL AND granted_by IS NULL",
        "users_role WHERE granted_by IS NOT NULL AND expires_at IS NULL",
        "auth_group AS g WHERE NOT EXISTS (SELECT FROM auth_user_groups WHERE group_id = g.id)"
        " AND EXISTS (SELECT FROM auth_group_permissions WHERE group_id = g.id)",
        "auth_group AS g WHERE EXISTS (SELECT FROM auth_user_groups WHERE group_id = g.id)"
        " AND NOT EXISTS (SELECT FROM auth_group_permissions WHERE group_id = g.id)",
        "auth_user_groups JOIN auth_group_permissions USING (group_id) JOIN auth_user_user_permissions USING (user_id, permission_id)",
        "django_session WHERE expire_date < now()",
        "django_session WHERE expire_date > now()",
        "django_session WHERE session_data LIKE '.%'",
    ],
)
def test_the_data_is_as_awkward_as_production(monolith: Endpoint, what: str) -> None:
    assert one(monolith, f"SELECT count(*) FROM {what}") > 0


def test_a_known_account_has_a_permission_of_its_own_that_its_group_gives_too(monolith: Endpoint) -> None:
    found = one(
        monolith,
        "SELECT count(*) FROM auth_user AS u JOIN auth_user_groups AS m ON m.user_id = u.id JOIN auth_group_permissions AS g USING (group_id)"
        f" JOIN auth_user_user_permissions AS p ON p.user_id = u.id AND p.permission_id = g.permission_id WHERE u.id = {BY_NAME['member'].id}",
    )
    assert found == 1


def test_every_known_password_and_session_works_in_django(monolith: Endpoint) -> None:
    script = """
from django.contrib.auth import authenticate
from django.db import transaction
from django.test import Client
from edulink.accounts import ACCOUNTS
for account in ACCOUNTS:
    for key, live in ((account.session_key, True), (account.expired_session_key, False)):
        client = Client()
        client.cookies["sessionid"] = key
        seen = client.get("/whoami/").json()
        alive = live and account.has_session and account.is_active
        assert (seen["username"] == account.username) == alive, (account.username, live, seen)
for account in ACCOUNTS:
    with transaction.atomic():
        works = authenticate(username=account.username, password=account.password or "")
        assert (works is not None) == (account.password is not None and account.is_active), account.username
        assert authenticate(username=account.username, password="wrong") is None
        transaction.set_rollback(True)  # a login renews an old hash, which ends the account's sessions
"""
    done = manage(monolith, "shell", "-c", script)
    assert done.returncode == 0, done.stderr[-500:]
    assert len({account.hash.split("$")[0] for account in ACCOUNTS}) == 8


def test_a_filled_monolith_is_never_filled_again(monolith: Endpoint) -> None:
    again = manage(monolith, "fill", "--users=100")
    assert again.returncode != 0
    assert "has users already" in again.stderr
    assert manage(monolith, "fill", "--users=100", "--if-empty").returncode == 0
    assert one(monolith, "SELECT count(*) FROM auth_user") == USERS


def test_the_same_seed_gives_the_same_rows_and_options_are_obeyed(databases: Callable[..., Endpoint]) -> None:
    digests = []
    for seed in (7, 7, 8):
        endpoint = databases()
        assert manage(endpoint, "migrate", "--verbosity=0").returncode == 0
        done = manage(endpoint, "fill", "--users=100", f"--seed={seed}", "--group-permissions=0", "--sessions=0")
        assert done.returncode == 0, done.stderr
        assert one(endpoint, "SELECT count(*) FROM auth_group_permissions") == 0
        assert one(endpoint, "SELECT count(*) FROM auth_user") == 100
        digests.append(
            one(
                endpoint,
                "SELECT md5(string_agg(p::text || u::text, '' ORDER BY u.id)) FROM auth_user AS u JOIN users_profile AS p ON p.user_id = u.id",
            )
        )
    assert digests[0] == digests[1] != digests[2]
