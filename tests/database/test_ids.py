# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL makes the ids of the documentation, by the documented SQL and by the migration's own."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from pathlib import Path

from ansible.module_utils.migration.plan import ids
from ansible.module_utils.migration.postgres import driver
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.postgres.quote import literal

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "ids.md").read_text(encoding="utf-8")
NAMESPACE = re.search(r"Namespace: `(.+?)`", DOCUMENT).group(1)
ROWS = re.findall(r"^\| `(\S+)` \| `(.+?)` \| `([0-9a-f-]{36})` \|$", DOCUMENT, re.MULTILINE)
VECTORS = [(entity, json.loads(f"[{key}]"), made) for entity, key, made in ROWS]


def test_the_documents_sql_makes_the_ids(database: Endpoint) -> None:
    with contextlib.closing(driver.connect(database, application_name="tests", autocommit=True)) as connection:
        driver.rows(connection, re.search(r"```sql\n(.+?)```", DOCUMENT, re.DOTALL).group(1))
        for entity, key, made in VECTORS:
            fields = ", ".join(f"pg_temp.id_field(%s::{'bigint' if isinstance(value, int) else 'text'})" for value in key)
            assert driver.scalar(connection, f"SELECT pg_temp.make_id(%s, %s, {fields})::text", (NAMESPACE, entity, *key)) == made


def test_the_migrations_sql_makes_the_ids(database: Endpoint) -> None:
    entities = sorted({entity for entity, _, _ in VECTORS})
    settings = ids.settings(NAMESPACE, entities)
    with contextlib.closing(driver.connect(database, application_name="tests", settings=settings, autocommit=True)) as connection:
        for entity, key, made in VECTORS:
            fields = [ids.integer_field(str(value)) if isinstance(value, int) else ids.text_field(literal(value)) for value in key]
            found = driver.scalar(connection, f"SELECT {ids.expression(entity, fields)}")
            assert uuid.UUID(bytes=bytes(found)) == uuid.UUID(made)
