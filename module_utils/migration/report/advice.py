# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a validation found in one line, and what helps against it: repair only where rows differ. Reads what validation.json keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..text import counted

CHECKS = ("accounting", "quarantine", "sequences", "authorisation", "canaries", "baseline")  # beside the rows and their references
FEW = 1000  # as many rows as repair changes without being told


@dataclass(frozen=True)
class Remedy:
    """The playbook to run next and why."""

    command: str
    why: str

    def to_dict(self) -> dict[str, str]:
        """Return both for a module's result."""
        return {"command": self.command, "why": self.why}


def failed(validation: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the checks beside the rows that did not pass, in the order in which they are told."""
    return tuple(name for name in CHECKS if isinstance(validation.get(name), Mapping) and not validation[name].get("passed", True))


def differences(validation: Mapping[str, Any]) -> int:
    """Return how many rows differ."""
    tables = [item for item in validation.get("tables", []) if isinstance(item, Mapping)]
    return int(validation.get("differences") or sum(item.get("differences") or 0 for item in tables))


def dangling(validation: Mapping[str, Any]) -> int:
    """Return how many references have no row."""
    return sum(item.get("dangling") or 0 for item in validation.get("references", []) if isinstance(item, Mapping))


def what_failed(validation: Mapping[str, Any]) -> str:
    """Return what did not pass in a few words, '' when all did."""
    rows, loose = differences(validation), dangling(validation)
    said = [counted(rows, "row differs", "rows differ")] if rows else []
    said += [counted(loose, "reference has no row", "references have no row")] if loose else []
    return "; ".join([*said, *(str(validation[name].get("verdict", f"{name} failed")) for name in failed(validation))])


def remedy(validation: Mapping[str, Any]) -> Remedy:
    """Return what helps against what a failed validation found, the first step of it."""
    rows, others = differences(validation), failed(validation)
    if "quarantine" in others:
        # Rows whose keys are in migration.rejects are expected nowhere: repair would delete those that belong there.
        after = ", then validate, and repair what still differs" if rows else ", then validate"
        fit = counted(int(validation["quarantine"].get("fit") or 0), "quarantined row")
        return Remedy("playbooks/release.yml", f"no rule keeps out {fit} (any more): bring in what fits{after}")
    if rows:
        seldom = "; so many are seldom single faults: find out first what wrote to the service" if rows > FEW else ""
        many = counted(rows, "row differs", "rows differ")
        return Remedy("playbooks/repair.yml", f"{many}: look at the report, then repair, which validates again{seldom}")
    if "sequences" in others:
        full = [item["sequence"] for item in validation["sequences"].get("behind", []) if item.get("exhausted")]
        if full:
            return Remedy("playbooks/validate.yml", f"{', '.join(full[:3])} has no free value left: widen it as the line says, then repair, then validate")
        return Remedy("playbooks/repair.yml", "a service's next INSERT would collide: it moves the sequences past the rows")
    if dangling(validation):
        return Remedy("playbooks/preflight.yml", "the rows are equal, so the monolith itself refers to rows that it does not have: mend those, then validate")
    if "accounting" in others or "authorisation" in others:
        what = "leaves rows out" if "accounting" in others else "gives other rights than the monolith has"
        return Remedy("playbooks/rollback.yml", f"the rows are what the mappings make of them, so a mapping {what}: start over with this and a right one")
    if "canaries" in others:
        return Remedy("playbooks/validate.yml", "the hashes are the monolith's: set right what the canaries' lines name in validate_canaries, then validate")
    if "baseline" in others:
        return Remedy("playbooks/index.yml", "the services answer too slowly: this completes keys and statistics; validate then, or see what loads the server")
    return Remedy("playbooks/validate.yml", "the report says why")
