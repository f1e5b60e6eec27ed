# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Canary accounts log in by each hasher of Django; what cannot is told by its place and the reason, and no part of a password is shown."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.validate import test_logins

pytest.importorskip("django")

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.mutation import world as w

HASHERS = ("pbkdf2_sha256", "pbkdf2_sha1", "argon2", "bcrypt_sha256", "bcrypt", "scrypt", "md5")
PASSWORD = "right-Pässword$1"
OTHERS = {
    "an unusable one": ("!Yq0fF1UgkzQWqQ3Zf2wJQb8n6mH4x5sT7uVwXyZa", "no usable password"),
    "none": ("", "no password hash"),
    "an old one": ("sha1$salt$0123456789abcdef0123456789abcdef01234567", "Django does not know the format"),
    "an older one": ("5f4dcc3b5aa765d61d8327deb882cf99", "Django does not know the format"),
    "one of another program": ("hush$salt$0123", "Django does not know the format"),
    "plain text": ("secret$hidden", "Django does not know the format"),
    "more plain text": ("PlainTextValue", "Django does not know the format"),
    "one that was cut": ("pbkdf2_sha256$600000$salt", "the hash could not be checked"),
    "a cut argon2": ("argon2$argon2id$v=19$m=102400", "the password does not match"),
}


@pytest.fixture
def world(postgres: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    return w.cloned_world(postgres, databases)


def give(world: w.World, hashes: dict[str, str]) -> None:
    """Have only these users, by name; each is active but the one named so."""
    connection = connect(world.targets["auth_service"], application_name="tests", autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE auth_service.users CASCADE")
        for name, encoded in hashes.items():
            cursor.execute(
                "INSERT INTO auth_service.users (id, username, email, password_hash, is_active) VALUES (gen_random_uuid(), %s, %s, %s, %s)",
                (name, f"{name}@example.org", encoded, name != "inactive"),
            )
    connection.close()


def test_each_hasher_of_django_lets_the_right_password_in_and_no_other(world: w.World) -> None:
    test_logins.check(world.context, [("nobody", "x")])  # configures Django
    from django.contrib.auth.hashers import make_password

    give(world, {name: make_password(PASSWORD, hasher=name) for name in HASHERS} | {"inactive": make_password(PASSWORD, hasher="md5")})
    found = test_logins.check(world.context, [(name, PASSWORD) for name in HASHERS])
    assert found.passed, found.lines
    assert found.verdict == "7 of 7 canary accounts can log in; Django knows the format of every password hash"
    assert set(dict(found.formats)) == set(HASHERS)
    wrong = test_logins.check(world.context, [(name, "Wrong-" + PASSWORD) for name in HASHERS] + [("inactive", PASSWORD), ("no such", PASSWORD)])
    assert [why for _, why in wrong.failed] == ["the password does not match"] * 7 + ["the user is not active", "no such user in the target"]
    assert [place for place, _ in wrong.failed] == list(range(1, 10))
    assert not wrong.passed
    said = json.dumps(wrong.to_dict()) + "".join(wrong.lines)
    assert not any(word in said for word in ("ssword$1", 'no such"', "inactive"))


def test_what_is_no_hash_of_django_is_told_with_its_count_and_shows_nothing(world: w.World) -> None:
    give(world, {name: encoded for name, (encoded, _) in OTHERS.items()} | {f"many {n}": f"acme_sha$s{n}$0123456789" for n in range(test_logins.SHARED)})
    found = test_logins.check(world.context, [(name, "x") for name in OTHERS])
    assert len(found.failed) == len(OTHERS)
    for (_, why), (name, (_, wanted)) in zip(found.failed, OTHERS.items(), strict=True):
        assert why.startswith(("the user has " + wanted, wanted)), name
    assert dict(found.formats) == {"acme_sha": 10, "argon2": 1, "empty": 1, "pbkdf2_sha256": 1, "sha1": 1, "unknown": 4, "unusable": 1}
    assert found.unknown == ("acme_sha (10)", "sha1 (1)", "unknown (4)")
    said = json.dumps(found.to_dict()) + found.verdict + "".join(found.lines)
    assert not any(word in said for word in ("secret", "hidden", "hush", "PlainText", "salt"))


def test_user_names_and_passwords_stand_in_no_statement_that_the_server_logs(postgres: PostgresServer, world: w.World) -> None:
    names = [f"sécret name {number} '\\\"%s" + "x" * 60 for number in range(60)]  # more than one setting holds
    give(world, {name: f"md5$salt${hashlib.md5(f'salt{PASSWORD}'.encode()).hexdigest()}" for name in names})
    settings = {"log_statement": "all", "log_min_duration_statement": "0", "log_parameter_max_length": "-1", "log_connections": "on"}
    server = connect(postgres.endpoint(), application_name="tests", autocommit=True)
    try:
        for name, value in settings.items():
            driver.rows(server, f"ALTER SYSTEM SET {name} = '{value}'")
        driver.rows(server, "SELECT pg_reload_conf()")
        begin = postgres.log.stat().st_size
        found = test_logins.check(world.context, [(name, PASSWORD) for name in [*names, "no such " + names[0], "y" * 5000]])
        logged = postgres.log.read_bytes()[begin:].decode(errors="replace")
    finally:
        for name in settings:
            driver.rows(server, f"ALTER SYSTEM RESET {name}")
        driver.rows(server, "SELECT pg_reload_conf()")
        server.close()
    assert [place for place, _ in found.failed] == [61, 62], found.lines
    assert logged.count("json_array_elements_text") >= 2, "the statements are logged, in several sessions"
    for name in (*names, PASSWORD, "yyyyyyyy"):
        packed = base64.b64encode(name.encode()).decode()[:24]
        assert not any(word in logged for word in (name[:12], name[-80:], packed, PASSWORD)), name
    assert "xxxxxxxx" not in logged


def test_a_user_name_is_compared_as_its_column_compares(world: w.World) -> None:
    target = connect(world.targets["auth_service"], application_name="tests", autocommit=True)
    driver.rows(target, "ALTER TABLE auth_service.users ALTER COLUMN username TYPE character(200)")  # `character` alone would be one letter
    target.close()
    give(world, {"Admin": f"md5$salt${hashlib.md5(f'salt{PASSWORD}'.encode()).hexdigest()}"})
    assert test_logins.check(world.context, [("Admin", PASSWORD), ("Admin  ", PASSWORD)]).passed
    assert not test_logins.check(world.context, [("A", PASSWORD)]).passed
