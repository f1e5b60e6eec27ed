# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module stops at once with its Ansible, even while it waits for a server."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
from ansible.module_utils.migration.postgres.driver import Endpoint, connect, rows, scalar
from ansible.module_utils.migration.stopping import stop_with_ansible


def _wait_for_a_server(endpoint: Endpoint, reader: int, result: int) -> None:
    os.close(reader)
    stop_with_ansible(result)
    rows(connect(endpoint, application_name="stopping", autocommit=True), "SELECT pg_sleep(60)")


def sleeps(endpoint: Endpoint) -> int:
    connection = connect(endpoint, application_name="tests", autocommit=True)
    try:
        return int(scalar(connection, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stopping' AND query LIKE '%pg_sleep%'"))
    finally:
        connection.close()


@pytest.mark.parametrize("how", ["interrupted", "terminated", "nobody reads its result"])
def test_a_module_that_waits_for_a_server_ends_at_once(database: Endpoint, how: str) -> None:
    reader, writer = os.pipe()
    module = multiprocessing.get_context("fork").Process(target=_wait_for_a_server, args=(database, reader, writer))
    module.start()
    os.close(writer)
    deadline = time.monotonic() + 10
    while not sleeps(database) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert module.is_alive()
    if how == "nobody reads its result":
        os.close(reader)
    else:
        os.kill(module.pid or 0, signal.SIGINT if how == "interrupted" else signal.SIGTERM)
    module.join(timeout=3)
    ended = not module.is_alive()
    module.kill()
    module.join()
    assert ended
