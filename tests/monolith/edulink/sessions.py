# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions as Django signs them: live and expired, small and compressed, of the old format, and a few that nobody should trust."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import connection
from django.utils.crypto import salted_hmac

from edulink.accounts import ACCOUNTS, Account

SIGNED = 2_000  # more sessions than these are copies under other keys: a signature does not cover the key


def fill_sessions(count: int, now: datetime | None = None) -> int:
    """Make `count` sessions beside those of the known accounts; return how many were made in all."""
    now = now or datetime.now(UTC)
    made = [*_known(now), *_many(min(count, SIGNED), now)]
    Session.objects.bulk_create(made, batch_size=500)
    if count > SIGNED:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO django_session (session_key, session_data, expire_date)"
                " SELECT md5('copy' || i), s.session_data, s.expire_date + i %% 86400 * interval '1 second'"
                " FROM generate_series(1, %s) AS i JOIN (SELECT row_number() OVER (ORDER BY session_key) - 1 AS place, *"
                " FROM django_session) AS s ON s.place = i %% %s",
                [count - SIGNED, len(made)],
            )
    return len(made) + max(0, count - SIGNED)


def login(user: Any) -> dict[str, str]:
    """Return what a login leaves in the session."""
    return {
        "_auth_user_id": str(user.pk),
        "_auth_user_backend": settings.AUTHENTICATION_BACKENDS[0],
        "_auth_user_hash": user.get_session_auth_hash(),
    }


def cart(items: int, owner: str) -> dict[str, Any]:
    """Return a shopping cart."""
    goods = ["Notizbuch", "Füller ✒️", 'Atlas "World"', "地図"]
    return {
        "owner": owner,
        "items": [{"sku": f"B-{i:04}", "title": goods[i % 4], "price": "12.50", "amount": 1 + i % 3} for i in range(items)],
    }


def legacy(data: dict[str, Any]) -> str:
    """Encode a session as Django did before 3.1: base64 of hash, colon, JSON."""
    serialized = json.dumps(data, separators=(",", ":")).encode("latin-1")
    digest = salted_hmac("django.contrib.sessionsSessionStore", serialized).hexdigest()
    return base64.b64encode(digest.encode() + b":" + serialized).decode("ascii")


def _known(now: datetime) -> Iterator[Session]:
    users = get_user_model().objects.in_bulk([account.id for account in ACCOUNTS])
    for account in ACCOUNTS:
        if account.has_session:
            data = login(users[account.id]) | {"cart": cart(3, account.username)}
            encoded = SessionStore().encode(data)
            yield _session(account.session_key, encoded, _end(account, now))
            yield _session(account.expired_session_key, encoded, now - timedelta(days=2))


def _end(account: Account, now: datetime) -> datetime:
    return now + timedelta(days=7, seconds=account.id, microseconds=123456)


def _many(count: int, now: datetime) -> Iterator[Session]:
    users = list(get_user_model().objects.filter(pk__gt=100).order_by("pk")[:500])
    for i in range(count):
        user = users[i % len(users)]
        end = now + timedelta(days=1 + i % 13, seconds=i, microseconds=i * 37 % 1_000_000)
        data: dict[str, Any] = login(user)
        kind = i % 20
        if kind == 0:  # anonymous
            data = {"cart": cart(2, "")}
        elif kind == 3:  # large enough to be compressed
            data["cart"] = cart(40, f"u{user.pk}")
        elif kind == 6:
            data |= {"cart": cart(1, f"u{user.pk}"), "language": "日本語", "note": None, "seen": [1, 2.5, True]}
        if kind in (1, 4):
            end = now - timedelta(days=1 + i % 400, seconds=i)
        if i == 5:
            data["_auth_user_id"] = "99"  # a user who was deleted
        encoded = legacy(data) if kind == 2 else SessionStore().encode(data)
        if i == 25:  # forged: signed with another key
            encoded = encoded[:-4] + ("AAAA" if not encoded.endswith("AAAA") else "BBBB")
        elif i == 45:
            encoded = "this is no session"
        elif i == 65:
            encoded = ""
        yield _session(hashlib.sha256(f"{i}".encode()).hexdigest()[:32], encoded, end)


def _session(key: str, encoded: str, end: datetime) -> Session:
    return Session(session_key=key, session_data=encoded, expire_date=end)
