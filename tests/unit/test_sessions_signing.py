# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions are read as Django writes them, and nothing else is."""

from __future__ import annotations

import base64
import pickle
import zlib

import pytest
from ansible.module_utils.migration.sessions import signing
from ansible.module_utils.migration.sessions.cache_layout import Layout, key_slot, neutral, slot, tags
from ansible.module_utils.migration.sessions.key_set import Seen
from ansible.module_utils.migration.sessions.reset_links import reset_links
from ansible.module_utils.migration.validate import test_logins
from hypothesis import given, settings
from hypothesis import strategies as st

SECRET = "a secret of the monolith"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def django_signing():
    """Return django.core.signing with the monolith's secret."""
    test_logins.django_hashers()  # one process configures Django once
    from django.core import signing as core

    return core


def by_django(core, session, *, secret=SECRET, compress=True, serializer=None):
    serializer = serializer or core.JSONSerializer
    return core.dumps(session, key=secret, salt=signing.SESSION_SALT, serializer=serializer, compress=compress)


@pytest.mark.parametrize("compress", [True, False])
def test_what_django_signs_is_read(django_signing, compress: bool) -> None:
    session = {"cart": [1, 2.5, None, {"é": "\U0001f600" * 50}], "_auth_user_id": "7"}
    assert signing.decoder([SECRET])(by_django(django_signing, session, compress=compress)) == session


@settings(deadline=None)  # machines are busy
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_what_we_sign_django_reads(session: dict) -> None:
    test_logins.django_hashers()  # one process configures Django once
    from django.core import signing as core

    assert core.loads(signing.encode(session, SECRET), key=SECRET, salt=signing.SESSION_SALT) == session
    assert signing.decoder(["other", SECRET])(signing.encode_legacy(session, SECRET)) == session
    own = "shop.engines.OwnStore"
    assert signing.decoder([SECRET], own)(signing.encode_legacy(session, SECRET, salt=own)) == session


@pytest.mark.parametrize("position", [0, 3, 20, -1])
def test_a_tampered_session_is_forged(position: int) -> None:
    data = signing.encode({"_auth_user_id": "1", "cart": "x" * 99}, SECRET)
    changed = "A" if data[position] != "A" else "B"
    tampered = changed + data[1:] if position == 0 else data[:position] + changed + (data[position + 1 :] if position != -1 else "")
    with pytest.raises(signing.Rejected, match="forged"):
        signing.decoder([SECRET])(tampered)


def test_a_session_of_another_secret_or_salt_is_forged() -> None:
    for data in (signing.encode({}, "another"), signing.encode({}, SECRET, salt="other"), signing.encode_legacy({"a": 1}, "another")):
        with pytest.raises(signing.Rejected, match="forged"):
            signing.decoder([SECRET])(data)


def test_a_pickled_session_is_never_unpickled(django_signing) -> None:
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a session was unpickled",))

    class Serializer:
        def dumps(self, value):
            return pickle.dumps(value)

    with pytest.raises(signing.Rejected, match="pickled"):
        signing.decoder([SECRET])(by_django(django_signing, {"x": Bomb()}, serializer=Serializer))


@pytest.mark.parametrize("data", ["", "not a session", "a:b", ":", "::", base64.b64encode(b"no colon").decode(), "é:ü", "\U0001f600"])
def test_garbage_is_rejected_with_a_reason(data: str) -> None:
    with pytest.raises(signing.Rejected) as caught:
        signing.decoder([SECRET])(data)
    assert caught.value.reason in ("forged", "undecodable")


@pytest.mark.parametrize("raw", [b"[1]", b"\xff", b"[" * 100_000, b'"text"', b"7"])
def test_a_right_signature_over_no_session_is_undecodable(raw: bytes) -> None:
    import hmac

    for payload in (signing._base64(raw), "." + signing._base64(zlib.compress(raw)), "." + signing._base64(raw), "!"):
        signed = f"{payload}:1tR0Q0"
        made = hmac.digest(signing.derive(signing.SESSION_SALT + "signer", SECRET), signed.encode(), "sha256")
        with pytest.raises(signing.Rejected, match="undecodable"):
            signing.decoder([SECRET])(f"{signed}:{signing._base64(made)}")


def test_a_hash_is_renewed_only_while_the_password_is_the_same() -> None:
    hashes = signing.AuthHashes([SECRET, "older"], "service")
    new = signing.auth_hash("pbkdf2$x", "service")
    assert hashes.renew(signing.auth_hash("pbkdf2$x", SECRET), "pbkdf2$x") == new
    assert hashes.renew(signing.auth_hash("pbkdf2$x", "older"), "pbkdf2$x") == new
    assert hashes.renew(signing.auth_hash("pbkdf2$x", SECRET, "sha1"), "pbkdf2$x") == new
    assert hashes.renew(signing.auth_hash("pbkdf2$x", SECRET), "pbkdf2$changed") is None
    assert hashes.renew(signing.auth_hash("pbkdf2$x", "unknown"), "pbkdf2$x") is None
    assert hashes.renew(None, "pbkdf2$x") is None
    assert hashes.renew("\ud800" * 64, "pbkdf2$x") is None


def test_the_hash_is_djangos() -> None:
    test_logins.django_hashers()  # one process configures Django once
    from django.utils.crypto import salted_hmac

    salt = "django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash"
    assert signing.auth_hash("argon2$é", SECRET) == salted_hmac(salt, "argon2$é", secret=SECRET, algorithm="sha256").hexdigest()


@settings(deadline=None)  # machines are busy
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_a_value_reads_back_and_is_the_same_every_time(session: dict) -> None:
    value = Layout().value(session, 0)
    assert pickle.loads(value) == session
    assert Layout().value(pickle.loads(value), 0) == value


def test_the_layouts_name_sessions_as_django_does() -> None:
    assert Layout().key_prefix == ":1:django.contrib.sessions.cache"
    assert Layout("cached_db", "svc", 3).key_prefix == "svc:3:django.contrib.sessions.cached_db"
    assert Layout("neutral", "app:").key_prefix == "app:session:"


def test_the_neutral_form_has_no_name_of_django() -> None:
    session = {"_auth_user_id": "u", "_auth_user_hash": "h", "_auth_user_backend": "b", "cart": [1]}
    assert neutral(session, 1_800_000_000) == {"version": 1, "user_id": "u", "expires_at": "2027-01-15T08:00:00Z", "data": {"cart": [1]}}


def test_every_slot_has_a_tag_in_it() -> None:
    assert slot(b"123456789") == 0x31C3  # the check value of the Redis cluster specification
    assert all(key_slot(b"x:{%s}" % tag) == number for number, tag in enumerate(tags()))


def test_reset_links_are_announced_with_their_life() -> None:
    finding, text = reset_links(259200)
    assert "3 days" in finding
    assert "cannot be counted" in finding
    assert "Forgot password" in text
    assert "12 were mailed" in reset_links(3600, 12)[0]


def test_what_was_seen_is_known_and_nothing_else() -> None:
    names = sorted((f"{number:032x}" for number in range(300_000)), key=lambda name: key_slot(Layout().key_prefix.encode() + name.encode()))
    noted = {name for name in names if not name.endswith("7")}
    with Seen(Layout().key_prefix) as seen:
        assert sum(map(len, seen.noting([[(name, "", 0) for name in noted]]))) == len(noted)
        assert seen._file.tell() > 0, "nothing was put on disk"
        assert {name for name in names if seen.has(name)} == noted
