# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The short form of `make chaos`."""

from __future__ import annotations

import random

from tests import chaos


def test_kills_at_random_instants_leave_no_difference() -> None:
    seed = random.SystemRandom().randrange(10**6)
    assert chaos.campaign(kills=6, seed=seed, users=1500) == 0, f"seed {seed}"
