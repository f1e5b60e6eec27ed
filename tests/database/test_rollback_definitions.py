# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollback is not refused for how PostgreSQL writes a definition, and is for what a definition means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ansible.module_utils.migration.rollback import run as rollback
from ansible.module_utils.migration.snapshot import manifest, restore, take

from tests.walk.environment import Walk, ask
from tests.walk.fixtures import project_plan, services_server, walk  # noqa: F401

# Expressions that PostgreSQL prints otherwise once it has read its own print, at every place that holds one.
WRITTEN_OTHERWISE = """
CREATE SCHEMA own;
CREATE TABLE own.jobs (id int PRIMARY KEY, state varchar(20) CHECK (state IN ('new', 'done')), a int, b int, c int,
    priced numeric(9, 2) DEFAULT 1 + 0.5, twice text GENERATED ALWAYS AS (CASE WHEN state IN ('new', 'old') THEN 'x' ELSE state END) STORED,
    CHECK ((a > 1 AND b > 2) AND c > 3), CHECK (state NOT IN ('x', 'y') OR (a BETWEEN 1 AND 5)));
CREATE INDEX partial ON own.jobs (id) WHERE state IN ('new', 'done');
CREATE UNIQUE INDEX expression ON own.jobs ((state IN ('a', 'b')), lower(state));
ALTER TABLE own.jobs ADD CONSTRAINT apart EXCLUDE USING btree (id WITH =) WHERE (state IN ('p', 'q'));
CREATE VIEW own.open AS SELECT *, state IN ('new', 'done') AS is_open FROM own.jobs WHERE state IN ('new', 'done');
CREATE MATERIALIZED VIEW own.made AS SELECT * FROM own.jobs WHERE state IN ('new', 'done');
CREATE VIEW own.guarded AS SELECT * FROM own.jobs WHERE state IN ('g', 'h') WITH CASCADED CHECK OPTION;
CREATE VIEW own.checked AS SELECT * FROM own.jobs WHERE state IN ('g', 'h') WITH CASCADED CHECK OPTION;
CREATE RULE quiet AS ON UPDATE TO own.jobs WHERE old.state IN ('r', 's') DO ALSO SELECT 1;
CREATE POLICY mine ON own.jobs USING (state IN ('a', 'b')) WITH CHECK (state IN ('c', 'd')); ALTER TABLE own.jobs ENABLE ROW LEVEL SECURITY;
CREATE POLICY lost ON own.jobs USING (state IN ('a', 'b'));
CREATE DOMAIN own.letter AS varchar(1) DEFAULT 'a' CHECK (VALUE IN ('a', 'b')); CREATE TABLE own.letters (l own.letter);
CREATE FUNCTION own.touched() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN RETURN NEW; END $f$;
CREATE TRIGGER touched BEFORE UPDATE ON own.jobs FOR EACH ROW WHEN (new.state IN ('t', 'u')) EXECUTE FUNCTION own.touched();
CREATE TRIGGER second BEFORE UPDATE ON own.jobs FOR EACH ROW WHEN (new.state IN ('t', 'u')) EXECUTE FUNCTION own.touched();
CREATE FUNCTION own.standard(v varchar DEFAULT 'x') RETURNS boolean LANGUAGE sql RETURN v IN ('a', 'b');
CREATE FUNCTION own.other(v varchar DEFAULT 'x') RETURNS boolean LANGUAGE sql BEGIN ATOMIC SELECT v IN ('a', 'b'); END;
CREATE STATISTICS own.seen ON (state IN ('a', 'b')), a FROM own.jobs;
CREATE TABLE own.parts (s varchar(9), n int) PARTITION BY LIST ((s IN ('a', 'b'))); CREATE TABLE own.part PARTITION OF own.parts FOR VALUES IN (true);
CREATE PUBLICATION partly FOR TABLE own.letters;
INSERT INTO own.jobs (id, state, a, b, c) VALUES (1, 'new', 2, 3, 4); REFRESH MATERIALIZED VIEW own.made;
GRANT SELECT (state) ON own.jobs TO pg_monitor; REVOKE ALL ON FUNCTION own.standard FROM PUBLIC; COMMENT ON TABLE own.jobs IS 'jobs';
ALTER DEFAULT PRIVILEGES IN SCHEMA own GRANT SELECT ON TABLES TO pg_monitor;
"""

