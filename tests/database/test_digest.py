# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Digests tell apart whatever is not the same, on servers that agree or do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan.model import Cell, Part, Target
from ansible.module_utils.migration.postgres.driver import Connection, Endpoint, connect, rows
from ansible.module_utils.migration.validate import digest as d

METHODS = (d.Digest(d.RECORD), d.Digest(d.RECORD, bare=True), d.Digest(d.SHA256), d.Digest(d.SHA256, as_text=("timestamp without time zone", "integer")))


@pytest.fixture
def connection(database: Endpoint) -> Iterator[Connection]:
    made = connect(database, application_name="tests", autocommit=True)
    yield made
    made.close()


def lanes(connection: Connection, digest: d.Digest, kind: str, *values: str) -> tuple[int, ...]:
    columns = {str(number): d.canonical(value if value == "NULL" else f"{value}::{kind}", kind, digest.as_text) for number, value in enumerate(values)}
    row = d.Row("(VALUES (1)) AS one", "'\\x00112233445566778899aabbccddeeff'::bytea", columns)
    ((_, count, first, second),) = rows(connection, d.buckets(row, digest, 16))
    assert count == 1
    return int(first), int(second)


CLOSE = [
    ("numeric", "'1.0'", "'1.00'"),
    ("numeric", "'0.1'", "'0.10'"),
    ("double precision", "'0'", "'-0'"),
    ("double precision", "'0.1'", "'0.10000000000000002'"),
    ("real", "'0'", "'-0'"),
    ("json", """'{"a":1,"b":2}'""", """'{"b":2,"a":1}'"""),
    ("json", """'{"a":1}'""", """'{"a":1,"a":1}'"""),
    ("jsonb", "'1.0'", "'1.00'"),
    ("jsonb", "'null'", "NULL"),
    ("jsonb", "'\"1\"'", "'1'"),
    ("text", "''", "NULL"),
    ("text", "'a'", "'a '"),
    ("text", "'e\u0301'", "'\u00e9'"),
    ("text", "'NULL'", "NULL"),
    ("character varying", "'A'", "'a'"),
    ("timestamp without time zone", "'2024-01-01 00:00:00.000001'", "'2024-01-01 00:00:00.000002'"),
    ("timestamp without time zone", "'0044-03-15'", "'0044-03-15 BC'"),
    ("timestamp with time zone", "'2024-01-01 00:00+00'", "'2024-01-01 00:00+01'"),
    ("interval", "'1 mon'", "'30 days'"),
    ("interval", "'1 day'", "'24:00:00'"),
    ("bigint", "'4294967296'", "'0'"),
    ("bigint", "'1'", "'-1'"),
    ("bigint", "'4294967297'", "'1'"),
    ("boolean", "false", "NULL"),
    ("uuid", "'00000000-0000-8000-8000-000000000000'", "'00000000-0000-8000-8000-000000000001'"),
    ("bytea", "'\\x00'", "'\\x0000'"),
    ("inet", "'10.0.0.1/32'", "'10.0.0.1/24'"),
    ("money", "'0.01'", "'0.02'"),
    ("point", "'(0,0)'", "'(0,-0)'"),
]


@pytest.mark.parametrize("digest", METHODS, ids=lambda digest: f"{digest.method}{'-text' if digest.as_text else ''}")
@pytest.mark.parametrize(("kind", "one", "other"), CLOSE, ids=lambda value: str(value).encode("ascii", "replace").decode())
def test_values_that_are_almost_the_same_are_not(connection: Connection, digest: d.Digest, kind: str, one: str, other: str) -> None:
    first, second = lanes(connection, digest, kind, one), lanes(connection, digest, kind, other)
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert lanes(connection, digest, kind, one) == first


@pytest.mark.parametrize("digest", METHODS[:2], ids=lambda digest: digest.method)
def test_a_value_cannot_cross_into_the_next_column(connection: Connection, digest: d.Digest) -> None:
    assert lanes(connection, digest, "text", "'ab'", "'c'") != lanes(connection, digest, "text", "'a'", "'bc'")
    assert lanes(connection, digest, "text", "'a'", "NULL") != lanes(connection, digest, "text", "NULL", "'a'")
    assert lanes(connection, digest, "text", "'a'", "'b'") != lanes(connection, digest, "text", "'b'", "'a'")


