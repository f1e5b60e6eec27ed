# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The schema and index phases on one database, for tests: contracts from SQL, their tables made, their keys planned."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.contract.parse import parse_contract, parse_texts
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.schema import ddl
from ansible.module_utils.migration.schema.indexes import plan_index
from ansible.module_utils.migration.schema.tables import plan_schema

FILES = Path(__file__).resolve().parents[1] / "roles" / "schema" / "files"

# The strategy's own statements for its keys and indexes, as PostgreSQL names them, but for the two that DESIGN 5.5 and 7 decide.
EXPECTED_INDEXES = {
    "auth_service": {
        "users": {"users_pkey", "idx_users_email", "idx_users_username"},
        "permissions": {"permissions_pkey", "permissions_codename_content_type_key"},
        "user_permissions": {"user_permissions_pkey"},
    },
    "user_service": {
        "profiles": {"profiles_pkey", "idx_profiles_user_id"},
        "roles": {"roles_pkey", "idx_roles_user_id", "idx_roles_active"},
        "student_profiles": {"student_profiles_pkey", "student_profiles_student_id_key"},
        "company_profiles": {"company_profiles_pkey"},
    },
}


def service(name: str) -> Contract:
    return parse_contract(name, FILES / name)


def parsed(sql: str) -> Contract:
    return parse_texts("svc", [("svc/1.sql", sql)])


def run(endpoint: Endpoint, *statements: str) -> None:
    with contextlib.closing(driver.connect(endpoint, application_name="somebody", autocommit=True)) as connection:
        for statement in statements:
            driver.rows(connection, statement)


def schema(endpoint: Endpoint, contract: Contract) -> tuple[ddl.Action, ...]:
    """Plan and apply the schema phase; return its actions."""
    with contextlib.closing(ddl.connect(endpoint, contract, readonly=True)) as connection:
        actions = plan_schema(connection, contract)
    with contextlib.closing(ddl.connect(endpoint, contract)) as connection:
        ddl.apply(connection, actions)
    return actions


def planned(endpoint: Endpoint, contract: Contract, mode: str = "auto") -> tuple[ddl.Action, ...]:
    with contextlib.closing(ddl.connect(endpoint, contract, readonly=True)) as connection:
        return plan_index(connection, contract, mode)
