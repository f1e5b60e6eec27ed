# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Digest rows: one canonical form on both sides, two 64-bit lanes a row, buckets by the leading bits of the id.

A row enters as record_send(ROW(id, column, ...)): the number of columns, then for each its type's OID, its length (-1 for
NULL) and the value as the type's send function writes it, text in the client encoding (UTF8). So NULL and '' differ, no two
rows have one form, numeric keeps its scale, json its text and an 8-byte timestamp all its bits; nothing is folded, and a
value cannot cross into the next column. An id is sent by uuid_send() on a target and is 16 bytes of bytea on the source.
The digest of the whole form is taken at once, so a bucket's sum is not linear in any column.

`record` hashes that form twice with PostgreSQL's own 64-bit hash, with two seeds: hash_record_extended of a record of one bytea, or,
where every server has it (18 and newer), hashbyteaextended, which gives the same and costs a tenth less of the whole scan (m).
`sha256` cuts two lanes from sha256(). Nothing promises that the first stays the same between major versions, nor
send functions for ever: handshake() compares golden vectors of every type in use on all servers. A type whose wire form
disagrees enters as text, and when the hash disagrees the digest is sha256.
Source: PostgreSQL manual 8.16, 9.4, 36.4; its source rowtypes.c (record_send, hash_record_extended), hashfn.c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import MigrationError
from ..plan import row_id
from ..plan.model import Part, Target
from ..plan.value_forms import GOLDEN, canonical, known, padded, trimmed
from ..postgres import driver
from ..postgres.quote import ident, literal

RECORD, SHA256, AUTO = "record", "sha256", "auto"
HAS_BYTEA_HASH = 180000  # server_version
SEEDS = (8231976, 7041776)
ID_OFFSET = 12  # in record_send()'s form: columns (4), type (4), length (4), then the first column, which is the id
MOST_BITS = 14  # of a first scan, so that the sums of a piece of a huge table can be kept
FINEST_BITS = 24
ROWS_A_BUCKET = 1024  # at most, half of it at least; fewer: more sums to carry from each piece; more: more rows to open for each difference

@dataclass(frozen=True)
class Digest:
    """How rows are digested: the method, the types that enter as text, why it is so, and whether bytes can be hashed without a record around them."""

    method: str
    as_text: tuple[str, ...] = ()
    reason: str = ""
    bare: bool = False

    @property
    def label(self) -> str:
        """Return how reports name it."""
        return "sha256 of the record's wire form, two lanes" if self.method == SHA256 else "64-bit hash of the record's wire form, two seeds"

    @property
    def lanes(self) -> tuple[str, str]:
        """Return the SQL of the lanes of a form that lane_source() brought in."""
        if self.method == SHA256:
            return ("('x' || encode(substring(d FROM 1 FOR 8), 'hex'))::bit(64)::bigint", "('x' || encode(substring(d FROM 9 FOR 8), 'hex'))::bit(64)::bigint")
        first, second = (_hashed("r", seed, bare=self.bare) for seed in SEEDS)
        return first, second

    def forms(self, row: str) -> str:
        """Return the joins that bring in r, the form of a row, and d when the method needs it; computed once for a row.

        Slower than within() by a tenth, but a filter can come before it, and PostgreSQL's parallel query reaches it.
        """
        form = f" CROSS JOIN LATERAL (SELECT {row} AS r OFFSET 0) AS form"
        return form + (" CROSS JOIN LATERAL (SELECT sha256(r) AS d OFFSET 0) AS hash" if self.method == SHA256 else "")

    def within(self, row: str, source: str) -> str:
        """Return the FROM item with r (and d) of every row of `source`, a FROM item with its WHERE; computed once for a row."""
        form = f"(SELECT {row} AS r FROM {source} OFFSET 0) AS form"
        return f"(SELECT r, sha256(r) AS d FROM {form} OFFSET 0) AS hash" if self.method == SHA256 else form


