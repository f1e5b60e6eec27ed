# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nobody is logged out, every password works, and nobody gets in who should not: flows at a real Django service."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

# The known accounts of the lab's monolith; the file needs no Django.
_spec = importlib.util.spec_from_file_location("edulink_accounts", Path(__file__).parents[1] / "monolith" / "edulink" / "accounts.py")
assert _spec is not None
assert _spec.loader is not None
accounts: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = accounts
_spec.loader.exec_module(accounts)
ACCOUNTS, BY_NAME = accounts.ACCOUNTS, accounts.BY_NAME
WITH_SESSION = [account for account in ACCOUNTS if account.has_session and account.is_active]
WITH_PASSWORD = [account for account in ACCOUNTS if account.password is not None and account.is_active]


def name(account: Any) -> str:
    return account.username


@pytest.mark.parametrize("account", WITH_SESSION, ids=name)
def test_a_browser_of_the_monolith_is_still_logged_in(service: Any, account: Any) -> None:
    before = service.redis.pexpiretime(service.key(account.session_key))
    seen = service.ask("whoami", account.session_key)
    assert (seen.status, seen.body["username"]) == (200, account.username)
    assert seen.body["cart"]["owner"] == account.username
    assert len(seen.body["cart"]["items"]) == 3
    assert seen.body["id"][14] == "8"  # a UUIDv8 of the migration
    assert service.redis.pexpiretime(service.key(account.session_key)) == before


def test_a_carried_session_ends_at_the_second_it_ended_at_in_the_monolith(service: Any, migrated: Any, sql: Any) -> None:
    ends = dict(sql(migrated.source, "SELECT session_key, floor(extract(epoch FROM expire_date))::bigint FROM django_session"))
    for account in WITH_SESSION:
        assert service.redis.execute_command("EXPIRETIME", service.key(account.session_key)) == ends[account.session_key]


@pytest.mark.parametrize("account", WITH_PASSWORD, ids=name)
def test_every_known_password_logs_in(service: Any, account: Any) -> None:
    entered = service.ask("login", username=account.username, password=account.password)
    assert (entered.status, entered.body["username"]) == (200, account.username)
    assert entered.cookie
    assert service.ask("whoami", entered.cookie).body["username"] == account.username


@pytest.mark.parametrize("account", ACCOUNTS, ids=name)
def test_a_wrong_password_does_not(service: Any, account: Any) -> None:
    for wrong in ((account.password or "") + "x", account.hash, "!"):
        refused = service.ask("login", username=account.username, password=wrong)
        assert (refused.status, refused.cookie) == (403, None)


def test_an_inactive_user_gets_in_neither_by_password_nor_by_cookie(service: Any) -> None:
    inactive = BY_NAME["inactive"]
    assert service.ask("login", username=inactive.username, password=inactive.password).status == 403
    assert service.ask("whoami", inactive.session_key).body["username"] == ""


def test_an_expired_cookie_is_nobody(service: Any) -> None:
    assert service.ask("whoami", BY_NAME["ada"].expired_session_key).body == {
        "id": None, "username": "", "cart": None, "permissions": [], "moderates": False, "superuser": False,
    }  # fmt: skip


@pytest.mark.parametrize("change", [lambda key: key[:-1] + ("0" if key[-1] != "0" else "1"), lambda key: key.upper(), lambda key: key + "0", lambda key: "x"])
def test_a_tampered_cookie_is_nobody(service: Any, change: Any) -> None:
    assert service.ask("whoami", change(BY_NAME["ada"].session_key)).body["username"] == ""


def test_logout_ends_a_session_and_a_rerun_does_not_bring_it_back(service: Any) -> None:
    cookie = BY_NAME["ada"].session_key
    assert service.ask("logout", cookie).status == 200
    assert service.ask("whoami", cookie).body["username"] == ""
    result = service.carry()
    assert result.ended_in_service == 1
    assert not result.changed
    assert service.ask("whoami", cookie).body["username"] == ""


def test_a_cart_filled_at_the_service_survives_a_rerun(service: Any) -> None:
    cookie = BY_NAME["ada"].session_key
    assert service.ask("cart", cookie).status == 200
    result = service.carry()
    assert result.service == 1
    assert not result.changed
    assert service.ask("whoami", cookie).body["cart"]["added"] is True


def test_a_session_forged_in_the_monolith_is_not_carried(service: Any) -> None:
    result = service.carry()
    assert result.rejected["forged"] == 1
    assert result.rejected["undecodable"] == 2
    assert result.not_migrated == 1
    assert not result.changed


def test_a_superuser_may_do_everything(service: Any) -> None:
    seen = service.ask("whoami", BY_NAME["root"].session_key).body
    assert seen["superuser"]
    assert seen["moderates"]
    assert not service.ask("whoami", BY_NAME["ada"].session_key).body["moderates"]


def test_permissions_are_those_that_the_monolith_granted(service: Any, migrated: Any, sql: Any) -> None:
    granted = sql(
        migrated.source,
        "SELECT u.username, array_agg(DISTINCT c.app_label || '.' || p.codename ORDER BY c.app_label || '.' || p.codename)"
        " FROM auth_user u LEFT JOIN (SELECT user_id, permission_id FROM auth_user_user_permissions UNION SELECT g.user_id, p.permission_id"
        " FROM auth_user_groups g JOIN auth_group_permissions p USING (group_id)) h ON h.user_id = u.id JOIN auth_permission p ON p.id = h.permission_id"
        " JOIN django_content_type c ON c.id = p.content_type_id WHERE u.id < 100 GROUP BY 1",
    )
    expected = dict(granted)
    assert len(expected["member"]) > 2
    for account in WITH_SESSION:
        assert service.ask("whoami", account.session_key).body["permissions"] == expected.get(account.username, []), account.username


def test_permissions_of_a_group_reach_its_member(service: Any) -> None:
    seen = service.ask("whoami", BY_NAME["member"].session_key).body
    assert seen["moderates"]
    assert not seen["superuser"]


def test_an_outdated_session_is_not_revived(service: Any, migrated: Any, sql: Any) -> None:
    """A password that was changed ends the other sessions of a user, in the monolith and in the service."""
    sql(migrated.targets["auth_service"], "UPDATE auth_service.users SET password_hash = 'changed' WHERE username = 'ada'")
    service.redis.flushdb()
    service.carry()
    assert service.ask("whoami", BY_NAME["ada"].session_key).body["username"] == ""
    assert service.ask("whoami", BY_NAME["root"].session_key).body["username"] == "root"
