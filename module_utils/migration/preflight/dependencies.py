# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What depends on what: sources, targets and id maps as a graph, and the tables that stay behind."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checks.findings import INFO, Finding
from ..checks.row_checks import minting_part, scanned
from ..checks.source_catalog import SourceCatalog
from ..errors import MigrationError
from ..plan.model import Plan
from ..postgres import driver
from ..postgres.quote import qualified


@dataclass(frozen=True)
class Edge:
    """An arrow of the graph; `kind` is carries (source to target), refers (id map) or stays (a table that is left behind)."""

    start: str
    end: str
    kind: str
    label: str = ""


@dataclass(frozen=True)
class Graph:
    """Nodes by group (source, a service, behind) and the edges between them."""

    nodes: tuple[tuple[str, str], ...]
    edges: tuple[Edge, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the graph as JSON can carry it."""
        return {
            "nodes": [{"name": name, "group": group} for name, group in self.nodes],
            "edges": [{"from": edge.start, "to": edge.end, "kind": edge.kind, "label": edge.label} for edge in self.edges],
        }

    def mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart (mermaid.js.org)."""
        arrows = {"carries": "-->", "refers": "-.->", "stays": "==>"}
        titles = {"source": "the monolith", "behind": "stays behind"}
        names = {node: f"n{number}" for number, node in enumerate(self.nodes)}
        lines = ["flowchart LR"]
        for number, group in enumerate(dict.fromkeys(group for _, group in self.nodes)):
            lines.append(f'  subgraph g{number}["{_text(titles.get(group, group))}"]')
            lines += [f'    {names[name, owner]}["{_text(name)}"]' for name, owner in self.nodes if owner == group]
            lines.append("  end")
        groups = dict(self.nodes)
        for edge in self.edges:
            label = f'|"{_text(edge.label)}"| ' if edge.label else " "
            lines.append(f"  {names[edge.start, groups[edge.start]]} {arrows[edge.kind]}{label}{names[edge.end, groups[edge.end]]}")
        return "\n".join(lines) + "\n"


def build(plan: Plan, source: SourceCatalog) -> Graph:
    """Return the graph of a plan on a source."""
    nodes: dict[str, str] = {target.name: target.service for target, _ in scanned(plan)}
    edges: dict[Edge, None] = {}
    # A schema of the monolith may be called as a service is.
    called = {table: f"{source.schema}.{table}{' (monolith)' if f'{source.schema}.{table}' in nodes else ''}" for table in source.tables}
    for target, part in scanned(plan):
        for table in part.tables:
            name = called.get(table, f"{source.schema}.{table}")
            nodes.setdefault(name, "source")
            edges[Edge(name, target.name, "carries", part.name)] = None
        for cell in part.cells:
            for entity in cell.refers_to:
                if minted := minting_part(plan, entity):
                    edges[Edge(target.name, minted[0].name, "refers", f"{cell.name}: {entity}")] = None
    for reference in left_behind(plan, source):
        nodes.setdefault(reference.table, "behind")
        edges[Edge(reference.table, called.get(reference.parent, f"{source.schema}.{reference.parent}"), "stays", ", ".join(reference.columns))] = None
    ordered = sorted(nodes.items(), key=lambda item: ({"source": 0, "behind": 2}.get(item[1], 1), item[1], item[0]))
    return Graph(tuple(ordered), tuple(edges))


@dataclass(frozen=True)
class Dependant:
    """A table (schema.name) that no mapping reads, with a foreign key into one that is carried, and the id map it will need.

    `rows` is the planner's estimate, or None before the first ANALYZE.
    """

    table: str
    columns: tuple[str, ...]
    parent: str
    entity: str | None
    rows: int | None


def left_behind(plan: Plan, source: SourceCatalog) -> tuple[Dependant, ...]:
    """Return the foreign keys of unmapped tables into mapped ones."""
    mapped = {table for target in plan.targets for part in target.parts for table in part.tables}
    entities = {entity.source: entity.name for entity in plan.entities if entity.source}
    for target in plan.targets:
        for part in target.parts:
            if part.minted and part.table is None and len(part.key) == 1:
                entities |= {touch.table: part.entity for touch in part.touches if touch.column == part.key[0] == touch.result}
    return tuple(
        Dependant(f"{item.schema}.{item.table}", item.columns, item.parent, entities.get(item.parent), int(item.rows) if item.rows >= 0 else None)
        for item in source.references
        if item.parent in mapped and not (item.schema == source.schema and item.table in mapped)
    )


def count_unknown(connection: driver.Connection, plan: Plan, source: SourceCatalog) -> dict[str, int]:
    """Return the rows of the tables that stay behind and were never analysed, as far as they can be read."""
    result = {}
    for item in left_behind(plan, source):
        if item.rows is None:
            with contextlib.suppress(MigrationError), driver.database_errors(item.table, "counting its rows"):
                result[item.table] = int(driver.scalar(connection, f"SELECT count(*) FROM {qualified(*item.table.split('.', 1))}"))
    return result


def _ids_folder(plan: Plan) -> str:
    """Return the folder for entities without a target table, beside the folders of the services."""
    path = next((part.path for target in plan.targets for part in target.parts), "mappings/service/table.yml")
    return f"{path.rpartition('/')[0].rpartition('/')[0]}/_ids"


def check(plan: Plan, source: SourceCatalog, counted: Mapping[str, int] | None = None) -> list[Finding]:
    """Return a finding for each table that stays behind and refers to rows that move; `counted` as of count_unknown()."""
    return [
        Finding(
            INFO, item.table, "dependency", f"stays behind and refers to {item.parent}, {_rows(item, counted or {})}",
            f"its service will need the id map {item.entity!r} (migration.id_map)"
            if item.entity
            else f"{item.parent} has no id map; mint one in {_ids_folder(plan)} if its service needs it",
            column=", ".join(item.columns),
        )
        for item in left_behind(plan, source)
    ]  # fmt: skip


def _rows(item: Dependant, counted: Mapping[str, int]) -> str:
    if item.table in counted:
        return f"{counted[item.table]:,} rows"
    return "rows unknown: it cannot be read and was never analysed" if item.rows is None else f"about {item.rows:,} rows"


def _text(name: str) -> str:
    """Return a name as Mermaid takes it between quotes: what would end or mark it up goes as an entity code."""
    return "".join(f"#{ord(mark)};" if mark in '"#&<>`\\' or ord(mark) < 32 else mark for mark in name)
