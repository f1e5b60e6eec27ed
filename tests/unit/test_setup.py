# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making the virtual environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.sh"


def test_setting_up_never_empties_what_a_link_points_to(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "precious").touch()
    link = tmp_path / "venv"
    link.symlink_to(shared)
    done = subprocess.run(["sh", str(SETUP), sys.executable, str(link)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is a link" in done.stderr
    assert [item.name for item in shared.iterdir()] == ["precious"]
