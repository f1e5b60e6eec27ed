# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A validation that goes on where another was interrupted tells the truth, whatever became of the databases in between."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded import server as lab_postgres
from ansible.module_utils.migration.embedded.server import PostgresServer
from ansible.module_utils.migration.postgres.driver import Endpoint, connect, rows
from ansible.module_utils.migration.validate import run as validate
from ansible.module_utils.migration.validate.row_versions import Versioned, Versions

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.database.test_verify import QUICK, ask, lines, one_user, run
from tests.mutation import world as w

SMALL = dataclasses.replace(QUICK, piece_rows=20)
ROLES = "user_service.roles"


@pytest.fixture
def world(postgres: PostgresServer, databases: Callable[..., Endpoint]) -> w.World:
    world = w.cloned_world(postgres, databases)
    for endpoint in (world.source, *world.targets.values()):
        run(endpoint, "ANALYZE")
    return world


def kept_of(world: w.World) -> dict[str, validate.KeptPiece]:
    """Return everything that a validation keeps."""
    kept: dict[str, validate.KeptPiece] = {}
    validate.compare(world.context, w.PLAN_TIME, options=SMALL, keeping=validate.Keeping({}, lambda piece: kept.update({piece.key: piece}), seconds=0))
    return kept


def resumed(world: w.World, kept: dict[str, validate.KeptPiece]) -> tuple[validate.Verification, int]:
    """Return a validation that goes on from there, and how many pieces it read itself."""
    fresh: list[validate.KeptPiece] = []
    found = validate.compare(world.context, w.PLAN_TIME, options=SMALL, keeping=validate.Keeping(kept, fresh.append, seconds=0))
    return found, len(fresh)


def truth(world: w.World) -> validate.Verification:
    """Return what a validation finds that reads everything itself."""
    return validate.compare(world.context, w.PLAN_TIME, options=SMALL)


def same(found: validate.Verification, wanted: validate.Verification) -> bool:
    tables = [[dataclasses.replace(table, seconds=0) for table in each.tables.values()] for each in (found, wanted)]
    return lines(found) == lines(wanted) and tables[0] == tables[1]


class Killed(Exception):
    pass


def interrupted(world: w.World, pieces: int) -> dict[str, validate.KeptPiece]:
    """Return what a validation had kept when it was killed after so many pieces."""
    kept: dict[str, validate.KeptPiece] = {}

    def keep(piece: validate.KeptPiece) -> None:
        kept[piece.key] = piece
        if len(kept) == pieces:
            raise Killed

    with pytest.raises(Killed):
        validate.compare(world.context, w.PLAN_TIME, options=SMALL, keeping=validate.Keeping({}, keep, seconds=0))
    return kept


@pytest.mark.parametrize("parallel", [0, 2])
def test_small_pieces_come_to_the_same_digests(world: w.World, parallel: int) -> None:
    whole, cut = (
        validate.compare(world.context, w.PLAN_TIME, options=options) for options in (QUICK, dataclasses.replace(SMALL, parallel=parallel))
    )
    assert cut.passed, lines(cut)
    assert [(t.source_digest, t.target_digest, t.source_rows) for t in cut.tables.values()] == [
        (t.source_digest, t.target_digest, t.source_rows) for t in whole.tables.values()
    ]
    assert [(reference.checked, reference.dangling) for reference in cut.references] == [(r.checked, r.dangling) for r in whole.references]


def test_pieces_that_an_interrupted_run_read_are_not_read_again(world: w.World) -> None:
    kept = interrupted(world, 9)
    found, fresh = resumed(world, kept)
    assert found.passed, lines(found)
    assert "9 of " in found.consistency
    assert "pieces were read by an interrupted run" in found.consistency
    assert resumed(world, {})[1] == fresh + 9


