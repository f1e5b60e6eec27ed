# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What snapshots and rollbacks decide without a server: clients, words, names, statements, retention."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import clients, databases
from ansible.module_utils.migration.postgres.clients import Clients
from ansible.module_utils.migration.postgres.content_digest import Content, SequenceState, TableDigest, differences
from ansible.module_utils.migration.postgres.databases import Grant, Properties, Setting
from ansible.module_utils.migration.rollback.service_rows import Unaccounted, refuse_strangers
from ansible.module_utils.migration.snapshot import retention
from ansible.module_utils.migration.snapshot.dump import make_folder
from ansible.module_utils.migration.snapshot.retention import Keeping, Stored

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PLAIN = Properties("own er", "UTF8", "c", "C", "C", None, None, "pg_default", -1, None, None, ())


def installed(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    for name in clients.PROGRAMS:
        (folder / name).write_text(f'#!/bin/sh\necho "{name} (PostgreSQL) {version} (Debian)"\n')
        (folder / name).chmod(0o755)
    return folder


def test_the_oldest_client_that_is_not_older_than_the_server_is_chosen(tmp_path: Path) -> None:
    for version in ("18.1", "15.4", "16.2"):
        installed(tmp_path / "pg" / version / "bin", version)
    found = clients.candidates(None, "", (f"{tmp_path}/pg/*/bin",))
    assert [item.major for item in found] == [15, 16, 18]
    assert clients.choose(found, 16, "here").version == "16.2"
    assert clients.choose(found, 17, "here").version == "18.1"


def test_a_chosen_folder_is_the_only_one(tmp_path: Path) -> None:
    installed(tmp_path / "a", "18.1")
    (only,) = clients.candidates(str(tmp_path / "a"), str(installed(tmp_path / "b", "17.1")), ())
    assert only.version == "18.1"


def test_debians_wrapper_is_not_a_version(tmp_path: Path) -> None:
    real = installed(tmp_path / "common", "15.4") / "pg_wrapper"
    real.write_text('#!/bin/sh\necho "pg_dump (PostgreSQL) 15.4"\n')
    real.chmod(0o755)
    (tmp_path / "bin").mkdir()
    for name in clients.PROGRAMS:
        (tmp_path / "bin" / name).symlink_to(real)
    assert clients.candidates(None, str(tmp_path / "bin"), ()) == []


def test_missing_and_old_clients_are_two_sentences() -> None:
    with pytest.raises(MigrationError, match=r"no pg_dump, pg_restore and pg_dumpall on this runner; install postgresql-client-18"):
        clients.choose([], 18, "monolith")
    with pytest.raises(MigrationError, match=r"server is PostgreSQL 18 .*\(/x/pg_dump is 15.4\); install postgresql-client-18"):
        clients.choose([Clients(Path("/x"), 15, "15.4")], 18, "monolith")


SERVER_LOG = "the text can hold values, so only the server's log has it: mend the cause, then run this again"


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("pg_restore: error: COPY failed: ERROR:  duplicate key\nDETAIL:  Key (email)=(ann@x.org)", f"COPY failed: the server refused it; {SERVER_LOG}"),
        (
            'pg_restore: error: ERROR:  invalid input syntax for type integer: "ann@x.org"\nCONTEXT: COPY users, line 1: "ann@x.org"',
            f"a value cannot be read as its type (type integer); {SERVER_LOG}",
        ),
        ('pg_restore: error: FEHLER:  ungültige Eingabe für Typ integer: »ann«', f"the server refused it; {SERVER_LOG}"),
        ('pg_restore: error: ERROR:  value "7" is out of range for type smallint', f"a value is out of range (type smallint); {SERVER_LOG}"),
        ("pg_restore: error: could not execute query: ERROR:  ann@x.org is taken\nby bob", f"could not execute query: the server refused it; {SERVER_LOG}"),
        (
            "pg_restore: from TOC entry 215; 1259 16390 TABLE ann@x.org o\npg_restore: error: could not execute query: ERROR:  permission denied for ann",
            "could not execute query: permission denied, at entry 215 of the dump, a TABLE (pg_restore --list names it); " + SERVER_LOG,
        ),
        ('pg_restore: error: could not open input file "/x/ann.dat": gone', "could not open input file (name not shown): gone; mend that, then run this again"),
        ('pg_restore: error: ERROR:  relation "t" does not exist', f"it does not exist; {SERVER_LOG}"),
        (
            "pg_dump: error: query failed: ERROR:  canceling statement due to lock timeout\npg_dump: detail: Query was: LOCK TABLE t IN ACCESS SHARE MODE",
            "somebody holds a lock on a table (pg_locks says who); wait for that and run this again",
        ),
        ("pg_dump: error: invalid compression specification: no zstd here", "invalid compression specification: no zstd here; mend that, then run this again"),
        ("pg_dump: error: could not write: No space left on device", "the disk is full; free some space there and run this again"),
        ("", "it ended with status 3; run this again, and look at the server's log"),
    ],
)
def test_an_error_of_a_client_says_no_value(stderr: str, said: str) -> None:
    assert clients.said(stderr, 3) == said


