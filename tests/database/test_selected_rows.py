# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`where` on a plain table: what it leaves out is counted, is in no target, and is nobody's parent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from ansible.module_utils.migration.context import Context
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.plan.model import Plan
from ansible.module_utils.migration.postgres.driver import Endpoint
from ansible.module_utils.migration.repair import repair
from ansible.module_utils.migration.validate import run as validate

from tests.conftest import execute
from tests.mapped_world import NAMESPACE, PLAN_TIME, ask, carry, compiled, index, look, make_tables, rows, stops, uuid_of

MONOLITH = """
CREATE TABLE person (id int PRIMARY KEY, email text NOT NULL, deleted_at timestamp);
INSERT INTO person SELECT g, 'p' || g, CASE WHEN g % 10 = 0 THEN '2024-01-01'::timestamp END FROM generate_series(1, 1500) g;
CREATE TABLE note (id int PRIMARY KEY, person_id int NOT NULL REFERENCES person, kind text, body text NOT NULL);
INSERT INTO note SELECT g, g, (ARRAY['note', 'memo%', NULL])[g % 3 + 1], 'body ' || g FROM generate_series(1, 1200) g;
CREATE TABLE tag (note_id int REFERENCES note, word text, PRIMARY KEY (note_id, word));
INSERT INTO tag SELECT g, 'a' FROM generate_series(1, 300) g WHERE g % 3 = 0 AND g % 10 <> 0;
ANALYZE;
"""
SERVICE = """
CREATE TABLE people (id uuid PRIMARY KEY, email text NOT NULL UNIQUE);
CREATE TABLE notes (id uuid PRIMARY KEY, person_id uuid NOT NULL REFERENCES people, body text NOT NULL);
CREATE TABLE tags (note_id uuid NOT NULL REFERENCES notes, word text NOT NULL, PRIMARY KEY (note_id, word));
"""
MAPPINGS = {
    "people": "source: person\nwhere: deleted_at IS NULL  -- a remark\nkey: {from: id, mints: people}\ncolumns: {email: email}\n",
    "notes": """
parts:
  notes: {source: note, where: kind = 'note', key: {from: id, mints: notes}, columns: {person_id: {from: person_id, map: people}, body: body}}
  memos: {source: note, where: kind LIKE 'memo%', key: {from: id}, columns: {person_id: {from: person_id, map: people}, body: body}}
""",
    "tags": """
source: tag
key: {from: [note_id, word], type: [integer, text]}
columns: {note_id: {from: note_id, map: notes}, word: word}
""",
}
QUARANTINE = "policies: {person_id: {foreign_key: quarantine}}\n"


def plan(folder: Path, **changed: str) -> Plan:
    mappings: Mapping[str, str] = {**MAPPINGS, **changed}
    for name, text in {"services/office/010-tables.sql": SERVICE, **{f"mappings/office/{name}.yml": text for name, text in mappings.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return compiled(folder, ("office",))


@pytest.fixture
def world(databases: Callable[..., Endpoint], tmp_path: Path) -> Context:
    source = databases("office")
    execute(source, MONOLITH)
    chosen = plan(tmp_path, notes=MAPPINGS["notes"] + QUARANTINE)
    return Context(plan=chosen, source=source, targets={"office": databases("service")}, control=databases("records"), namespace=NAMESPACE)


def test_a_parent_that_where_leaves_out_is_missing_like_any_other(world: Context, tmp_path: Path) -> None:
    world = Context(plan=plan(tmp_path), source=world.source, targets=world.targets, control=world.control, namespace=NAMESPACE)
    execute(world.source, "INSERT INTO tag VALUES (1, 'of a memo')")  # whose own part mints no id that 'notes' stands for
    found = {(item.target, item.column, item.count) for item in look(world).findings if item.level == "stop" and item.rule == "foreign_key"}
    assert found == {("office.notes", "person_id", 40), ("office.tags", "note_id", 1)}


def test_selected_rows_are_carried_and_the_others_counted(world: Context) -> None:
    found = look(world).findings
    assert [item.message for item in found if item.level == "stop" and not item.place.startswith("runner ")] == []
    assert [(item.level, item.column) for item in found if item.rule == "chunks"] == [("info", "note_id")]
    make_tables(world)
    balance = carry(world).balance
    accounts = {item.table: (item.rows, item.carried, item.quarantined, item.dropped, item.unselected) for item in balance.accounts}
    assert accounts == {"person": (1500, 1350, 0, 0, 150), "note": (1200, 720, 80, 0, 400), "tag": (90, 90, 0, 0, 0)}
    assert balance.passed
    assert balance.verdict.endswith("= 2,160 carried + 80 quarantined + 550 not selected by where")
    index(world)
    office = world.targets["office"]
    wanted = {(uuid_of("people", i), e) for i, e in ask(world.source, "SELECT id, email FROM person WHERE deleted_at IS NULL")}  # type: ignore[arg-type]
    assert rows(office, "SELECT id::text, email FROM office.people") == wanted
    assert ask(office, "SELECT count(*) FROM office.notes") == [(720,)]
    found = validate.compare(world, PLAN_TIME, options=validate.Options(accounts=True))
    assert found.passed, [*(item.line for item in found.findings), *(item.line for item in found.references)]
    assert found.balance is not None
    assert found.balance.accounts == balance.accounts


def test_a_row_that_is_selected_no_more_is_an_excess_row_and_what_refers_to_it_hangs(world: Context) -> None:
    make_tables(world)
    carry(world)
    index(world)
    # One without notes, and one to which a valid foreign key of the source still lets a note refer.
    execute(world.source, "UPDATE person SET deleted_at = '2024-01-01' WHERE id IN (1499, 3)")
    found = validate.compare(world, PLAN_TIME, options=validate.Options(settle_attempts=0))
    assert {name: dict(result.kinds) for name, result in found.tables.items() if result.kinds} == {
        "office.people": {"extra": 2},
        "office.migration.id_map": {"extra": 2},
    }
    assert [(item.target, item.column, item.dangling) for item in found.references if item.dangling] == [("office.notes", "person_id", 1)]
    execute(world.source, "UPDATE person SET deleted_at = NULL WHERE id = 3")
    planned = repair.plan_repair(validate.compare(world, PLAN_TIME, options=validate.Options(settle_attempts=0)).to_dict(), after_cutover=False)
    assert repair.apply_repair(world, PLAN_TIME, planned).rows == 2
    assert validate.compare(world, PLAN_TIME).passed
    assert ask(world.targets["office"], "SELECT count(*) FROM office.people WHERE email = 'p1499'") == [(0,)]


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("id IN (SELECT person_id FROM note)", r"people\.yml:2: where: .* a subquery needs a 'source"),
        ("deleted_at > now()", r"people\.yml:2: where: .* now gives another value at every run"),
        ("person.id = 1", r"people\.yml:2: where: person\.id: name the source column alone"),
        ("true) LIMIT (1", r"people\.yml:2: where: .* must be one scalar SQL expression"),
    ],
)
def test_a_where_that_is_no_condition_on_the_row_is_refused(tmp_path: Path, where: str, fault: str) -> None:
    with pytest.raises(MigrationError, match=fault):
        plan(tmp_path, people=f"source: person\nwhere: {where}\nkey: {{from: id, mints: people}}\ncolumns: {{email: email}}\n")


