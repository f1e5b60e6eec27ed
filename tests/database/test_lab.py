# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab starts whole, is left alone when it stands, comes back after a kill, and goes without a trace."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.lab import lab, layout
from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded import server as postgres
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres.driver import Endpoint, connect, rows, scalar
from ansible.module_utils.migration.preflight import excess_rights
from ansible.modules import migration_lab as module

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def options(tmp_path: Path) -> Iterator[lab.Options]:
    chosen = lab.Options(
        state_dir=tmp_path / "state",
        inventory_dir=tmp_path / "inventory",
        monolith_dir=PROJECT / "tests" / "monolith",
        users=60,
        sessions=20,
        postgres_settings={"fsync": "off"},
    )
    yield chosen
    lab.delete(chosen, check=False)


def endpoint(options: lab.Options, host: str, database: str, user: str) -> Endpoint:
    at = yaml.safe_load((options.inventory_dir / "host_vars" / host / "lab.yml").read_text())
    return Endpoint(host, at["login_host"], 5432, database, user, at["login_password"], sslmode="disable")


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_life_of_a_lab(options: lab.Options, tmp_path: Path) -> None:
    # A dry run tells what is to come and makes nothing.
    assert "fill the monolith with 60 users" in lab.start(options, check=True)
    assert not files(tmp_path)

    done = lab.start(options, check=False)
    assert "fill the monolith with 60 users" in done
    reader = endpoint(options, "monolith", "edulink", "migration_reader")
    connection = connect(reader, application_name="tests", readonly=True)
    assert scalar(connection, "SELECT count(*) FROM auth_user") == 60
    connection.rollback()
    connection.autocommit = True
    assert excess_rights.check(connection, "monolith", "public", ["auth_user", "users_profile"]) == []
    connection.close()
    for path in layout.generated_files(options.inventory_dir):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    # A second start, and its dry run, find nothing to do.
    written = files(tmp_path)
    assert lab.start(options, check=True) == []
    assert lab.start(options, check=False) == []
    assert files(tmp_path) == written

    # A killed server comes back with its data; the others are left alone.
    state = layout.read_state(options.state_dir)
    assert state is not None
    server = lab.describe(options, state).servers["user_service"]
    control = endpoint(options, "migration_control", "migration_control", "migrator")
    connection = connect(control, application_name="tests", autocommit=True)
    rows(connection, "CREATE TABLE kept AS SELECT 1 AS answer")
    connection.close()
    number = postgres.pid(server)
    assert number is not None
    os.kill(number, signal.SIGKILL)
    while process.alive(number, str(server.data)):
        time.sleep(0.01)
    assert lab.start(options, check=True) == ["start user_service"]
    assert lab.start(options, check=False) == ["start user_service"]
    connection = connect(control, application_name="tests")
    assert scalar(connection, "SELECT answer FROM kept") == 1
    connection.close()

    # Stopped is not deleted.
    stopping = [f"stop {name}" for name in ("monolith", "auth_service", "user_service", "sessions")]
    assert lab.stop(options, check=True) == stopping
    assert lab.stop(options, check=False) == stopping
    assert lab.stop(options, check=False) == []
    assert module.summary("stopped", options, state) == [f"The lab is in {state.root}, with 60 users; its servers are stopped."]
    assert module.summary("stopped", options, state, check=True) == [f"The lab is in {state.root}, with 60 users."]
    assert len(lab.start(options, check=False)) == 4

    # A temporary folder that somebody cleaned away: a new lab with the same secrets and no traces of the old.
    lab.stop(options, check=False)
    shutil.rmtree(state.root)
    assert "fill the monolith with 60 users" in lab.start(options, check=False)
    again = layout.read_state(options.state_dir)
    assert again is not None
    assert again.secrets == state.secrets

    # Deleted is deleted.
    planned = lab.delete(options, check=True)
    assert again.root.is_dir()
    assert lab.delete(options, check=False) == planned
    assert not again.root.exists()
    assert not files(tmp_path)
    assert lab.delete(options, check=False) == []


def test_a_killed_start_is_finished_by_the_next(options: lab.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lab, "_monolith", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            lab.start(options, check=False)
    assert lab.start(options, check=True) == ["fill the monolith with 60 users"]
    assert "fill the monolith with 60 users" in lab.start(options, check=False)
    assert lab.start(options, check=False) == []


def test_two_runs_do_not_make_two_labs(options: lab.Options) -> None:
    with lab.only_one(options.state_dir), pytest.raises(MigrationError, match="another run is working"), lab.only_one(options.state_dir):
        pass


def test_a_damaged_pointer_is_an_error_with_a_next_step(options: lab.Options) -> None:
    layout.replace_file(options.state_dir / layout.STATE_FILE, '{"root": "/tmp/x"')
    with pytest.raises(MigrationError, match="is damaged; end the lab's servers"):
        lab.start(options, check=False)
    (options.state_dir / layout.STATE_FILE).unlink()


def test_no_secret_shows_in_a_repr() -> None:
    secrets = layout.new_secrets()
    assert len(set(secrets.values())) == len(secrets)
    shown = repr(layout.State(Path("/tmp/x"), secrets))
    assert not any(secret in shown for secret in secrets.values())


def test_generated_yaml_is_literal_whatever_is_in_it() -> None:
    text = layout._yaml({"a": "{{ x }}: #1", "b": [{"port": 1}], "c": "yes"})
    assert yaml.safe_load(text) == {"a": "{{ x }}: #1", "b": [{"port": 1}], "c": "yes"}
