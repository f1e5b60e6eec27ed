# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that every phase's module has: the plan and the ways to the databases."""

from __future__ import annotations

_ENDPOINT = """
name:
  description: The inventory host that stands for the database.
  type: str
  required: true
login_host:
  description: Host, or folder of the Unix socket (/var/run/postgresql), for peer authentication say.
  type: str
  default: ""
login_port:
  description: Port.
  type: int
  default: 5432
login_db:
  description: Database.
  type: str
  required: true
login_user:
  description: Role to log in as.
  type: str
  required: true
login_password:
  description: Its password, evaluated anew by each task. Left out, libpq's own ways are used, a password file (.pgpass) or a certificate.
  type: str
ssl_mode:
  description:
    - How TLS is used and what is verified. Needed unless login_host is a socket or this machine (localhost, 127.0.0.0/8, ::1).
    - For another host allow and prefer are refused, disable (clear text), require and verify-ca are warned of by preflight.
  type: str
  choices: [disable, allow, prefer, require, verify-ca, verify-full]
ca_cert:
  description: File with the certificate authority's certificate.
  type: path
ssl_cert:
  description: File with the client's certificate.
  type: path
ssl_key:
  description: File with the client's key.
  type: path
session_role:
  description: Role to take on after login, usually the database's owner, which then owns what is made.
  type: str
schema:
  description: Schema of the monolith's tables; only the source has one.
  type: str
"""


def _indent(text: str, by: int) -> str:
    return "\n".join(" " * by + line for line in text.strip().splitlines())


class ModuleDocFragment:
    """Options of CONTEXT_SPEC in module_utils/migration/context.py, and of a server for the snapshot's proof."""

    VERIFY_SERVER = f"""
options:
  verify_server:
    description:
      - The operator's own server for the proof of the snapshot, as a connection.
      - Without it targets are proven beside themselves, and the source on a server that is started on the runner and thrown away.
    type: dict
    suboptions:
{_indent(_ENDPOINT, 6)}
"""

    DOCUMENTATION = f"""
options:
  plan:
    description: The plan that the module migration_plan returned.
    type: dict
    required: true
  connections:
    description: The ways to the databases and the namespace, made from the inventory by the filter migration_connections.
    type: dict
    required: true
    suboptions:
      source:
        description: The monolith's database.
        type: dict
        required: true
        suboptions:
{_indent(_ENDPOINT, 10)}
      targets:
        description: The services' databases.
        type: list
        elements: dict
        required: true
        suboptions:
{_indent(_ENDPOINT, 10)}
      control:
        description: The database of the migration's own records.
        type: dict
        required: true
        suboptions:
{_indent(_ENDPOINT, 10)}
      namespace:
        description: The environment's secret namespace of the UUIDs.
        type: str
        required: true
"""
