# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the mutation campaign on a server of its own: python -m tests.mutation --mutations 2000."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys

from ansible.module_utils.migration.embedded import process
from ansible.module_utils.migration.embedded import server as postgres
from ansible.module_utils.migration.postgres.driver import Endpoint, connect
from ansible.module_utils.migration.validate import run as validate

from . import campaign, world


def main() -> int:
    """Start a server, run the campaign and the clean runs, stop the server; 1 when anything was missed or made up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--clean-runs", type=int, default=50, help="validations of undamaged random data, each with another seed")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--digest", default="auto", choices=["auto", "record", "sha256"])
    options = parser.parse_args()
    root = process.new_root("edulink-mutate-")
    account = process.Account.for_servers()
    server = postgres.PostgresServer("mutate", root / "pg", postgres.binaries(root, account), secrets.token_urlsafe(18), postgres.THROW_AWAY, account)
    postgres.create(server)
    postgres.start(server)

    def make(name: str) -> Endpoint:
        chosen = f"{name}_{secrets.token_hex(4)}"
        connection = connect(server.endpoint(), application_name="mutation campaign", autocommit=True)
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{chosen}" TEMPLATE template0')
        connection.close()
        return server.endpoint(chosen)

    try:
        print(f"seed {options.seed}", flush=True)
        score = campaign.run(make, mutations=options.mutations, users=options.users, seed=options.seed, digest=options.digest)
        for number in range(options.clean_runs):
            made = world.make_world(make, users=60 + number * 7, seed=options.seed + 1 + number)
            found = validate.compare(made.context, world.PLAN_TIME, options=validate.Options(settle_attempts=0, digest=options.digest))
            score.clean_runs += 1
            score.false_alarms += [finding.line for finding in found.findings] + [reference.line for reference in found.references if reference.dangling]
    finally:
        postgres.stop(server)
        shutil.rmtree(root)
    for line in [f"missed: {line}" for line in score.missed[:50]] + [f"false alarm: {line}" for line in score.false_alarms[:50]]:
        print(line)
    for what, count in score.ways.most_common():
        print(f"{count:6} {what}")
    print(f"{score.clean_runs} clean runs")
    print(score.line)
    return 1 if score.missed or score.false_alarms else 0


if __name__ == "__main__":
    sys.exit(main())
