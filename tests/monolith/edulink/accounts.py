# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The accounts of every lab whose passwords are known: one for each password format and each kind of user.

The hashes were made by Django 5.2 (`make_password`). Nothing here needs Django, so that any test may import it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Account:
    """A user of the monolith whose password is known (None: no password works)."""

    id: int
    username: str
    password: str | None
    hash: str
    is_active: bool = True
    is_staff: bool = False
    is_superuser: bool = False
    first_name: str = ""
    last_name: str = ""
    has_profile: bool = True
    groups: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()  # own ones, app_label.codename
    has_session: bool = True

    @property
    def email(self) -> str:
        """Return the account's address."""
        return f"{self.username}@known.example"

    @property
    def session_key(self) -> str:
        """Return the key (the browser's cookie) of the account's live session; only with `has_session`."""
        return hashlib.sha256(f"live:{self.username}".encode()).hexdigest()[:32]

    @property
    def expired_session_key(self) -> str:
        """Return the key of the account's expired session; only with `has_session`."""
        return hashlib.sha256(f"expired:{self.username}".encode()).hexdigest()[:32]


ACCOUNTS: tuple[Account, ...] = (
    Account(
        1,
        "root",
        "root-of-all-8",
        "pbkdf2_sha256$1000000$k2mAyalQIo7jOLST0RReop$jM3TbLHdO+pV2a8ZBG8Px1Muh3Oo6wNzJUHEivhbH6Y=",
        is_staff=True,
        is_superuser=True,
        has_profile=False,
    ),
    Account(
        2,
        "ada",
        "ada-reads-10-books",
        "pbkdf2_sha256$1000000$2JCpy9qT9VIdxH4WYTK8xc$/3jn6XqO6uJ3QY7w05AjfhHxwC+Vq0RydE6K1I6jo1U=",
        first_name="Ada",
        last_name="Lovelace",
    ),
    Account(3, "barbara", "old-but-gold-1", "pbkdf2_sha1$1000000$q7r2tKaD7MsvTHzBsotcUo$w+ccjmFHwuwLo3h8XAv+1KKEOlY="),
    Account(
        4,
        "carl",
        "argon-is-noble-2",
        "argon2$argon2id$v=19$m=102400,t=2,p=8$QXJRWFVpSW9HQVR0ZktmVUk1ejJpNw$CaHOltP+q2vn/W7aU4mULg4FKwZ0tVFJIZMaCe83Ytk",
    ),
    Account(5, "dorothy", "blow-fish-3", "bcrypt_sha256$$2b$12$7Xyfsr0W2K4Y7eZqNpHAye941ixNOKCcU2cG5hsGX7SJ6wQ/lf.2."),
    Account(6, "edsger", "plain-blow-fish-4", "bcrypt$$2b$12$Mt1o3Oagb6mWWun9agwUz.u/r/9rLP3BFhxhFx/hoH.VJKFWm9in."),
    Account(
        7,
        "frances",
        "salty-es-crypt-5",
        "scrypt$16384$T7IKqQqRo4ckdDN85zWLVA$8$5$6ZjEUDS97+/hc2k0Ia/5s4Cctk7KzeAjy5PHcRO9selQZYjyZviJ+qKic9JC3+zwtijIUpUXvx1OgnM09jRR7A==",
    ),
    Account(8, "grace", "from-the-nineties-6", "md5$k9w0vGT4NyivEbUBjP62Kt$021f5679ce1f41334d8bf608baecc5a7"),
    Account(9, "hedy", None, "!zSMEkhqYDnMxOeTGE58e0RKXUTCwQ7ROGMrXbzoc", has_session=False),
    Account(
        10,
        "jörg",
        "pässwörd 🔑 7",
        "pbkdf2_sha256$1000000$R9mXrLdeoYE316ovniA58q$NVl/h/eUMuglIVZvYqxZr1A0/7iAsWwQ12RMOkZMrWM=",
        first_name="Jörg",
        last_name='O\'Neill "Ünïcode" 🎓',
        has_profile=False,
    ),
    Account(
        11,
        "margaret",
        "staff-only-9",
        "pbkdf2_sha256$1000000$4J7VKB5zvG8UVCUvG2UVHN$89pD0iLmvUDJs+C0qMij6X3KLViUcZnacK6Yqkx+D2s=",
        is_staff=True,
        permissions=("edulink.add_company", "auth.view_user"),
    ),
    Account(
        12,
        "inactive",
        "gone-away-10",
        "pbkdf2_sha256$1000000$epQ5FZKrbnEuNPahMvsbiS$HtVAsNT9Q4xG1f/Zm/NDLkipBw5+E+MSQutYUvio67A=",
        is_active=False,
    ),
    # The own permission is one that the group teachers has too, as long as groups have permissions at all.
    Account(
        13,
        "member",
        "member-11",
        "argon2$argon2id$v=19$m=102400,t=2,p=8$eDVqVk4ySGpWanZhdXlMMm1laHIwNg$vwSZ1HRi9U+6svBkUDqx0nxcn/mCkK1PRzjnNM2706U",
        groups=("teachers", "alumni"),
        permissions=("auth.add_group", "edulink.moderate_profile"),
    ),
)
BY_NAME = {account.username: account for account in ACCOUNTS}
