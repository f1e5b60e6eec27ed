# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot on real databases: complete, consistent, provable, and never taken for whole when it is not."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ansible.module_utils.migration.embedded import throwaway
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import clients, content_digest, driver
from ansible.module_utils.migration.preflight import rollback_readiness, snapshot_trial
from ansible.module_utils.migration.snapshot import dump, encryption, manifest, restore, take
from ansible.module_utils.migration.snapshot.dump import DumpOptions
from ansible.module_utils.migration.snapshot.encryption import Sealing
from ansible.module_utils.migration.snapshot.take import PROOF

from tests.walk.environment import Walk, ask, die_in, dying
from tests.walk.fixtures import project_plan, services_server, walk  # noqa: F401


def snapshots(place: Walk) -> list[str]:
    return sorted(path.name for path in place.root.iterdir()) if place.root.exists() else []


def test_a_migration_has_one_snapshot_which_a_rerun_verifies(walk: Walk) -> None:  # noqa: F811
    taken = take.take(walk.context, walk.taking())
    assert taken.changed
    folder = Path(taken.folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "monolith").stat().st_mode) == 0o700
    migration = walk.migration()
    assert migration is not None
    assert (migration.state, migration.snapshot) == ("open", str(folder))
    ask(walk.monolith, "DELETE FROM users_role")
    again = take.take(walk.context, walk.taking())
    assert not again.changed
    assert again.manifest == taken.manifest
    assert snapshots(walk) == [folder.name]
    assert len(walk.history(take.KIND)) == 1


def test_a_preview_writes_nothing(walk: Walk) -> None:  # noqa: F811
    seen = take.preview(walk.context, walk.taking())
    assert seen.changed
    assert any("would dump monolith" in line and "pg_dump (18" in line for line in seen.lines)
    assert not walk.root.exists()
    migration = walk.migration()
    assert migration is not None
    assert migration.state == "planned"


def test_the_digests_are_those_of_the_dump_while_others_write(walk: Walk) -> None:  # noqa: F811
    stop = threading.Event()

    def write() -> None:
        connection = driver.connect(walk.monolith, application_name="tests", autocommit=True)
        while not stop.is_set():
            driver.rows(connection, "UPDATE auth_user SET last_login = clock_timestamp() WHERE id % 7 = 0")
            driver.rows(connection, "INSERT INTO institutions (id, name, created_at) SELECT max(id) + 1, 'x', now() FROM institutions")
        connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        taken = take.take(walk.context, walk.taking(proof=True))
    finally:
        stop.set()
        writer.join()
    assert taken.changed
    proof = walk.history(PROOF)[0]
    assert proof.outcome == "passed"
    assert [item["name"] for item in proof.detail["databases"]] == ["monolith", "auth_service", "user_service"]
    assert len(walk.databases()) == 2, "scratch databases are dropped"


def test_the_proof_names_what_is_different(walk: Walk) -> None:  # noqa: F811
    taken = take.take(walk.context, walk.taking())
    read = manifest.read(Path(taken.folder), None)
    endpoint, dumped = walk.context.targets["auth_service"], read.database("monolith")
    scratch = f"{endpoint.dbname}_scratch"
    folder = Path(taken.folder) / "monolith"
    restore.restore(endpoint, dumped, folder, scratch, walk.restoring(), foreign=True)
    assert restore.prove(endpoint, dumped, folder, scratch, walk.restoring(), foreign=True) == []
    copy = replace(walk.superuser, dbname=scratch)
    ask(copy, "UPDATE auth_user SET password = username, username = password WHERE id = (SELECT min(id) FROM auth_user)")
    ask(copy, "DELETE FROM users_profile WHERE id = (SELECT min(id) FROM users_profile)")
    ask(copy, "ALTER TABLE companies ALTER COLUMN industry SET DEFAULT 'none'")
    said = "\n".join(restore.prove(endpoint, dumped, folder, scratch, walk.restoring(), foreign=True))
    assert "public.auth_user has the right number of rows" in said
    assert "public.users_profile has" in said
    assert "the definitions differ" in said


@pytest.mark.parametrize(
    ("module", "function", "call", "after"),
    [
        (clients, "run", 1, True),
        (clients, "run", 3, False),
        (clients, "run", 6, True),
        (manifest, "write", 1, False),
        (manifest, "write", 1, True),
        (manifest, "check_files", 1, True),
    ],
)
def test_a_killed_snapshot_never_looks_finished_and_is_taken_again(
    walk: Walk, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, call: int, after: bool  # noqa: F811
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, function, dying(getattr(module, function), call, after=after))
        die_in(lambda: take.take(walk.context, walk.taking()))
    migration = walk.migration()
    assert migration is not None
    assert migration.snapshot is None
    if function != "check_files":  # after the last rename the folder is whole; only the record is missing
        assert all(".partial-" in name for name in snapshots(walk))
    taken = take.take(walk.context, walk.taking(proof=True))
    assert snapshots(walk) == [Path(taken.folder).name]
    assert not take.take(walk.context, walk.taking(proof=True)).changed


