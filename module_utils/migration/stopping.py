# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop a long module at once when Ansible stops.

What is open is rolled back by dying, so nothing has to be tidied up first. Python's own way of being interrupted waits until the
server has answered, which can take as long as an index takes to build. A module whose Ansible was killed ends too, for nobody would
hear what it says. On a remote runner the module's reader is Ansible's asynchronous wrapper there, which a lost connection leaves alone.
"""

from __future__ import annotations

import os
import select
import signal
import threading

_STDOUT = 1
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


def stop_with_ansible(descriptor: int = _STDOUT) -> None:
    """End this process at once on SIGINT, SIGTERM and SIGHUP, and when nobody reads the pipe of its result any more.

    A descriptor that is no pipe (a file, /dev/null) has no reader to lose. Processes forked from this one inherit the signals' part.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(descriptor,), name="reader", daemon=True).start()


def _watch(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, 0)  # that the reader is gone is always reported
    while True:
        if any(event & _GONE for _, event in poll.poll()):
            os._exit(1)
