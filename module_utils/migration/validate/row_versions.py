# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell whether rows that were read before are still the same, by their versions, without reading their columns.

What is seen of rows is a fingerprint of each version's table, place and raw transaction id (tableoid, ctid, xmin), mixed before they are
summed. That alone is no proof, so it also holds what could bring other content under the same versions:

- a rewrite (VACUUM FULL, CLUSTER) moves rows and keeps their xmin: the tables' file nodes;
- columns renamed, or dropped and added with a default, change no row: the tables' columns, defaults of old rows, generated columns, enum labels;
- a restored database, a clone or a promoted standby has versions of its own: system identifier, timeline and database.

Raw transaction ids come again after 2^32 transactions, and a frozen row keeps its old one. So the id below which all transactions had ended
when the rows were read is kept too: rows are the same only when none is from there on, and that is less than half a round ago.
A server that crashes may lose asynchronous commits and give their ids to others; settle() waits until those seen are in its WAL.
Source: PostgreSQL manual 25.1.5 (wraparound), 28.4 (asynchronous commit), 5.6 and ALTER TABLE (columns without a rewrite); htup_details.h (HEAP_XMIN_FROZEN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..postgres.quote import literal
from .readers import Ask

HALF_A_ROUND = 1 << 31

# SQL of text: which server, which history, which database.
_PLACE = """(SELECT concat_ws(' ', s.system_identifier, d.oid, CASE WHEN pg_is_in_recovery()
    THEN 'standby ' || greatest((SELECT timeline_id FROM pg_control_checkpoint()), (SELECT min_recovery_end_timeline FROM pg_control_recovery()))
    ELSE left(pg_walfile_name(CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn() END), 8) END)
    FROM pg_control_system() AS s, pg_database AS d WHERE d.datname = current_database())"""
_TREE = (
    "WITH RECURSIVE tree (oid) AS (SELECT unnest({tables}::regclass[])::oid UNION SELECT i.inhrelid FROM pg_inherits AS i JOIN tree ON tree.oid = i.inhparent)"
)
_SHAPE = """(SELECT encode(sha256(convert_to(string_agg(concat_ws(' ', tree.oid, pg_relation_filenode(tree.oid), columns.listed), ';'
    ORDER BY tree.oid), 'UTF8')), 'hex') FROM tree, LATERAL (
        SELECT string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attmissingval::text,
            CASE WHEN a.attgenerated <> '' THEN pg_get_expr(v.adbin, v.adrelid) END,
            (SELECT string_agg(e.enumlabel, ' ' ORDER BY e.enumsortorder) FROM pg_enum AS e WHERE e.enumtypid = a.atttypid)), ',' ORDER BY a.attnum) AS listed
        FROM pg_attribute AS a LEFT JOIN pg_attrdef AS v ON v.adrelid = a.attrelid AND v.adnum = a.attnum
        WHERE a.attrelid = tree.oid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS columns)"""
_ALLOWED = (
    "SELECT bool_and(has_function_privilege(f.name, 'EXECUTE')) AND NOT EXISTS (SELECT FROM tree JOIN pg_class AS c USING (oid) WHERE c.relkind = 'f')"
    " FROM unnest(ARRAY['pg_control_system()', 'pg_control_checkpoint()', 'pg_control_recovery()', 'pg_walfile_name(pg_lsn)']) AS f (name)"
)
_ROWS = """(SELECT concat_ws(',', count(*), sum(hash_record_extended(ROW(v.form), 1)), sum(hash_record_extended(ROW(v.form), 2))) AS seen,
    min(age(v.xmin)) FILTER (WHERE age(v.xmin) > 0) AS youngest
    FROM (SELECT oidsend(tableoid) || tidsend(ctid) || xidsend(xmin) AS form, xmin FROM {item} OFFSET 0) AS v)"""


@dataclass(frozen=True)
class Versions:
    """What is seen of rows: their fingerprint, the youngest transaction that wrote one, the oldest that may not have ended, and the next."""

    seen: str
    youngest: int | None
    oldest: int
    next: int

    def still(self, seen: str, oldest: int) -> bool:
        """Tell whether these are the rows that were seen before, when all transactions before `oldest` had ended."""
        since = self.next - oldest
        return self.seen == seen and 0 <= since < HALF_A_ROUND and (self.youngest is None or self.youngest < oldest)


@dataclass(frozen=True)
class Versioned:
    """The statements that look at the versions of the rows of some FROM items."""

    allowed: str
    statement: str

    @classmethod
    def of(cls, items: Sequence[tuple[str, str]]) -> Versioned:
        """Return them for pairs of a quoted table and a FROM item of it, which may have a WHERE."""
        tree = _TREE.format(tables=f"ARRAY[{', '.join(literal(table) for table, _ in items)}]")
        names = [f"item{number}" for number in range(len(items))]
        rows = ", ".join(f"{_ROWS.format(item=item)} AS {name}" for name, (_, item) in zip(names, items, strict=True))
        return cls(
            f"{tree} {_ALLOWED}",
            f"{tree} SELECT concat_ws(';', {_PLACE}, {_SHAPE}, {', '.join(f'{name}.seen' for name in names)}),"
            # age() counts from a transaction that may be newer than the snapshot's.
            f" (pg_snapshot_xmax(now.s)::text::numeric - (least({', '.join(f'{name}.youngest' for name in names)}) - age(pg_snapshot_xmax(now.s)::xid)))::text,"
            f" pg_snapshot_xmin(now.s)::text, pg_snapshot_xmax(now.s)::text FROM (SELECT pg_current_snapshot() AS s) AS now, {rows}",
        )

    def look(self, ask: Ask) -> Versions | None:
        """Return the versions as the transaction sees them; None where they cannot be looked at."""
        if not ask(self.allowed)[0][0]:
            return None
        seen, youngest, oldest, following = ask(self.statement)[0]
        return Versions(seen, None if youngest is None else int(youngest), int(oldest), int(following))


def settle(ask: Ask) -> None:
    """Wait until what the transaction sees would outlive a crash: three times wal_writer_delay at most after the commit."""
    ask("SELECT pg_sleep(greatest(0, extract(epoch FROM now() + 3 * current_setting('wal_writer_delay')::interval - clock_timestamp())::float8))::text")