@pytest.mark.parametrize("digest", METHODS[:2], ids=lambda digest: digest.method)
def test_sums_over_a_bucket_see_swapped_values_and_pairs(connection: Connection, digest: d.Digest) -> None:
    def total(values: str) -> tuple[int, ...]:
        row = d.Row(
            f"(VALUES {values}) AS v (id, a, b)", "'\\x00'::bytea || int4send(id) || '\\x0011223344556677889900'::bytea", {"a": "a::text", "b": "b::text"}
        )
        ((_, *sums),) = rows(connection, d.buckets(row, digest, 0))
        return tuple(int(value) for value in sums)

    assert total("(1,'x','p'),(2,'y','q')") != total("(1,'y','p'),(2,'x','q')")
    assert total("(1,'x','p'),(2,'x','p')") != total("(1,'x','p'),(1,'x','p')")
    assert total("(1,'x','p'),(1,'x','p'),(2,'y','q')") != total("(2,'y','q')")
    assert total("(1,'x','p'),(2,'y','q')") == total("(2,'y','q'),(1,'x','p')")


def target(*kinds: str) -> Target:
    cells = tuple(Cell(f"c{number}", "NULL", kind) for number, kind in enumerate(kinds))
    part = Part("", "x.yml", "t", None, (), ("id",), ("integer",), "id", "t", False, cells, ("t",), (), (), (), (), identity=("c0",))
    return Target("s", "s", "t", ("c0",), tuple(cell.name for cell in cells), kinds, (part,))


def test_servers_that_agree_use_the_record_hash(connection: Connection) -> None:
    agreed = d.handshake({"one": connection, "two": connection}, [target(*d.GOLDEN, "point")])
    assert agreed.method == d.RECORD
    assert agreed.as_text == ()
    assert f"{len(d.GOLDEN) + 1} types agree on 2 servers" in agreed.reason


def test_servers_that_disagree_on_the_record_hash_use_sha256(connection: Connection, database: Endpoint) -> None:
    rows(connection, "CREATE SCHEMA other")
    for function in ("hash_record_extended(record, bigint)", "hashbyteaextended(bytea, bigint)"):
        rows(connection, f"CREATE FUNCTION other.{function} RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN 42; END'")
    strange = connect(database, application_name="tests", autocommit=True, settings={"search_path": "other, pg_catalog"})
    try:
        agreed = d.handshake({"one": connection, "two": strange}, [target("uuid", "text")])
        assert agreed.method == d.SHA256
        assert "disagree" in agreed.reason
        with pytest.raises(MigrationError, match="one, two: the servers disagree on golden vectors of PostgreSQL's record hash; set validate_digest"):
            d.handshake({"one": connection, "two": strange}, [target("uuid", "text")], d.RECORD)
    finally:
        strange.close()


def test_sha256_is_used_when_it_is_asked_for(connection: Connection) -> None:
    assert d.handshake({"one": connection}, [target("uuid")], d.SHA256).method == d.SHA256


def test_buckets_hold_some_hundreds_of_rows() -> None:
    assert d.bits_for(0) == 0
    for rows_ in (10_000, 200_000, 1_000_000):
        assert d.ROWS_A_BUCKET / 2 <= rows_ / 2 ** d.bits_for(rows_) <= d.ROWS_A_BUCKET
    assert d.bits_for(10**9) == d.MOST_BITS


@pytest.mark.parametrize("bits", [0, 1, 7, 8, 9, 15, 16, 17, 23, 24])
def test_buckets_are_the_leading_bits(connection: Connection, bits: int) -> None:
    raw = "00a5c3e1f0123456789abcdef0112233"
    ((number,),) = rows(connection, "SELECT " + d.bucket_of(f"decode('{raw}', 'hex')", 1, bits))
    assert number == int(raw[2:8], 16) >> (24 - bits)
