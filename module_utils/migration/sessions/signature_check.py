# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell a wrong key from forged sessions before anything is written: with a wrong key every session looks forged, and all would be logged out."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import MigrationError
from ..postgres import driver
from .ledger import Ledger
from .signing import FORGED, MOST_TEXT, TOO_LARGE, UNDECODABLE, Rejected, decoder
from .tally import Rules

DATA = f"CASE WHEN octet_length(session_data) <= {MOST_TEXT} THEN session_data END"  # what is larger is counted and never read
LIVE = "expire_date >= date_trunc('second', now()) + interval '1 second'"
SAMPLE = 10_000  # of more than twice as many sessions about so many are looked at


def require_genuine(source: driver.Connection, table: str, place: str, ledger: Ledger, rules: Rules, *, live: int, begun: bool) -> None:
    """MigrationError when more than `rules.forged_limit` percent of the signatures are not the monolith's.

    The share is that of all live sessions and, with `begun`, also that of those which were carried before. What has no signature
    at all does not count. Reads in the transaction of `source`.
    """
    decode = decoder(rules.secrets, rules.salt)
    forged = signed = forged_before = signed_before = 0
    for rows in _samples(source, table, place, live, rules.batch):
        verdicts = []
        for session_key, data in rows:
            try:
                decode(data)
            except Rejected as exc:
                if exc.reason in (UNDECODABLE, TOO_LARGE):
                    continue
                verdicts.append((session_key, exc.reason == FORGED))
            else:
                verdicts.append((session_key, False))
        signed += len(verdicts)
        forged += sum(bad for _, bad in verdicts)
        if begun:
            before = [bad for (_, bad), known in zip(verdicts, ledger.recorded([key for key, _ in verdicts]), strict=True) if known]
            signed_before += len(before)
            forged_before += sum(before)
    for bad, whole, what in ((forged, signed, "live sessions"), (forged_before, signed_before, "sessions carried before")):
        if bad * 100 > rules.forged_limit * whole:
            looked = " looked at" if live >= SAMPLE * 2 else ""
            raise MigrationError(
                f"{place}: {bad:,} of {whole:,} {what}{looked} in django_session have a signature that no given key made: with a wrong key their users"
                " would be logged out, so nothing was written or removed; give the monolith's SECRET_KEY as sessions_secret_key, the keys before it as"
                " sessions_secret_key_fallbacks (and sessions_salt, if its engine is home-made); if they really are forged accept it with"
                " -e sessions_forged_limit=100"
            )


def _samples(source: driver.Connection, table: str, place: str, live: int, size: int) -> Iterator[list[tuple[str, str | None]]]:
    """Yield key and data of all live sessions, or of one in so many, chosen by the hash of its key."""
    step = max(1, live // SAMPLE)
    with driver.database_errors(place, "looking at the signatures in django_session"), source.cursor(name="signatures") as cursor:
        cursor.execute(f"SELECT session_key, {DATA} FROM {table} WHERE {LIVE} AND hashtext(session_key) % {step} = 0")
        while rows := cursor.fetchmany(size):
            yield rows