def test_newer_clients_may_restore_into_an_older_server_but_for_one_setting() -> None:
    ours = f"pg_restore: error: could not execute query: ERROR:  unknown\nCommand was: {clients.UNKNOWN_BEFORE_17}\n\n"
    other = "pg_restore: error: could not execute query: ERROR:  no such role\nCommand was: ALTER TABLE t OWNER TO r;\n"
    assert "error" not in clients.without(ours + ours, clients.UNKNOWN_BEFORE_17)
    assert clients.said(clients.without(ours + other + ours, clients.UNKNOWN_BEFORE_17), 1) == f"could not execute query: the server refused it; {SERVER_LOG}"


def test_clients_that_compress_as_wanted_are_chosen_though_older_ones_would_do() -> None:
    both = [Clients(Path("/a"), 15, "15.4"), Clients(Path("/b"), 16, "16.2")]
    assert clients.choose(both, 15, "here", least=16, reason="snapshot_compression is zstd").version == "16.2"
    with pytest.raises(MigrationError, match=r"snapshot_compression is zstd, which takes clients of PostgreSQL 16 .*install postgresql-client-16"):
        clients.choose(both[:1], 15, "here", least=16, reason="snapshot_compression is zstd")


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_folder(tmp_path)
    make_folder(tmp_path / "snapshots" / "one")
    assert [oct(path.stat().st_mode & 0o777) for path in (tmp_path, tmp_path / "snapshots" / "one")] == ["0o755", "0o700"]


def test_what_a_killed_run_left_open_is_removed_by_the_next_and_what_another_uses_is_not(tmp_path: Path) -> None:
    left = tmp_path / f"{retention.PASSING}left"
    left.mkdir()
    (left / "dump").write_text("personal")
    with retention.passing(tmp_path) as first:
        assert not left.exists()
        assert first.stat().st_mode & 0o777 == 0o700
        with retention.passing(tmp_path) as second:
            assert first.is_dir()
            assert second != first
    assert list(tmp_path.iterdir()) == []


def test_a_killed_client_is_said_so() -> None:
    assert clients.said("", -9) == "it was ended by signal SIGKILL; run this again"


def test_a_database_is_made_like_another() -> None:
    assert databases.create_sql("n", PLAIN, 180000) == (
        "CREATE DATABASE \"n\" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER libc OWNER \"own er\""
    )
    icu = dataclasses.replace(PLAIN, provider="i", locale="de-DE", tablespace="fast")
    assert "LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' OWNER \"own er\" TABLESPACE \"fast\"" in databases.create_sql("n", icu, 170000)
    assert "OWNER" not in databases.create_sql("n", icu, 170000, foreign=True)
    assert "LOCALE_PROVIDER" not in databases.create_sql("n", PLAIN, 140000)


