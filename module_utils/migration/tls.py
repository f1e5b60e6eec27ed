# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a connection may be made as the inventory says: beyond this machine nothing is sent in clear unless the inventory says so.

A fault is (what is wrong, what to do). A host is judged as it is written, never by what a resolver says of it.
"""

from __future__ import annotations

import ipaddress

Fault = tuple[str, str]
SILENT = ("allow", "prefer")  # modes of libpq that go on in clear when the other side, or somebody between, says that it has no TLS
_DATABASE = "set ssl_mode: verify-full and ca_cert (ssl_mode: disable if clear text is meant)"
_STORE = "set session_store_tls: true and session_store_tls_ca (false if clear text is meant)"


def is_local(host: str) -> bool:
    """Return whether a host, or every one of libpq's list, is a Unix socket or this machine's loopback."""
    return all(_is_local(one) for one in host.split(","))


def _is_local(host: str) -> bool:
    if not host or host.startswith(("/", "@")) or host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback and (address.version == 4 or address == ipaddress.IPv6Address("::1"))


def database_refusal(host: str, mode: str | None) -> Fault | None:
    """Return why no connection to a database is made, or None."""
    if is_local(host) or (mode and mode not in SILENT):
        return None
    if not mode:
        return f"{host} is not this machine and ssl_mode is not set", _DATABASE
    return f"{host} is not this machine, and ssl_mode {mode} sends the password in clear when the answer is that there is no TLS", _DATABASE


def database_weakness(host: str, mode: str | None) -> Fault | None:
    """Return what a connection that is made lacks, or None."""
    step = "set ssl_mode: verify-full and ca_cert"
    if mode == "verify-full" or is_local(host):
        return None
    if mode == "verify-ca":
        return f"any server of this authority would do for {host} (ssl_mode verify-ca)", step
    if mode == "require":
        return f"nobody checks who {host} is (ssl_mode require)", step
    return f"passwords and rows go to {host} in clear (ssl_mode {mode})", step


def store_refusal(hosts: list[str], tls: bool | None) -> Fault | None:
    """Return why no connection to a session store is made, or None; `tls` is None when nobody said."""
    far = [host for host in hosts if not is_local(host)]
    return (f"{far[0]} is not this machine and session_store_tls is not set", _STORE) if far and tls is None else None


def store_weakness(hosts: list[str], tls: bool | None, *, verify_host: bool) -> Fault | None:
    """Return what a connection to a session store that is made lacks, or None."""
    far = [host for host in hosts if not is_local(host)]
    if not far or (tls and verify_host):
        return None
    if tls:
        return f"any server of this authority would do for {far[0]} (session_store_tls_verify_host: false)", "set session_store_tls_verify_host: true"
    return f"the password and sessions go to {far[0]} in clear (session_store_tls: false)", "set session_store_tls: true and session_store_tls_ca"
