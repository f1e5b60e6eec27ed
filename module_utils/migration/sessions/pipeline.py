# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rewrite batches and write them to the store, while the next one is on its way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from . import lua
from .ledger import Item, Ledger
from .rewrite import Rewriter
from .service_table import ServiceRow
from .tally import Row, Rules, Tally
from .users import Users


def consume(batches: Iterable[Sequence[Row]], users: Users, ledger: Ledger, rules: Rules, tally: Tally, *, write: bool, begun: bool) -> None:
    """Carry batches (only tell, without `write`); `begun` says that sessions were carried before."""
    rewriter = Rewriter(users, ledger.layout, rules, tally, write=write, rows=ledger.rows is not None)
    with ThreadPoolExecutor(1) as writer:  # the store works while the next batch is decoded
        pending: Future[None] | None = None
        for batch in batches:
            for items, dropped in rewriter.batches(batch):
                if pending is not None:
                    pending.result()
                pending = writer.submit(_store, ledger, rules, tally, items, dropped if begun else [], write)
        if pending is not None:
            pending.result()


def _store(ledger: Ledger, rules: Rules, tally: Tally, items: list[Item], dropped: list[str], write: bool) -> None:
    if items:
        said = ledger.carry(items, write=write, restore=rules.restore)
        tally.codes.update(said)
        ours = [item for item, code in zip(items, said, strict=True) if code in lua.UNCHANGED + lua.WRITTEN + lua.UPDATED]
        if ledger.rows is not None:
            tally.service_rows += ledger.rows.put([ServiceRow(item.session_key, item.row, item.expires) for item in ours], write=write)
        if rules.user_index:
            _index(ledger, rules.user_index, tally, [item for item in ours if item.user], write)
    if dropped:
        owners = ledger.owners(dropped) if rules.user_index and write else []
        said = ledger.remove(dropped, write=write, forget=False)
        tally.removed += said.count(lua.REMOVED)
        if rules.user_index and owners:
            unindex(ledger, rules.user_index, [pair for pair, code in zip(zip(owners, dropped, strict=True), said, strict=True) if code == lua.REMOVED[0]])


def _index_key(prefix: str, user: str) -> bytes:
    return f"{prefix}{user[:8]}-{user[8:12]}-{user[12:16]}-{user[16:20]}-{user[20:]}".encode()


def _index(ledger: Ledger, prefix: str, tally: Tally, items: Sequence[Item], write: bool) -> None:
    """Add sessions to the sets of their users; a set lasts as long as its longest session."""
    if not write:
        tally.indexed += ledger.store.each([("SISMEMBER", _index_key(prefix, item.user), item.session_key) for item in items]).count(0)
        return
    commands: list[tuple[Any, ...]] = []
    for item in items:
        key = _index_key(prefix, item.user)
        commands += [("SADD", key, item.session_key), ("EXPIREAT", key, item.expires, "NX"), ("EXPIREAT", key, item.expires, "GT")]
    tally.indexed += ledger.store.each(commands)[::3].count(1)


def unindex(ledger: Ledger, prefix: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Take sessions (user, session key) out of the sets of their users."""
    ledger.store.each([("SREM", _index_key(prefix, user), session_key) for user, session_key in pairs if user])