def test_settings_and_grants_are_given_again() -> None:
    like = dataclasses.replace(
        PLAIN,
        settings=(Setting("", "search_path", '"$user", "a, b", public'), Setting("r", "app.x", "it's")),
        grants=(Grant("", "CONNECT", False), Grant("r", "CREATE", True)),
    )
    assert databases.dress_sql("n", like) == [
        "ALTER DATABASE \"n\" SET \"search_path\" TO '$user', 'a, b', 'public'",
        'ALTER ROLE "r" IN DATABASE "n" SET "app"."x" TO \'it\'\'s\'',
        'REVOKE ALL ON DATABASE "n" FROM PUBLIC, "own er"',
        'GRANT CONNECT ON DATABASE "n" TO PUBLIC',
        'GRANT CREATE ON DATABASE "n" TO "r" WITH GRANT OPTION',
    ]


def test_a_derived_name_fits_and_is_the_same_each_time() -> None:
    name = databases.derived("d" * 63, "migrated", "20260101T000000Z-ab12")
    assert len(name) == 63
    assert name.endswith("_migrated_20260101t000000z_ab12")
    assert len(databases.derived("é" * 31, "migrated", "20260101T000000Z-ab12").encode()) <= 63


def stored(days_ago: list[int]) -> list[Stored]:
    return [Stored(Path(f"/{days}"), str(days), NOW - timedelta(days=days)) for days in days_ago]


@pytest.mark.parametrize(
    ("keeping", "needed", "gone"),
    [
        (Keeping(), set(), []),
        (Keeping(count=2), set(), ["9", "40"]),
        (Keeping(days=7), set(), ["9", "40"]),
        (Keeping(count=1, days=10), set(), ["40"]),
        (Keeping(count=3, days=1), set(), ["40"]),
        (Keeping(count=1), {"40"}, ["5", "9"]),
        (Keeping(days=1), set(), ["5", "9", "40"]),
    ],
)
def test_retention_keeps_what_either_rule_keeps_the_newest_and_the_needed(keeping: Keeping, needed: set[str], gone: list[str]) -> None:
    assert [item.run_id for item in retention.expired(stored([2, 5, 9, 40]), keeping, needed, NOW)] == gone


def test_a_copy_with_swapped_values_a_lost_table_or_a_lagging_sequence_differs() -> None:
    wanted = Content((TableDigest("a", "t", 2, "1,1"), TableDigest("a", "u", 0, "0,0")), (SequenceState("a", "s", 5, 1),), 0, "")
    assert differences(wanted, wanted) == []
    ahead = dataclasses.replace(wanted, sequences=(SequenceState("a", "s", 9, 1),))
    assert differences(wanted, ahead) == []
    found = Content((TableDigest("a", "t", 2, "1,2"), TableDigest("a", "x", 1, "0,0")), (SequenceState("a", "s", 4, 1),), 0, "")
    assert [line.split(" ")[0] for line in differences(wanted, found)] == ["a.t", "a.u", "a.x", "sequence"]


def test_rows_of_others_need_their_own_number() -> None:
    with pytest.raises(MigrationError, match="the services hold 1 row that is neither"):
        refuse_strangers([Unaccounted("s.t", 1, 0)], 0)
    refuse_strangers([Unaccounted("s.t", 3, 0)], 3)
    with pytest.raises(MigrationError, match=r"3 rows that are neither.*\(3 in s\.t\).*rollback_discard_rows=3"):
        refuse_strangers([Unaccounted("s.t", 3, 0)], 2)
    with pytest.raises(MigrationError, match=r"3 rows .*; this run has another plan than the migration, whose rows it cannot tell"):
        refuse_strangers([Unaccounted("s.t", 3, 0)], 2, same_plan=False)