@pytest.mark.parametrize(
    ("source", "key", "chosen"),
    [
        ("tag", "{from: [word, note_id], type: [text, integer]}", "note_id"),
        ("tag", "{from: [word, note_id], type: [text, text]}", ""),
        ("{query: tags.sql, refresh: {tag: note_id}}", "{from: [number, note_id], type: [integer, integer]}", "note_id"),
        ("{query: tags.sql, refresh: {tag: {note_id: word}}}", "{from: [note_id, number], type: [integer, integer]}", ""),
    ],
)
def test_chunks_are_cut_by_the_first_integer_column_of_the_key_that_can_be_walked(tmp_path: Path, source: str, key: str, chosen: str) -> None:
    (tmp_path / "mappings" / "office").mkdir(parents=True)
    (tmp_path / "mappings" / "office" / "tags.sql").write_text("SELECT note_id, word, 1 AS number FROM tag")
    text = f"source: {source}\nkey: {key}\ncolumns: {{note_id: {{from: note_id, map: notes}}, word: word}}\n"
    if chosen:
        (part,) = next(target for target in plan(tmp_path, tags=text).targets if target.table == "tags").parts
        assert part.chunk_by == chosen
    else:
        wanted = "'refresh' ties to a table" if "query" in source else "an indexed column with many values"
        with pytest.raises(MigrationError, match=rf"tags\.yml:1: .*no integer column of the key can cut it into chunks; write chunk_by: with .*{wanted}"):
            plan(tmp_path, tags=text)


def test_preflight_warns_of_a_large_table_that_no_index_cuts(world: Context) -> None:
    execute(world.source, "ALTER TABLE tag DROP CONSTRAINT tag_pkey", "UPDATE pg_class SET reltuples = 1e6 WHERE relname = 'tag'")
    (found,) = (item for item in look(world).findings if item.rule == "chunks")
    assert (found.level, "no index of public.tag begins with note_id" in found.message) == ("warn", True)
    assert found.next_step.endswith('CREATE INDEX CONCURRENTLY ON "public"."tag" ("note_id")')


def test_a_query_has_its_condition_in_itself(tmp_path: Path) -> None:
    (tmp_path / "mappings" / "office").mkdir(parents=True)
    (tmp_path / "mappings" / "office" / "people.sql").write_text("SELECT id, email FROM person")
    text = "source: {query: people.sql, refresh: {person: id}}\nwhere: id > 1\nkey: {from: id, mints: people}\nchunk_by: id\ncolumns: {email: email}\n"
    with pytest.raises(MigrationError, match=r"people\.yml:2: 'where' selects rows of a table; write the condition into .*people\.sql"):
        plan(tmp_path, people=text)


def test_a_where_that_the_source_does_not_understand_stops_preflight_at_its_mapping(world: Context, tmp_path: Path) -> None:
    changed = plan(tmp_path, people=MAPPINGS["people"].replace("deleted_at IS NULL", "email AND gone"), notes=MAPPINGS["notes"] + QUARANTINE)
    found = stops(Context(plan=changed, source=world.source, targets=world.targets, control=world.control, namespace=NAMESPACE))
    assert any("people.yml" in line and "has no column gone" in line for line in found)
    changed = plan(tmp_path, people=MAPPINGS["people"].replace("deleted_at IS NULL", "email"), notes=MAPPINGS["notes"] + QUARANTINE)
    found = stops(Context(plan=changed, source=world.source, targets=world.targets, control=world.control, namespace=NAMESPACE))
    assert any("people.yml" in line and "datatype mismatch (type boolean, type text)" in line for line in found), found