def test_a_kept_piece_whose_rows_changed_is_read_again(world: w.World) -> None:
    everything = kept_of(world)
    assert resumed(world, everything)[1] == 0
    id_ = one_user(world)
    run(world.targets["auth_service"], f"UPDATE auth_service.users SET is_active = NOT is_active WHERE id = '{id_}'")
    found, fresh = resumed(world, everything)
    assert [finding.columns for finding in found.findings] == [("is_active",)]
    assert 0 < fresh < len(everything) / 2
    run(world.source, "UPDATE users_profile SET bio = bio || ' ' WHERE id = (SELECT min(id) FROM users_profile WHERE bio IS NOT NULL)")
    found, _ = resumed(world, everything)
    assert sorted(finding.columns for finding in found.findings) == [("bio",), ("is_active",)]
    run(world.targets["user_service"], "DELETE FROM user_service.roles")
    assert resumed(world, everything)[0].tables["user_service.roles"].kinds == {"missing": found.tables["user_service.roles"].source_rows}


UNCHANGED = {
    "nothing": (),
    "a vacuum": ("VACUUM",),
    "a freeze": ("VACUUM FREEZE",),
    "statistics": ("ANALYZE",),
}
CHANGED = {
    "rows changed and changed back": (
        f"UPDATE {ROLES} SET is_active = NOT is_active",
        f"UPDATE {ROLES} SET is_active = NOT is_active",
    ),
    "rows moved by VACUUM FULL": (f"DELETE FROM {ROLES} WHERE role_type = 'staff'", f"VACUUM FULL {ROLES}"),
    "rows moved by CLUSTER": (f"CREATE INDEX other ON {ROLES} (role_type, id)", f"CLUSTER {ROLES} USING other"),
    "emptied and filled again": (f"CREATE TABLE public.kept AS SELECT * FROM {ROLES}", f"TRUNCATE {ROLES}", f"INSERT INTO {ROLES} SELECT * FROM public.kept"),
    "a subtransaction": (f"DO $$ BEGIN UPDATE {ROLES} SET role_type = 'x' WHERE role_type = 'staff'; EXCEPTION WHEN others THEN NULL; END $$",),
    "places exchanged": (
        f"VACUUM {ROLES}",
        f"CREATE TABLE public.two AS SELECT * FROM {ROLES} ORDER BY id LIMIT 2",
        f"DELETE FROM {ROLES} WHERE id IN (SELECT id FROM public.two)",
        f"VACUUM {ROLES}",
        f"INSERT INTO {ROLES} SELECT * FROM public.two ORDER BY id DESC",
    ),
    "columns renamed in a circle": (
        f"ALTER TABLE {ROLES} RENAME created_at TO spare",
        f"ALTER TABLE {ROLES} RENAME updated_at TO created_at",
        f"ALTER TABLE {ROLES} RENAME spare TO updated_at",
        "ALTER TABLE user_service.profiles RENAME first_name TO spare",
        "ALTER TABLE user_service.profiles RENAME last_name TO first_name",
        "ALTER TABLE user_service.profiles RENAME spare TO last_name",
    ),
    "a column dropped and added again": ("ALTER TABLE user_service.profiles DROP bio", "ALTER TABLE user_service.profiles ADD bio text DEFAULT 'x'"),
}


def test_what_did_not_change_is_taken_over(world: w.World) -> None:
    kept = kept_of(world)
    for between, statements in UNCHANGED.items():
        for endpoint in (world.source, *world.targets.values()):
            run(endpoint, *statements)
        found, fresh = resumed(world, kept)
        assert found.passed, (between, lines(found))
        assert fresh == 0, between


def test_what_changed_is_seen_whatever_it_looks_like(world: w.World) -> None:
    for between, statements in CHANGED.items():
        kept = kept_of(world)
        run(world.targets["user_service"], *statements)
        found, fresh = resumed(world, kept)
        assert same(found, truth(world)), (between, lines(found)[:5], lines(truth(world))[:5])
        assert fresh < len(kept), between


