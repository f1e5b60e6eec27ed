# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can a target's server make the indexes of the schema SQL: access methods and operator classes, before the rows are there."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..checks.findings import STOP, Finding
from ..contract.model import Contract, IndexElement, IndexSpec, TableSpec
from ..postgres import driver

# Where an operator class is from, for the advice.
_FROM = {
    "citext": "citext", "cube": "cube", "gin__int": "intarray", "gist__int": "intarray", "gin_hstore": "hstore", "gist_hstore": "hstore",
    "gin_trgm": "pg_trgm", "gist_trgm": "pg_trgm", "gist_ltree": "ltree", "vector": "vector", "halfvec": "vector", "sparsevec": "vector",
}  # fmt: skip
_LOOK = """
SELECT (SELECT true FROM pg_am WHERE amname = %(method)s AND amtype = 'i'),
    EXISTS (SELECT FROM pg_opclass AS c JOIN pg_am AS m ON m.oid = c.opcmethod JOIN pg_namespace AS n ON n.oid = c.opcnamespace
        WHERE m.amname = %(method)s AND c.opcname = %(name)s AND CASE WHEN %(schema)s = '' THEN pg_opclass_is_visible(c.oid) ELSE n.nspname = %(schema)s END),
    to_regtype(nullif(%(type)s, '')) IS NULL OR EXISTS (SELECT FROM pg_type AS t JOIN pg_opclass AS c ON c.opcdefault JOIN pg_am AS m ON m.oid = c.opcmethod
        JOIN pg_type AS i ON i.oid = c.opcintype WHERE t.oid = to_regtype(nullif(%(type)s, '')) AND m.amname = %(method)s AND (i.oid = t.oid
        OR EXISTS (SELECT FROM pg_cast WHERE castsource = t.oid AND casttarget = i.oid AND castmethod = 'b' AND castcontext = 'i')
        OR (i.typname, t.typtype) IN (('anyenum', 'e'), ('anyrange', 'r'), ('anymultirange', 'm'), ('record', 'c'))
        OR (i.typname = 'anyarray' AND t.typcategory = 'A')))
"""


def check(connection: driver.Connection, service: str, contract: Contract) -> list[Finding]:
    """Return a finding for each index that the server cannot make; `connection` has the contract's search_path.

    An extension that the schema phase is still to create may bring what is not there yet, unless it is known to be another's.
    """
    pending = {
        item.object[0]
        for item in contract.preamble
        if item.kind == "extension" and not driver.scalar(connection, "SELECT true FROM pg_extension WHERE extname = %s", item.object)
    }
    findings = []
    for table, index, element in _elements(contract):
        *schema, name = _names(element.opclass or "")
        column = table.column(element.column) if element.column else None
        kind = "" if column is None or column.enum_labels is not None else re.sub(r"\([^)]*\)", "", column.domain.base if column.domain else column.type)
        wanted = {"method": index.method, "name": name, "schema": "".join(schema[-1:]), "type": kind}
        method, named, default = driver.rows(connection, _LOOK, wanted)[0]
        missing, source = "", ""
        if not method:
            missing = f"the access method {index.method}"
        elif element.opclass and not named:
            missing = f"the operator class {element.opclass} for {index.method}"
            source = next((extension for prefix, extension in _FROM.items() if name.startswith(prefix)), "")
        elif kind and not element.opclass and not default:
            missing = f"a default operator class of {index.method} for {kind} (column {element.column})"
            source = f"btree_{index.method}" if index.method in ("gin", "gist") else ""
        if not missing or (source in pending if source else pending):
            continue
        place = f"{table.path}:{index.line or table.line}" if table.path else service
        make = f"write CREATE EXTENSION {source}; into the schema SQL" if source else "write the CREATE EXTENSION that has it into the schema SQL"
        step = f"{make}, or choose another {'access method' if not method else 'operator class'}"
        findings.append(Finding(STOP, place, "drift", f"the index {index.name} of {table.key} wants {missing}, which the server does not have", step))
    return list(dict.fromkeys(findings))


def _elements(contract: Contract) -> Iterator[tuple[TableSpec, IndexSpec, IndexElement]]:
    for table in contract.tables:
        backing = [
            IndexSpec(item.name, item.columns, True, None, "", tuple(IndexElement(name) for name in item.columns))
            for item in table.constraints
            if item.kind in ("unique", "primary_key")
        ]
        for index in (*backing, *table.indexes):
            for element in index.elements:
                yield table, index, element


def _names(dotted: str) -> list[str]:
    """Return the parts of a name as SQL writes it."""
    return [part[1:-1].replace('""', '"') if part.startswith('"') else part for part in re.findall(r'"(?:[^"]|"")*"|[^."]+', dotted)] or [""]
