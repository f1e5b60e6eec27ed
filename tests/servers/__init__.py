# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole runbook against servers of every supported version; run it with `python -m tests.servers`."""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils
import ansible.modules

_PROJECT = Path(__file__).resolve().parents[2]
for _package, _folder in ((ansible.modules, "library"), (ansible.module_utils, "module_utils")):  # as conftest.py does under pytest
    if str(_PROJECT / _folder) not in _package.__path__:
        _package.__path__.append(str(_PROJECT / _folder))