def test_a_dying_snapshot_takes_its_pg_dump_with_it(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    locker = driver.connect(walk.monolith, application_name="tests")
    driver.rows(locker, "LOCK TABLE auth_user IN ACCESS EXCLUSIVE MODE")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'edulink-migration%' AND datname = current_database()"

    def kill_when_waiting(*args: Any) -> None:
        while not ask(walk.monolith, f"{waiting} AND wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE%'"):
            pass
        os.kill(os.getpid(), 9)

    def with_killer() -> None:
        threading.Thread(target=kill_when_waiting, daemon=True).start()
        take.take(walk.context, walk.taking())

    die_in(with_killer)
    driver.rows(locker, "ROLLBACK")
    locker.close()
    for _ in range(100):
        if ask(walk.monolith, waiting) == 0:
            break
        threading.Event().wait(0.05)
    assert ask(walk.monolith, waiting) == 0


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "lost manifest", "changed manifest"])
def test_a_damaged_snapshot_is_named(walk: Walk, damage: str) -> None:  # noqa: F811
    folder = Path(take.take(walk.context, walk.taking()).folder)
    victim = max((folder / "monolith").glob("*.dat.gz"), key=lambda path: path.stat().st_size)
    data = victim.read_bytes()
    expected = {
        "cut": f"{victim} has {len(data) - 9} bytes, the manifest says {len(data)}: it was cut or changed",
        "changed": f"{victim} was changed since the snapshot was taken",
        "missing": f"{victim} is missing",
        "lost manifest": "manifest.json is missing; put it back from the migration's artifacts",
        "changed manifest": "manifest.json was changed since the snapshot was taken",
    }[damage]
    if damage == "cut":
        victim.write_bytes(data[:-9])
    elif damage == "changed":
        victim.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "missing":
        victim.unlink()
    elif damage == "lost manifest":
        (folder / manifest.NAME).unlink()
    else:
        text = (folder / manifest.NAME).read_text()
        (folder / manifest.NAME).write_text(re.sub(r'"rows": \d+', '"rows": 7', text, count=1))
    with pytest.raises(MigrationError) as raised:
        take.take(walk.context, walk.taking())
    assert expected in str(raised.value)
    assert walk.history(take.KIND)[0].outcome == "failed"


