# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service with cached_db, and with a secret key that was rotated: its own rows let it save and end carried sessions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.logins.test_logins import BY_NAME, WITH_SESSION

ROWS = "SELECT count(*) FROM auth_service.django_session"
COOKIE = BY_NAME["ada"].session_key


@pytest.fixture
def service(cached_db: Any, migrated: Any, sql: Any) -> Any:
    """The service on the day of the migration."""
    cached_db.redis.flushdb()
    sql(migrated.targets["auth_service"], "TRUNCATE auth_service.django_session")
    cached_db.carry()
    return cached_db


def test_everybody_is_still_logged_in(service: Any) -> None:
    for account in WITH_SESSION:
        seen = service.ask("whoami", account.session_key)
        assert (seen.status, seen.body["username"], seen.body["cart"]["owner"]) == (200, account.username, account.username)


def test_a_changed_cart_is_saved_and_survives_a_rerun(service: Any) -> None:
    assert service.ask("cart", COOKIE).status == 200
    assert service.ask("whoami", COOKIE).body["cart"]["added"] is True
    result = service.carry()
    assert (result.service, result.changed) == (1, False)
    service.redis.delete(service.key(COOKIE))
    assert service.ask("whoami", COOKIE).body["cart"]["added"] is True  # from the table


def test_a_session_that_the_cache_has_lost_is_read_from_the_table(service: Any) -> None:
    service.redis.flushdb()
    assert service.ask("whoami", COOKIE).body["username"] == "ada"


def test_logout_ends_a_session_and_a_rerun_does_not_bring_it_back(service: Any, migrated: Any, sql: Any) -> None:
    before = sql(migrated.targets["auth_service"], ROWS)[0][0]
    assert service.ask("logout", COOKIE).status == 200
    result = service.carry()
    assert (result.ended_in_service, result.changed) == (1, False)
    assert service.ask("whoami", COOKIE).body["username"] == ""
    assert sql(migrated.targets["auth_service"], ROWS)[0][0] == before - 1
