# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say why libpq could not connect or lost a connection, without repeating the text that the other side sent.

libpq gives no SQLSTATE then. What answers may be no PostgreSQL server, and a login trigger may raise what it likes.
"""

from __future__ import annotations

import re

POOLER = "a pooler stands in between: name the server itself as login_host and login_port in"
_START = "start the server, or correct login_host and login_port in"
_CHECK = "check login_* and ssl_* in"
_TLS = "check ssl_mode, ca_cert, ssl_cert and ssl_key in"
_LOGIN = "check login_user and login_password in"
_LATER = "look at the server's log and run this again; its address is in"

_CAUSES = tuple(
    (re.compile(pattern, re.IGNORECASE), fault, step)
    for pattern, fault, step in (
        (
            r"unsupported startup parameter|startup parameter",
            "the startup settings were refused",
            POOLER,
        ),
        (
            r"could not translate host name|could not parse network address|Name or service not known",
            "the host's name is not known",
            _START,
        ),
        (
            r"Connection refused",
            "the connection was refused",
            _START,
        ),
        (
            r"No such file or directory.*Is the server running|Is the server running locally",
            "there is no such socket",
            _START,
        ),
        (
            r"No route to host|Network is unreachable",
            "no way leads to the host",
            _START,
        ),
        (
            r"timeout expired|timed out",
            "the server did not answer in time",
            _START,
        ),
        (
            r"password authentication failed|authentication failed",
            "the password or the role is wrong",
            _LOGIN,
        ),
        (
            r"no password supplied|empty password",
            "a password is needed and none is given",
            "set login_password (in the vault) or a pgpass file; see",
        ),
        (
            r"no pg_hba.conf entry|pg_hba.conf rejects",
            "the server's pg_hba.conf has no line for this role, database and address",
            "add one there, or check login_* and ssl_mode in",
        ),
        (
            r"certificate verify failed",
            "certificate verify failed: the server's certificate is not of the authority in ca_cert, or has expired",
            _TLS,
        ),
        (
            r"server certificate .*does not match host name|does not match host name",
            "the server's certificate names another host",
            _TLS,
        ),
        (
            r"root certificate file .* does not exist|could not read root certificate file",
            "the file ca_cert cannot be read",
            _TLS,
        ),
        (
            r"could not (?:read|load) certificate|certificate file .* does not exist|certificate present, but not private key",
            "the file ssl_cert cannot be read",
            _TLS,
        ),
        (
            r"private key file",
            "the file ssl_key cannot be read, or others may read it too",
            _TLS,
        ),
        (
            r"server does not support SSL",
            "the server does not speak TLS",
            _TLS,
        ),
        (
            r"SSL error|SSL SYSCALL|tlsv1 alert|SSL negotiation",
            "TLS failed",
            _TLS,
        ),
        (
            r"role \S+ is not permitted to log in",
            "the role is not permitted to log in",
            _LOGIN,
        ),
        (
            r"permission denied for database|does not have CONNECT privilege",
            "the role may not connect to the database",
            "GRANT CONNECT, or check login_* in",
        ),
        (
            r"permission denied to set role|permission denied to set parameter",
            "the role may not become session_role, or may not set a setting",
            "GRANT it the role, or check session_role in",
        ),
        (
            r"database .* does not exist",
            "the database does not exist",
            _CHECK,
        ),
        (
            r"role .* does not exist",
            "the role does not exist",
            _CHECK,
        ),
        (
            r"invalid value for parameter|unrecognized configuration parameter",
            "the server refuses a startup setting (session_role must exist there)",
            _CHECK,
        ),
        (
            r"too many (?:connections|clients)|remaining connection slots",
            "all connections of the server, the role or the database are taken",
            _LATER,
        ),
        (
            r"starting up|shutting down|in recovery mode|not (?:yet )?accepting connections",
            "the server does not accept connections now",
            _LATER,
        ),
        (
            r"terminating connection|server closed the connection|Connection reset|EOF detected|could not receive data|connection already closed|Broken pipe",
            "the server ended the connection",
            _LATER,
        ),
        (
            r"invalid connection option|invalid (?:integer|sslmode|port)|in connection info string|invalid dsn",
            "libpq does not understand an option",
            _CHECK,
        ),
    )
)
_OTHER = "libpq gives a reason that is not shown here, because the other side may have written it; psql says it with the same address"


def why(text: str) -> tuple[str, str]:
    """Return what libpq's text was about, and what to do; the place is to follow."""
    flat = " ".join(text.split())
    return next(((fault, step) for pattern, fault, step in _CAUSES if pattern.search(flat)), (_OTHER, _CHECK))


def lost(text: str) -> str:
    """Return why a connection that stood was lost."""
    fault = why(text)[0]
    return "the connection was lost" if fault == _OTHER else f"the connection was lost: {fault}"