def test_a_full_disk_is_said_so(walk: Walk, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(MigrationError, match=r"free, the snapshot may need .* TB; free some space there"):
        take.take(walk.context, walk.taking(space_factor=1e9))
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in clients.PROGRAMS:
        (fake / name).write_text(
            '#!/bin/sh\n[ "$1" = --version ] && { echo "pg_dump (PostgreSQL) 18.6"; exit 0; }\n'
            'echo "pg_dump: error: could not write to output file: No space left on device" >&2; exit 1\n'
        )
        (fake / name).chmod(0o755)
    with pytest.raises(MigrationError, match=r"monolith .*: pg_dump: the disk is full; free some space"):
        take.take(walk.context, walk.taking(dump=DumpOptions(bin_dir=str(fake))))
    assert snapshots(walk) == []


def test_a_password_is_on_no_disk_in_no_argument_and_in_no_environment(walk: Walk, tmp_path: Path) -> None:  # noqa: F811
    spy = tmp_path / "spy"
    look = 'cat "$PGPASSFILE" > pass; cat "$PGPASSFILE" >> pass; stat -Lc "%a %h" "$PGPASSFILE" > mode'
    spy.write_text(f'#!/bin/sh\ncd "$1"; env > env; echo "$@" > argv; {look}\n')
    spy.chmod(0o755)
    endpoint = replace(walk.context.source, password="a:b\\c")
    with clients.access(endpoint, "tests") as way:
        clients.run([str(spy), str(tmp_path), "--dbname=x"], way, "here", "spying")
    assert "a:b" not in (tmp_path / "env").read_text() + (tmp_path / "argv").read_text()
    assert (tmp_path / "pass").read_text() == 2 * f"*:*:*:{endpoint.user}:a\\:b\\\\c\n", "it can be read again, by every worker"
    assert (tmp_path / "mode").read_text() == "600 0\n", "no folder names it, so nothing is left when all are killed"
    assert "a:b" not in repr(way)


def test_what_the_role_cannot_read_is_named_before_anything_is_dumped(walk: Walk) -> None:  # noqa: F811
    ask(walk.monolith, "CREATE TABLE secret (id int); CREATE SEQUENCE hidden; SELECT lo_from_bytea(0, 'x')")
    ask(walk.monolith, "CREATE SCHEMA shut; CREATE SEQUENCE shut.away")
    with pytest.raises(MigrationError) as raised:
        take.take(walk.context, walk.taking())
    for part in (
        "public.secret cannot be read; GRANT SELECT", "the sequence public.hidden cannot be read", "1 large objects cannot be read",
        "GRANT USAGE ON SCHEMA shut",
    ):  # fmt: skip
        assert part in str(raised.value)
    assert snapshots(walk) == []


def test_large_objects_odd_names_and_other_schemas_are_digested_and_restored(walk: Walk) -> None:  # noqa: F811
    reader = walk.context.source.user
    ask(
        walk.monolith,
        'CREATE SCHEMA "Other One"; CREATE TABLE "Other One"."src" (src text, "t ""x" numeric, h json); CREATE TABLE "Other One".nothing ();'
        " INSERT INTO \"Other One\".src VALUES ('a', 1.0, '{\"b\":1, \"b\":2}'), (NULL, 1.00, NULL), ('', 'NaN', 'null');"
        f' GRANT USAGE ON SCHEMA "Other One" TO {reader}; GRANT SELECT ON ALL TABLES IN SCHEMA "Other One" TO {reader}',
    )
    ask(walk.monolith, f"CREATE MATERIALIZED VIEW seen AS SELECT 1 AS one; GRANT SELECT ON seen TO {reader}")
    number = ask(walk.monolith, "SELECT lo_from_bytea(0, decode('00ff10', 'hex'))")
    ask(walk.monolith, f"GRANT SELECT ON LARGE OBJECT {number} TO {reader}")
    taken = take.take(walk.context, walk.taking(proof=True))
    content = manifest.read(Path(taken.folder), None).database("monolith").content
    assert content.large_objects == 1
    assert content.table("Other One", "src").rows == 3  # type: ignore[union-attr]
    ask(walk.monolith, f"SELECT lo_put({number}, 0, 'y')")
    now = restore.content(walk.monolith)
    assert any("large objects" in line for line in content_digest.differences(content, now))


def test_an_encrypted_snapshot_is_proven_and_leaves_nothing_open(walk: Walk, tmp_path: Path) -> None:  # noqa: F811
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    if encryption.clients.shutil.which("gpg") is None:
        pytest.skip("gpg is not installed")
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-gen-key", "ops@example.org", "default", "default"], check=True, capture_output=True)
    keys = Sealing("gpg", ("ops@example.org",), str(home))
    folder = Path(take.take(walk.context, walk.taking(proof=True, sealing=keys)).folder)
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".gpg") == ["auth_service.tar.gpg", "monolith.tar.gpg", "user_service.tar.gpg"]
    assert not (folder / "monolith").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)


def test_a_snapshot_is_never_taken_of_a_half_migrated_service(walk: Walk) -> None:  # noqa: F811
    ask(walk.service("user_service"), "CREATE SCHEMA migration; CREATE TABLE migration.pin (one bool)")
    ask(walk.service("user_service"), "GRANT ALL ON SCHEMA migration TO PUBLIC; GRANT SELECT ON migration.pin TO PUBLIC")
    with pytest.raises(MigrationError, match="holds the ledger of a migration"):
        take.take(walk.context, walk.taking())


def test_the_source_is_never_restored_on_its_own_server_however_it_is_spelled(walk: Walk, tmp_path: Path) -> None:  # noqa: F811
    link = tmp_path / "other"
    link.symlink_to(walk.monolith.host)
    with pytest.raises(MigrationError, match="is the source's own server"):
        take.take(walk.context, walk.taking(proof=True, proof_server=replace(walk.monolith, host=str(link))))
    assert snapshots(walk) == []


SPY = """
CREATE OR REPLACE FUNCTION public.spy(text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
    IF current_setting('is_superuser') = 'on' OR EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = session_user) THEN
        RAISE EXCEPTION 'it runs as %', session_user;
    END IF;
    RETURN true;
END $$
"""


