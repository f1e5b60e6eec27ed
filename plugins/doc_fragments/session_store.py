# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option of modules that reach the session store."""

from __future__ import annotations


class ModuleDocFragment:
    """The option `store`: STORE_SPEC of module_utils/migration/sessions."""

    DOCUMENTATION = """
options:
  store:
    description: The session store.
    type: dict
    required: true
    suboptions:
      mode:
        description: One server, a Sentinel or a Redis Cluster.
        type: str
        default: single
        choices: [single, sentinel, cluster]
      hosts:
        description: The server, the sentinels, or some nodes of the cluster.
        type: list
        elements: dict
        required: true
        suboptions:
          host:
            description: Host name or address.
            type: str
            required: true
          port:
            description: Port.
            type: int
            default: 6379
      username:
        description: The ACL user.
        type: str
      password:
        description: Its password.
        type: str
      db:
        description: The database; 0 in a cluster.
        type: int
        default: 0
      sentinel_name:
        description: The name that the sentinels know the primary by.
        type: str
        default: mymaster
      sentinel_username:
        description: The ACL user of the sentinels.
        type: str
      sentinel_password:
        description: Its password.
        type: str
      tls:
        description: Speak TLS and verify the server. Needed unless all hosts are this machine (localhost, 127.0.0.0/8, ::1); preflight warns of false.
        type: bool
      tls_ca:
        description: The certificate authority's file; without it the system's are trusted.
        type: path
      tls_cert:
        description: The client certificate's file.
        type: path
      tls_key:
        description: The client key's file.
        type: path
      tls_verify_host:
        description: Whether the certificate must name the host.
        type: bool
        default: true
"""
