# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Be gentle: when the transfer waits, and how fast it may go.

Thresholds are the strategy's: CPU 80 %, memory 85 %, disk 90 % on the runner; beside them replication lag and long transactions on
the databases. A measure above its threshold pauses the transfer between two chunks; it goes on by itself once all are below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from ..errors import MigrationError
from ..postgres import driver

try:
    import psutil
except ImportError:  # the runner's own measures are then unknown, the databases' are not
    psutil = None  # type: ignore[assignment]  # its absence is asked for below


@dataclass(frozen=True)
class Limits:
    """What an operator allows; 0 switches a limit off. Rates are for one runner."""

    rows_per_second: float = 0
    bytes_per_second: float = 0
    cpu_percent: float = 80
    memory_percent: float = 85
    disk_percent: float = 90
    replication_lag_seconds: float = 60
    transaction_seconds: float = 3600
    pause: float = 0

    @classmethod
    def from_params(cls, params: Mapping[str, object]) -> Limits:
        """Return the limits that a module's option names; MigrationError for a name or a value that means nothing."""
        known = {item.name for item in fields(cls)}
        for name in params:
            if name not in known:
                raise MigrationError(f"limits: {name!r} is not known; use one of {', '.join(sorted(known))}")
        try:
            return cls(**{name: float(str(value)) for name, value in params.items()})
        except ValueError as exc:
            raise MigrationError("limits: every limit is a number; 0 switches one off") from exc

    def changed_by(self, controls: Mapping[str, float]) -> Limits:
        """Return the limits with those that the ledger's control rows name."""
        known = {item.name for item in fields(self)}
        return replace(self, **{name: value for name, value in controls.items() if name in known})


def runner_pressure(limits: Limits, path: str = "/") -> str | None:
    """Return why this runner should pause, or None; measures CPU since the last call."""
    if psutil is None:
        return None
    measures = (
        ("CPU", psutil.cpu_percent(), limits.cpu_percent),
        ("memory", psutil.virtual_memory().percent, limits.memory_percent),
        ("disk", psutil.disk_usage(path).percent, limits.disk_percent),
    )
    for name, value, limit in measures:
        if limit and value > limit:
            option = f"{name.lower()}_percent in migrate_limits (preflight_limits for preflight)"
            return f"{name} {value:.0f} % is over {limit:.0f} % on this runner; the limit is {option}"
    return None


def database_pressure(connection: driver.Connection, name: str, limits: Limits) -> str | None:
    """Return why a database should be left alone for now, or None; `connection` is in autocommit."""
    if limits.replication_lag_seconds:
        lag = driver.scalar(connection, "SELECT max(extract(epoch FROM replay_lag))::float8 FROM pg_stat_replication")
        if lag is not None and lag > limits.replication_lag_seconds:
            return f"a replica of {name} is {lag:.0f} s behind (limit {limits.replication_lag_seconds:.0f} s)"
    if limits.transaction_seconds:
        age = driver.scalar(
            connection,
            "SELECT max(extract(epoch FROM clock_timestamp() - xact_start))::float8 FROM pg_stat_activity"
            " WHERE datname = current_database() AND backend_type = 'client backend' AND application_name NOT LIKE 'edulink-migration%%'",
        )
        if age is not None and age > limits.transaction_seconds:
            return f"a transaction has been open on {name} for {age:.0f} s (limit {limits.transaction_seconds:.0f} s)"
    return None
