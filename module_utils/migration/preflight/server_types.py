# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types that are not built in (hstore, ltree, vector): does the service's server have them, and does the monolith?"""

from __future__ import annotations

from collections.abc import Mapping

from ..checks.findings import STOP, Finding
from ..contract.model import Contract
from ..plan.model import Plan
from ..postgres import driver
from ..postgres.quote import ident

_TRANSFERABLE = "SELECT typreceive <> 0 AND typsend <> 0 FROM pg_type WHERE oid = to_regtype(%s)"


def check(source: driver.Connection, targets: Mapping[str, driver.Connection], plan: Plan) -> list[Finding]:
    """Return a finding for each type that a service's server lacks, and each that the monolith cannot send."""
    findings: list[Finding] = []
    for service, data in plan.contracts:
        contract = Contract.from_dict(data)
        pending = _pending(targets[service], contract)
        for table in contract.tables:
            for column in table.columns:
                if column.server_type and not pending:
                    findings += _on_target(targets[service], service, column.server_type, f"{table.path}:{column.line}", f"{table.key}.{column.name}")
    wanted = {(cell.type, cell.place) for target in plan.targets for part in target.parts for cell in part.cells if "." in cell.type and not cell.is_id}
    for kind, place in sorted(wanted):
        if not driver.scalar(source, _TRANSFERABLE, (kind,)):
            step = f"create its extension in that schema of the monolith, or write in the schema SQL the schema where the monolith has {kind}"
            findings.append(Finding(STOP, place, "type", f"the monolith has no type {kind} to send the column as", step))
    return findings


def _pending(connection: driver.Connection, contract: Contract) -> bool:
    """Return whether the schema phase will create an extension first, whose types nobody can look up yet."""
    names = [statement.object[0] for statement in contract.preamble if statement.kind == "extension"]
    return any(not driver.scalar(connection, "SELECT true FROM pg_extension WHERE extname = %s", (name,)) for name in names)


def _on_target(connection: driver.Connection, service: str, kind: str, place: str, column: str) -> list[Finding]:
    # A bare name is meant under the search_path of the schema phase, which asks with its own connection.
    names = (kind,) if "." in kind else (f"{ident(service)}.{kind}", f"public.{kind}", kind)
    usable = [driver.scalar(connection, _TRANSFERABLE, (name,)) for name in names]
    if any(usable):
        return []
    if any(item is False for item in usable):
        return [Finding(STOP, place, "type", f"{column}: the type {kind} has no binary form, so COPY cannot carry it", "use another type in the schema SQL")]
    step = "create its extension there, write CREATE EXTENSION in the schema SQL, or correct the name"
    return [Finding(STOP, place, "type", f"{column}: the server of {service} has no type {kind}", step)]