def test_what_the_monoliths_owner_wrote_never_runs_as_a_role_with_powers(walk: Walk) -> None:  # noqa: F811
    ask(walk.monolith, "CREATE FUNCTION spy(text) RETURNS bool LANGUAGE sql AS 'SELECT true'; ALTER TABLE auth_user ADD CHECK (spy(username))")
    ask(walk.monolith, SPY)
    ask(walk.monolith, "CREATE EXTENSION pageinspect; CREATE PUBLICATION everything FOR ALL TABLES")  # another superuser's things
    ask(walk.monolith, "CREATE FUNCTION seen() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'")
    ask(walk.monolith, "CREATE EVENT TRIGGER seen ON sql_drop EXECUTE FUNCTION seen(); COMMENT ON EVENT TRIGGER seen IS 'x'")
    migrator = replace(walk.context.targets["auth_service"], name="proof", session_role=None)
    for server, power in ((replace(walk.superuser, name="proof"), "a superuser"), (migrator, "a member of ")):
        with pytest.raises(MigrationError, match=rf"functions in the monolith's dump would run as {server.user} \(.*{power}"):
            take.take(walk.context, walk.taking(proof=True, proof_server=server))
    assert not walk.root.exists()
    before = ask(walk.superuser, "SELECT count(*) FROM pg_database")
    taken = take.take(walk.context, walk.taking(proof=True))
    proof = walk.history(PROOF)[0]
    assert [(item["name"], item["server"]) for item in proof.detail["databases"]] == [
        ("monolith", throwaway.NAME), ("auth_service", "auth_service"), ("user_service", "user_service"),
    ]  # fmt: skip
    assert ask(walk.superuser, "SELECT count(*) FROM pg_database") == before
    assert manifest.read(Path(taken.folder), None).database("monolith").content.tables
    assert list(Path("/var/tmp").glob("migration-throwaway-*")) == []


def test_a_role_without_powers_proves_on_the_services_server(walk: Walk) -> None:  # noqa: F811
    plain = f"plain_{walk.context.control.dbname}"
    ask(walk.superuser, f"CREATE ROLE {plain} LOGIN CREATEDB PASSWORD 'plain'")
    server = replace(walk.superuser, name="proof", user=plain, password="plain")
    ask(walk.monolith, "CREATE EXTENSION pageinspect")
    with pytest.raises(MigrationError, match=r"not be proven: the role plain_\w+ cannot make the extensions pageinspect of monolith .*thrown away"):
        take.take(walk.context, walk.taking(proof=True, proof_server=server))
    ask(walk.monolith, "DROP EXTENSION pageinspect")
    take.take(walk.context, walk.taking(proof=True, proof_server=server))
    assert {item["server"] for item in walk.history(PROOF)[0].detail["databases"]} == {"proof"}


def test_without_a_server_for_it_the_proof_is_refused_with_what_would_help(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(throwaway, "_PACKAGES", ("no_such_package",))
    told = r"lacks no_such_package; install it there \(pip\), or name a server in snapshot_verify_server; snapshot_verify_restore=false goes without"
    with pytest.raises(MigrationError, match=told):
        take.take(walk.context, walk.taking(proof=True))
    assert [item.message for item in rollback_readiness.check(walk.context) if "no_such_package" in item.message]
    assert not rollback_readiness.check(walk.context, verify_server=True)


@pytest.mark.parametrize("function", ["sha256(bytea)", "lo_get(oid)", "pg_export_snapshot()"])
def test_preflight_tries_what_the_snapshot_will_do(walk: Walk, function: str) -> None:  # noqa: F811
    number = ask(walk.monolith, "SELECT lo_from_bytea(0, 'x')")
    ask(walk.monolith, f"GRANT SELECT ON LARGE OBJECT {number} TO {walk.context.source.user}")
    assert snapshot_trial.check(walk.context) == []
    ask(walk.monolith, f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
    (found,) = snapshot_trial.check(walk.context)
    assert (found.place, found.level) == ("monolith", "stop")
    assert f"permission denied (function {function.partition('(')[0]})" in found.message
    with pytest.raises(MigrationError, match="permission denied"):
        take.take(walk.context, walk.taking())


def test_a_throw_away_server_goes_with_the_process_that_was_killed(server_root: Path) -> None:
    def work() -> None:
        with throwaway.throw_away(server_root):
            assert list(server_root.glob("migration-throwaway-*"))
            os.kill(os.getpid(), signal.SIGKILL)

    left = server_root / "migration-throwaway-left"
    left.mkdir()  # by a machine that lost its power
    die_in(work)
    deadline = time.monotonic() + 30
    while (found := list(server_root.glob("migration-throwaway-*"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == []
    assert not [item for item in psutil.process_iter(["cmdline"]) if "migration-throwaway-" in " ".join(item.info["cmdline"] or [])]


def test_an_old_client_is_refused_by_name(walk: Walk, tmp_path: Path) -> None:  # noqa: F811
    old = tmp_path / "old"
    old.mkdir()
    for name in clients.PROGRAMS:
        (old / name).write_text('#!/bin/sh\necho "pg_dump (PostgreSQL) 15.2"\n')
        (old / name).chmod(0o755)
    with pytest.raises(MigrationError, match=rf"the server is PostgreSQL 18 .*{old}/pg_dump is 15.2"):
        take.take(walk.context, walk.taking(dump=DumpOptions(bin_dir=str(old))))
    assert dump.compression("gzip:4", 15) == "4"
