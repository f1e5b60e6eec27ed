# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cache whose values other languages can read."""

from __future__ import annotations

import json
from typing import Any


class JSONSerializer:
    """Store values as JSON."""

    def dumps(self, value: Any) -> bytes:
        """Return the stored form."""
        return json.dumps(value).encode()

    def loads(self, value: bytes) -> Any:
        """Return what was stored."""
        return json.loads(value)