# A change that means something else, and what of it a line of the differences must say; no two say the same.
CHANGED = {
    "ALTER TABLE own.jobs DROP CONSTRAINT jobs_state_check; ALTER TABLE own.jobs ADD CONSTRAINT jobs_state_check CHECK (state IN ('new', 'gone'))": "'gone'",
    "ALTER TABLE own.jobs DROP CONSTRAINT jobs_check": "CONSTRAINT jobs_check CHECK",
    "DROP INDEX own.partial; CREATE INDEX partial ON own.jobs (id) WHERE state IN ('new')": "INDEX partial",
    "DROP INDEX own.expression; CREATE UNIQUE INDEX expression ON own.jobs ((state IN ('a', 'c')), lower(state))": "INDEX expression",
    "ALTER TABLE own.jobs DROP CONSTRAINT apart, ADD CONSTRAINT apart EXCLUDE USING btree (id WITH =) WHERE (state IN ('p', 'q2'))": "'q2'",
    "ALTER TABLE own.jobs ALTER COLUMN twice SET EXPRESSION AS (CASE WHEN state IN ('new', 'old') THEN 'x3' ELSE state END)": "'x3'",
    "CREATE OR REPLACE VIEW own.guarded AS SELECT * FROM own.jobs WHERE state IN ('g', 'i2') WITH CASCADED CHECK OPTION": "'i2'",
    "ALTER VIEW own.checked RESET (check_option)": "WITH CASCADED CHECK OPTION",
    "DROP RULE quiet ON own.jobs": "RULE quiet",
    "ALTER POLICY mine ON own.jobs USING (state IN ('a', 'z'))": "'z'",
    "DROP POLICY lost ON own.jobs": "POLICY lost",
    "ALTER TABLE own.jobs DISABLE ROW LEVEL SECURITY": "ENABLE ROW LEVEL SECURITY",
    "ALTER DOMAIN own.letter DROP CONSTRAINT letter_check": "CONSTRAINT letter_check",
    "ALTER DOMAIN own.letter SET DEFAULT 'b2'": "DEFAULT 'b2'",
    "ALTER TABLE own.jobs DISABLE TRIGGER touched": "DISABLE TRIGGER touched",
    "DROP TRIGGER second ON own.jobs": "TRIGGER second",
    "CREATE OR REPLACE FUNCTION own.standard(v varchar DEFAULT 'x') RETURNS boolean LANGUAGE sql RETURN v IN ('a', 'c2')": "'c2'",
    "CREATE OR REPLACE FUNCTION own.other(v varchar DEFAULT 'y2') RETURNS boolean LANGUAGE sql BEGIN ATOMIC SELECT v IN ('a', 'b'); END": "DEFAULT 'y2'",
    "ALTER TABLE own.jobs ALTER COLUMN priced SET DEFAULT 1 + 0.6": "0.6",
    "ALTER TABLE own.letters ADD COLUMN n numeric(9, 3)": "numeric(9,3)",
    "DROP STATISTICS own.seen": "STATISTICS own.seen",
    "DROP MATERIALIZED VIEW IF EXISTS own.made": "MATERIALIZED VIEW own.made",
    "REVOKE SELECT (state) ON own.jobs FROM pg_monitor": "GRANT SELECT(state)",
    "GRANT ALL ON FUNCTION own.standard TO PUBLIC": "REVOKE ALL ON FUNCTION own.standard",
    "COMMENT ON TABLE own.jobs IS 'another'": "'another'",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA own REVOKE SELECT ON TABLES FROM pg_monitor": "ALTER DEFAULT PRIVILEGES",
    "ALTER FUNCTION own.other OWNER TO pg_monitor": "OWNER TO pg_monitor",
    "ALTER PUBLICATION partly SET (publish = 'insert')": "PUBLICATION partly",
    "ALTER TABLE own.jobs REPLICA IDENTITY FULL": "REPLICA IDENTITY FULL",
}


def test_an_expression_that_is_written_otherwise_rolls_back_and_another_one_is_found(walk: Walk) -> None:  # noqa: F811
    endpoint = walk.context.targets["user_service"]
    ask(endpoint, WRITTEN_OTHERWISE)
    taken = take.take(walk.context, walk.taking(proof=True))
    assert not [line for line in taken.lines if "could not be rolled back" in line]
    dumped, folder = manifest.read(Path(taken.folder), None).database("user_service"), Path(taken.folder) / "user_service"
    copy = f"{endpoint.dbname}_copy"
    restore.restore(endpoint, dumped, folder, copy, walk.restoring())
    assert restore.prove(endpoint, dumped, folder, copy, walk.restoring()) == []
    for change in CHANGED:
        ask(replace(walk.superuser, dbname=copy), change.replace("{owner}", str(endpoint.session_role)))
    lines = restore.definition_differences(endpoint, dumped, folder, copy, walk.restoring(), foreign=False)
    assert [said for said in CHANGED.values() if not any(said in line for line in lines)] == []
    assert not ask(walk.superuser, f"SELECT true FROM pg_database WHERE datname = '{restore.read_back(copy)}'"), "the scratch database is gone"
    walk.carry()
    assert rollback.roll_back(walk.context, walk.rolling()).complete