@dataclass(frozen=True)
class Row:
    """The canonical columns of one side of a table: SQL by column, the id's 16 bytes first. `source` is the FROM item.

    `name` is the SQL of the row's name where the 16 bytes do not tell it.
    """

    source: str
    id: str
    columns: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None

    def form(self, id_sql: str | None = None) -> str:
        """Return the SQL of the row's form."""
        return f"record_send(ROW({', '.join([id_sql or self.id, *self.columns.values()])}))"

    def column_digests(self) -> str:
        """Return the SQL of an array with the digest of each column, in order."""
        each = (f"encode(sha256(record_send(ROW({sql}))), 'hex')" for sql in self.columns.values())
        return f"ARRAY[{', '.join(each)}]::text[]"


def source_row(target: Target, part: Part, schema: str, digest: Digest) -> Row:
    """Return the canonical row of a part's projection."""
    scaled = padded(target, part)
    cells = {cell.name: canonical(trimmed(cell.sql, cell.name in scaled), cell.type, digest.as_text) for cell in part.cells}
    columns = {name: cells[name] for name in target.columns if name in cells and name not in target.identity}
    name = None if row_id.spread(target) else row_id.source_name(target, part)
    return Row(part.source(schema), row_id.source_bytes(target, part), columns, name)


def target_row(target: Target, digest: Digest) -> Row:
    """Return the canonical row of a target table (alias t)."""
    kinds = {cell.name: "uuid" if cell.is_id else cell.type for cell in target.parts[0].cells}
    scaled = padded(target, target.parts[0])
    columns = {
        name: canonical(trimmed(f"t.{ident(name)}", name in scaled), kinds[name], digest.as_text) for name in target.columns if name not in target.identity
    }
    name = None if row_id.spread(target) else row_id.target_name(target)
    return Row(f"{target.qualified} AS t", row_id.target_bytes(target), columns, name)


