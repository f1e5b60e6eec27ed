# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventory variables to module options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

_REQUIRED = ("login_host", "login_db", "login_user")
_OPTIONAL = ("login_port", "login_password", "ssl_mode", "ca_cert", "ssl_cert", "ssl_key", "session_role")
_GROUPS = ("source", "targets", "control", "runners", "session_store")
_MISTYPED = 0.85  # of difflib's ratio: a letter or two
_ROLES = Path(__file__).resolve().parents[1] / "roles"


def migration_endpoint(hostvars: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Return how to reach the database that the inventory host `host` stands for."""
    if host not in hostvars:
        raise AnsibleFilterError(f"the inventory has no database host {host!r}")
    variables = hostvars[host]
    for name in _REQUIRED:
        if name not in variables:
            raise AnsibleFilterError(
                f"host_vars/{host}: {name} is not set. For the lab run 'ansible-playbook playbooks/lab.yml', for other"
                " environments see \"Point it at your own databases\" in README.md."
            )
    endpoint = {"name": host, **{name: variables[name] for name in _REQUIRED}}
    endpoint |= {name: variables[name] for name in _OPTIONAL if variables.get(name) is not None}
    if "source_schema" in variables:
        endpoint["schema"] = variables["source_schema"]
    return endpoint


def migration_connections(hostvars: Mapping[str, Any], groups: Mapping[str, Sequence[str]], namespace: str, suffix: str = "") -> dict[str, Any]:
    """Return the `connections` option of the phases' modules, from the groups source, targets and control.

    A `suffix` names the copies that a rehearsal works on instead: it is added to the database names of targets and control.
    """
    for name in ("source", "control"):
        if len(groups.get(name, [])) != 1:
            raise AnsibleFilterError(f"the inventory's group {name!r} must have exactly one host, it has {len(groups.get(name, []))}")
    if not groups.get("targets"):
        raise AnsibleFilterError("the inventory's group 'targets' has no host")
    return {
        "source": migration_endpoint(hostvars, groups["source"][0]),
        "targets": [_copy(migration_endpoint(hostvars, host), suffix) for host in groups["targets"]],
        "control": _copy(migration_endpoint(hostvars, groups["control"][0]), suffix),
        "namespace": namespace,
    }


def migration_unset(hostvars: Mapping[str, Any], groups: Mapping[str, Sequence[str]], needed: Mapping[str, Sequence[str]], hosts: Sequence[str]) -> list[str]:
    """Return each variable that is not set, with the hosts that lack it.

    `needed` lists variables by the group of which every host of the play (`hosts`) needs them; every database needs its address.
    """
    wanted = [(name, host) for group, names in needed.items() for name in names for host in groups.get(group, []) if host in hosts]
    databases = [host for group in ("source", "targets", "control") for host in groups.get(group, [])]
    wanted += [(name, host) for name in _REQUIRED for host in databases]
    lacking: dict[str, list[str]] = {}
    for name, host in wanted:
        if name not in hostvars[host]:
            lacking.setdefault(name, []).append(host)
    return [f"{name} for {' and '.join(unset)}" for name, unset in lacking.items()]


# Options that have another name now; a run with the old one would do without what it asked for.
_RENAMED = {
    "snapshot_proof": "snapshot_verify_restore",
    "snapshot_proof_server": "snapshot_verify_server",
}


def migration_unknown(hostvars: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each variable that was an option or is nearly one of the role whose prefix it has, with that option.

    What is like no option may be the operator's own (schema_registry_url), and so are all variables of hosts outside the migration's groups.
    """
    options = {path.parts[-3]: set(_options(path)) for path in sorted(_ROLES.glob("*/meta/argument_specs.yml"))}
    known = {name for names in options.values() for name in names}
    set_here = {str(name) for group in _GROUPS for host in groups.get(group, []) for name in hostvars[host]}
    nearest = {name: difflib.get_close_matches(name, sorted(options.get(name.partition("_")[0], ())), n=1, cutoff=_MISTYPED) for name in set_here - known}
    said = {name: f"did you mean {near[0]}?" for name, near in nearest.items() if near}
    said |= {name: f"it is called {new} now" for name, new in _RENAMED.items() if name in set_here}
    return [f"{name} ({what})" for name, what in sorted(said.items())]


def _options(path: Path) -> Mapping[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"].get("options") or {}


def _copy(endpoint: dict[str, Any], suffix: str) -> dict[str, Any]:
    return {**endpoint, "login_db": f"{endpoint['login_db']}{suffix}"}


def migration_faults(hostvars: Mapping[str, Any], hosts: Sequence[str], name: str) -> list[str]:
    """Return, for each host whose registered result `name` is a failure or missing, a line that says why."""
    faults = []
    for host in hosts:
        result = hostvars[host].get(name)
        if result is None:
            faults.append(f"{host}: was lost before it began")
        elif result.get("unreachable"):
            faults.append(f"{host}: cannot be reached: {result.get('msg', 'no reason given')}")
        elif result.get("failed"):
            faults.append(f"{host}: {result.get('msg', 'failed without a message')}")
    return faults


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "migration_connections": migration_connections,
            "migration_endpoint": migration_endpoint,
            "migration_faults": migration_faults,
            "migration_unknown": migration_unknown,
            "migration_unset": migration_unset,
        }
