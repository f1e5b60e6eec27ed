# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make wayback`: run the campaign, about four minutes; the kill table is written to artifacts/wayback/kills.md.

Besides what `make test` needs it takes the programs age, age-keygen and gpg, and root on Linux for the full disk (a tmpfs);
a part whose tool is missing is left out by name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    here = Path(__file__).parent
    sys.exit(pytest.main(["-q", "-x", "-rs", *(str(here / name) for name in ("kills.py", "disks.py", "sealed.py")), *sys.argv[1:]]))
