# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every phase's module is given: the plan, the ways to the databases, the namespace."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .errors import MigrationError
from .plan import ids, null_references
from .plan.model import Plan
from .plan.null_references import Quarantined
from .postgres import driver, faults, identity
from .postgres.driver import ENDPOINT_SPEC, Endpoint

CONTEXT_SPEC: dict[str, Any] = {
    "plan": {"type": "dict", "required": True},
    "connections": {
        "type": "dict",
        "required": True,
        "options": {
            "source": {"type": "dict", "required": True, "options": ENDPOINT_SPEC},
            "targets": {"type": "list", "elements": "dict", "required": True, "options": ENDPOINT_SPEC},
            "control": {"type": "dict", "required": True, "options": ENDPOINT_SPEC},
            "namespace": {"type": "str", "required": True, "no_log": True},
        },
    },
}


def _folder(plan: Plan, service: str) -> str:
    """Return the folder of a service's mappings as the plan was read from it."""
    return next((part.path.rpartition("/")[0] for target in plan.of(service) for part in target.parts), service)


@dataclass(frozen=True)
class Context:
    """The plan, the ways to the databases and the namespace of one run."""

    plan: Plan
    source: Endpoint
    targets: Mapping[str, Endpoint]
    control: Endpoint
    namespace: str = field(repr=False)
    check: bool = False
    quarantined: Quarantined | None = None  # what projections take for quarantined instead of what the ledgers say

    @classmethod
    def from_params(cls, params: Mapping[str, Any], check: bool, *, distinct: bool = True) -> Context:
        """Return the context that a module's options (CONTEXT_SPEC) describe.

        MigrationError when two of its hosts are one database; only what tells of the databases and nothing more may go without (`distinct`).
        """
        connections = params["connections"]
        plan = Plan.from_dict(params["plan"])
        faults.know(plan.names())
        targets = {item["name"]: Endpoint.from_params(item) for item in connections["targets"]}
        missing = [service for service in plan.services if service not in targets]
        if missing:
            folder = _folder(plan, missing[0])
            raise MigrationError(f"the group 'targets' has no host {missing[0]!r}, but {folder} has mappings for it; add the host or remove the mappings")
        if ids.fingerprint(connections["namespace"]) != plan.fingerprint:
            raise MigrationError("the plan was made with another migration_namespace than the one given; run the whole playbook again")
        source, control = Endpoint.from_params(connections["source"]), Endpoint.from_params(connections["control"])
        if distinct:
            identity.require_distinct(source, list(targets.values()), control)
        return cls(
            plan=plan,
            source=source,
            targets=MappingProxyType(targets),
            control=control,
            namespace=connections["namespace"],
            check=check,
        )

    def connect_source(
        self, application_name: str, *, plan_time: str, settings: Mapping[str, str] | None = None, autocommit: bool = False
    ) -> driver.Connection:
        """Connect to the source, read only, with the settings that the plan's projections need."""
        connection = driver.connect(
            self.source,
            application_name=application_name,
            readonly=True,
            settings={**self.plan.settings(self.namespace, plan_time), **(settings or {})},
            autocommit=autocommit,
        )
        if self.plan.needed_quarantine:
            with driver.database_errors(self.source.place, "telling it which rows are quarantined"):
                null_references.tell(connection, self.plan, self.known_quarantine(application_name))
        return connection

    def known_quarantine(self, application_name: str) -> Quarantined:
        """Return the quarantined keys that projections must know of."""
        if self.quarantined is not None:
            return self.quarantined

        def ask(service: str, statement: str) -> list[tuple[Any, ...]]:
            reading = driver.database_errors(self.targets[service].place, "reading migration.rejects")
            with contextlib.closing(self.connect_target(service, application_name, readonly=True, autocommit=True)) as connection, reading:
                return driver.rows(connection, statement)

        return null_references.recorded(self.plan, ask)

    def connect_target(
        self,
        service: str,
        application_name: str,
        *,
        readonly: bool = False,
        settings: Mapping[str, str] | None = None,
        autocommit: bool = False,
    ) -> driver.Connection:
        """Connect to one of the target databases."""
        return driver.connect(
            self.targets[service], application_name=application_name, readonly=readonly, settings=settings, autocommit=autocommit
        )
