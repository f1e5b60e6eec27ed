# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection that is not local and is lost for a while once a module runs asynchronously."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as Local

LOST = 2.5  # seconds

DOCUMENTATION = """
name: flaky
short_description: For tests
description: The local machine, reached badly.
author: The Edulink migration project
extends_documentation_fragment: [connection_pipelining]
"""


class Connection(Local):
    """The local machine, reached badly."""

    transport = "flaky"
    _lost_until = 0.0

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run the command, or lose it."""
        if time.monotonic() < self._lost_until:
            raise AnsibleConnectionFailure("the cable is out")
        result: Any = super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        if "async_wrapper" in cmd and "chmod" not in cmd:
            type(self)._lost_until = time.monotonic() + LOST
        return result

    def reset(self) -> None:
        """Open the connection anew."""