def bucket_of(bytes_sql: str, offset: int, bits: int) -> str:
    """Return the SQL of the bucket: the leading bits (FINEST_BITS at most) of an id that starts at `offset` of some bytes."""
    width = max(1, (bits + 7) // 8)
    joined = " | ".join(f"(get_byte({bytes_sql}, {offset + n}) << {8 * (width - 1 - n)})" for n in range(width - 1))
    whole = f"({joined} | get_byte({bytes_sql}, {offset + width - 1}))" if joined else f"get_byte({bytes_sql}, {offset})"
    return f"{whole} >> {8 * width - bits}" if bits < 8 * width else whole


def bits_for(rows: float) -> int:
    """Return how many leading bits make buckets of about ROWS_A_BUCKET rows."""
    return max(0, min(MOST_BITS, int(rows / ROWS_A_BUCKET).bit_length()))


def buckets(row: Row, digest: Digest, bits: int, where: str = "", *, shared: bool = False) -> str:
    """Return the SELECT of (bucket, rows, lane sums as text), one scan of the side; `shared` among PostgreSQL's parallel workers."""
    first, second = digest.lanes
    rows = f"{row.source}{digest.forms(row.form())}{where}" if shared else digest.within(row.form(), row.source + where)
    return (
        f"SELECT b, count(*), sum(h1)::text, sum(h2)::text FROM (SELECT {bucket_of('r', ID_OFFSET, bits)} AS b, {first} AS h1, {second} AS h2"
        f" FROM {rows}) AS digested GROUP BY b"
    )


def finer(row: Row, digest: Digest, bits: int, coarse: int, numbers: Sequence[int], where: str = "") -> str:
    """Return the same for the rows in some of the buckets of `coarse` bits, in buckets of more bits; bucket NULL has the rows without an id."""
    first, second = digest.lanes
    return (
        f"SELECT {bucket_of('i', 0, bits)} AS b, count(*), sum({first})::text, sum({second})::text"
        f" FROM {_chosen(row, digest, coarse, numbers, where)} GROUP BY b"
    )


def opened(row: Row, digest: Digest, bits: int, numbers: Sequence[int], extra: Sequence[str], where: str = "", *, nulls: bool = True) -> str:
    """Return the SELECT of (id and lanes as bytes, name if the id does not tell it, extra) of the rows in some buckets, with `nulls` also of
    those without an id.

    Other rows pay for their id only.
    """
    first, second = digest.lanes
    columns = ", ".join([f"coalesce(i, ''::bytea) || int8send({first}) || int8send({second})", *([row.name] if row.name else []), *extra])
    return f"SELECT {columns} FROM {_chosen(row, digest, bits, numbers, where, nulls)}"


def _chosen(row: Row, digest: Digest, bits: int, numbers: Sequence[int], where: str, nulls: bool = True) -> str:
    """Return the FROM item, WHERE included, of the rows in some buckets, with i, r (and d)."""
    among = f"({bucket_of('i', 0, bits)} = ANY ('{{{','.join(map(str, numbers))}}}'::int[]){' OR i IS NULL' if nulls else ''})"
    own = f" CROSS JOIN LATERAL (SELECT {row.id} AS i OFFSET 0) AS own"
    return f"{row.source}{own}{digest.forms(row.form('i'))}{where}{' AND ' if where else ' WHERE '}{among}"


def handshake(sides: Mapping[str, driver.Connection], targets: Sequence[Target], wanted: str = AUTO) -> Digest:
    """Agree on a digest with all servers, by golden vectors; `sides` are connections by name.

    MigrationError when `record` is wanted and the servers disagree, or when they do not even agree on text.
    """
    kinds = sorted({"uuid" if cell.is_id else cell.type for target in targets for part in target.parts for cell in part.cells} | {"text", "bytea"})
    bare = all(connection.server_version >= HAS_BYTEA_HASH for connection in sides.values())
    answers = {}
    for name, connection in sides.items():
        with driver.database_errors(name, "digesting golden vectors"):
            answers[name] = driver.rows(connection, _vectors(kinds, bare=bare))[0]
    first = next(iter(answers.values()))
    disagree = [index for index in range(len(first)) if any(answer[index] != first[index] for answer in answers.values())]
    as_text = tuple(kind for index, kind in enumerate(kinds) if 2 * index in disagree)
    for index, kind in enumerate(kinds):
        if 2 * index + 1 in disagree:
            raise MigrationError(f"{', '.join(sides)}: the servers write golden values of type {kind} as different text; nothing can be compared")
    hashes_agree = 2 * len(kinds) not in disagree
    if wanted == RECORD and not hashes_agree:
        raise MigrationError(f"{', '.join(sides)}: the servers disagree on golden vectors of PostgreSQL's record hash; set validate_digest to auto or sha256")
    method = SHA256 if wanted == SHA256 or not hashes_agree else RECORD
    reason = (
        f"golden vectors of {len(kinds)} types agree on {len(sides)} servers" if hashes_agree else "the servers disagree on golden vectors of the record hash"
    )
    if as_text:
        reason += f"; as text: {', '.join(as_text)}"
    return Digest(method, as_text, reason, bare)


def _hashed(form: str, seed: int, *, bare: bool) -> str:
    return f"hashbyteaextended({form}, {seed})" if bare else f"hash_record_extended(ROW({form}), {seed})"


def _vectors(kinds: Sequence[str], *, bare: bool) -> str:
    """Return the SELECT of, for each type, the digests of its values' wire form and of their text; then the record hash."""
    columns = []
    for kind in kinds:
        values = GOLDEN.get(kind, ())
        wire = [canonical(f"{literal(value)}::{kind}", kind) for value in values] + [f"(NULL::{kind})" if known(kind) else "NULL::text"]
        text = [f"({literal(value)}::{kind})::text" for value in values] + ["NULL::text"]
        columns += [f"encode(sha256(record_send(ROW({', '.join(items)}))), 'hex')" for items in (wire, text)]
    forms = [f"{literal(value)}::bytea" for value in GOLDEN["bytea"]]
    hashes = [f"{_hashed(form, seed, bare=bare)}::text" for form in forms for seed in SEEDS]
    columns.append(f"concat_ws(',', {', '.join(hashes)})")
    return f"SELECT {', '.join(columns)}"
