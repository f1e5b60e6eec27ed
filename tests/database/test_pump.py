# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy that breaks says why."""

from __future__ import annotations

import contextlib

import psycopg2
import pytest
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.postgres.pump import pump

from tests.conftest import execute

ROWS = "SELECT public.warned(g) FROM generate_series(1, 2000) AS g"


def test_an_error_that_comes_with_a_warning_keeps_its_sqlstate(database: Endpoint, capfd: pytest.CaptureFixture[str]) -> None:
    fail = "RAISE WARNING 'as a server that crashes does'; RAISE EXCEPTION 'gone' USING ERRCODE = '57P01';"
    body = f"BEGIN IF g > 999 THEN {fail} END IF; RETURN g; END"
    execute(database, f"CREATE FUNCTION warned(g integer) RETURNS integer LANGUAGE plpgsql AS $${body}$$", "CREATE TABLE taken (a integer)")
    with contextlib.closing(connect(database, application_name="tests")) as source, contextlib.closing(connect(database, application_name="tests")) as target:
        with pytest.raises(psycopg2.Error) as failure:
            pump(source, ROWS, target, "COPY taken FROM STDIN (FORMAT binary)")
        assert failure.value.pgcode == "57P01"
        assert source.notices == []
    assert "SystemError" not in capfd.readouterr().err