def test_rows_of_another_database_are_not_taken_for_the_same(world: w.World, databases: Callable[..., Endpoint], postgres: PostgresServer) -> None:
    kept = kept_of(world)
    service = world.targets["user_service"]
    copy = databases("copy")
    run(postgres.endpoint(), f"DROP DATABASE {copy.dbname}", f"CREATE DATABASE {copy.dbname} TEMPLATE {service.dbname}")
    copied = dataclasses.replace(world, context=dataclasses.replace(world.context, targets={**world.targets, "user_service": copy}))
    found, fresh = resumed(copied, kept)
    assert found.passed, lines(found)
    own = sum(1 for name in found.tables if name.startswith("user_service."))
    assert own <= fresh < len(kept)


@pytest.mark.parametrize("oldest", [3, 1 << 40], ids=["rows written since", "a server that has gone back"])
def test_rows_whose_transaction_ids_say_nothing_are_read_again(world: w.World, oldest: int) -> None:
    kept = kept_of(world)
    found, fresh = resumed(world, {key: dataclasses.replace(piece, oldest=oldest) for key, piece in kept.items()})
    assert found.passed, lines(found)
    assert fresh >= sum(1 for piece in kept.values() if piece.sums)  # no rows are old in any case


def test_a_transaction_id_that_comes_again_does_not_pass_for_the_old_one() -> None:
    then = 5_000_000_000
    assert Versions("same", then - 1, then + 9, then + 9).still("same", then)
    assert Versions("same", None, then + 9, then + 9).still("same", then)
    assert not Versions("other", then - 1, then + 9, then + 9).still("same", then)
    assert not Versions("same", then, then + 9, then + 9).still("same", then)
    assert not Versions("same", then - 1, then + 2**31, then + 2**31).still("same", then)


def test_the_youngest_transaction_is_told_by_its_full_id(world: w.World) -> None:
    service = connect(world.targets["user_service"], application_name="tests", autocommit=True)
    ask_service = functools.partial(rows, service)
    look = Versioned.of([(ROLES, ROLES)])
    before = look.look(ask_service)
    wrote = int(rows(service, f"WITH one AS (UPDATE {ROLES} SET is_active = is_active RETURNING 1) SELECT pg_current_xact_id()::text FROM one LIMIT 1")[0][0])
    after = look.look(ask_service)
    service.close()
    assert before
    assert after
    assert before.youngest is not None
    assert before.youngest < before.oldest <= wrote
    assert after.youngest == wrote
    assert after.seen != before.seen


def test_a_row_in_the_place_of_a_frozen_one_with_its_very_transaction_id_is_another_row(server_root: Path) -> None:
    account = process.Account.for_servers()
    settings = {**lab_postgres.THROW_AWAY, "autovacuum": "off"}
    server = PostgresServer("wrapped", server_root / "wrapped", lab_postgres.binaries(server_root, account), "wrapped", settings, account)
    lab_postgres.create(server)
    lab_postgres.start(server)
    try:
        run(server.endpoint(), "CREATE TABLE public.t AS SELECT 'old' AS v", "CREATE TABLE public.other ()", "VACUUM FREEZE")
        wrote = int(ask(server.endpoint(), "SELECT xmin FROM public.t"))
        lab_postgres.stop(server)
        a_round_later = [str(server.bin_dir / "pg_resetwal"), "--epoch=1", f"--next-transaction-id={wrote - 9}", f"--pgdata={server.data}"]
        process.run(a_round_later, server.home, account)
        lab_postgres.start(server)
        connection = connect(server.endpoint(), application_name="tests", autocommit=True)
        look = Versioned.of([("public.t", "public.t")])
        before = look.look(functools.partial(rows, connection))
        rows(connection, "DELETE FROM public.t")
        rows(connection, "VACUUM (TRUNCATE off) public.t")
        while rows(connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())::xid::text")[0][0] != str(wrote):
            rows(connection, "SELECT pg_current_xact_id()::text")
        rows(connection, "INSERT INTO public.t VALUES ('new')")
        after = look.look(functools.partial(rows, connection))
        connection.close()
        assert before
        assert after
        assert after.seen == before.seen
        assert before.still(before.seen, before.oldest)
        assert not after.still(before.seen, before.oldest)
    finally:
        lab_postgres.stop(server)
