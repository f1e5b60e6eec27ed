# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in the way of a restore is named before it is needed: the list is held against real restores, both ways."""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.postgres import clients, databases
from ansible.module_utils.migration.preflight import rollback_readiness
from ansible.module_utils.migration.snapshot import dump, manifest, restore, restore_blockers, superuser_objects, take

from tests.walk.environment import Walk, ask
from tests.walk.fixtures import project_plan, services_server, walk  # noqa: F401


class Case(NamedTuple):
    """How it comes into a service's database (by its owner, or by a superuser), what is named, and what the restore fails with or loses."""

    make: str
    named: str
    fails: str
    by_owner: bool = False


IN_THE_WAY = {
    "schema public": Case("ALTER SCHEMA public OWNER TO postgres", "schema public", "ALTER SCHEMA public OWNER TO postgres"),
    "collation": Case("CREATE COLLATION public.c2 (provider = libc, locale = 'C')", "collation public.c2", "ALTER COLLATION public.c2 OWNER"),
    "text search": Case("CREATE TEXT SEARCH CONFIGURATION public.plain (COPY = simple)", "text search configuration public.plain", "public.plain OWNER TO"),
    "statistics": Case(
        "CREATE TABLE public.t (a int, b int); ALTER TABLE public.t OWNER TO {owner}; CREATE STATISTICS public.st ON a, b FROM public.t",
        "statistics object public.st", "ALTER STATISTICS public.st OWNER",
    ),
    "cast": Case("CREATE CAST (text AS int) WITH INOUT AS ASSIGNMENT", "make casts again", "CREATE CAST (text AS integer)"),
    "operator": Case("CREATE OPERATOR public.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)", "operator public.===", "ALTER OPERATOR public.==="),
    "operator class": Case(
        "CREATE OPERATOR CLASS public.oc FOR TYPE int USING hash AS OPERATOR 1 =", "make operator classes again", "CREATE OPERATOR CLASS public.oc"
    ),
    "base type": Case("CREATE TYPE public.shell; CREATE FUNCTION public.i(cstring) RETURNS public.shell LANGUAGE internal IMMUTABLE STRICT AS 'textin';"
        " CREATE FUNCTION public.o(public.shell) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';"
        " CREATE TYPE public.shell (INPUT = public.i, OUTPUT = public.o)", "make base types again", "CREATE TYPE public.shell"),
    "event trigger": Case(
        "CREATE FUNCTION public.ev() RETURNS event_trigger LANGUAGE plpgsql AS $f$ BEGIN END $f$; ALTER FUNCTION public.ev OWNER TO {owner};"
        " CREATE EVENT TRIGGER ev ON ddl_command_end EXECUTE FUNCTION public.ev()", "make event triggers again: event trigger ev", "CREATE EVENT TRIGGER ev",
    ),
    "leakproof": Case(
        "CREATE FUNCTION public.lp() RETURNS int LANGUAGE sql LEAKPROOF RETURN 1; ALTER FUNCTION public.lp OWNER TO {owner}",
        "LEAKPROOF functions again: function public.lp()", "CREATE FUNCTION public.lp",
    ),
    "transform": Case(
        "CREATE FUNCTION public.tr(internal) RETURNS internal LANGUAGE internal IMMUTABLE AS 'textin'; ALTER FUNCTION public.tr OWNER TO {owner};"
        " CREATE TRANSFORM FOR text LANGUAGE plpgsql (FROM SQL WITH FUNCTION public.tr(internal))", "make transforms again", "CREATE TRANSFORM FOR",
    ),
    "untrusted function": Case("SELECT 1", "functions in untrusted languages again: function public.", "CREATE FUNCTION public.tr"),
    "untrusted extension": Case(
        "CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');"
        " CREATE FOREIGN TABLE public.f (id int) SERVER far", "extensions postgres_fdw", "CREATE EXTENSION IF NOT EXISTS postgres_fdw",
    ),
    "foreign server": Case("SELECT 1", "server far", "CREATE SERVER far"),
    "revoked from an extension": Case(
        "CREATE SCHEMA ext AUTHORIZATION {owner}; CREATE EXTENSION citext SCHEMA ext;"
        " REVOKE EXECUTE ON FUNCTION ext.citext_eq(ext.citext, ext.citext) FROM PUBLIC",
        "function ext.citext_eq(ext.citext,ext.citext)", "REVOKE ALL ON FUNCTION ext.citext_eq",
    ),
    "grant in pg_catalog": Case(
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() TO PUBLIC", "function pg_catalog.pg_reload_conf()", "FUNCTION pg_catalog.pg_reload_conf()"
    ),
    "grant by another": Case(
        "CREATE TABLE public.g (id int); ALTER TABLE public.g OWNER TO {owner}; GRANT SELECT ON public.g TO pg_monitor WITH GRANT OPTION;"
        " SET ROLE pg_monitor; GRANT SELECT ON public.g TO pg_read_all_stats; RESET ROLE", "another role than the owner",
        "GRANT SELECT ON TABLE public.g TO pg_read",
    ),
    "publication of a schema": Case("CREATE PUBLICATION every FOR TABLES IN SCHEMA public", "publications of all tables or whole schemas",
        "ALTER PUBLICATION every ADD TABLES IN SCHEMA public"),
    "index whose function finds by search_path": Case(
        "CREATE SCHEMA s1; CREATE FUNCTION s1.h(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $f$ BEGIN RETURN lower($1); END $f$;"
        " CREATE FUNCTION s1.g(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $f$ BEGIN RETURN h($1); END $f$; CREATE TABLE s1.data (w text);"
        " INSERT INTO s1.data VALUES ('A'); ALTER FUNCTION s1.g(text) SET search_path = s1; CREATE INDEX i ON s1.data (s1.g(w));"
        " ALTER FUNCTION s1.g(text) RESET search_path", "the index s1.i cannot be restored", "CREATE INDEX i ON s1.data", by_owner=True,
    ),
    "CHECK whose function finds by search_path": Case(
        "CREATE SCHEMA s2; CREATE TABLE s2.allowed (w text); INSERT INTO s2.allowed VALUES ('A');"
        " CREATE FUNCTION s2.ok(text) RETURNS boolean LANGUAGE plpgsql AS $f$ BEGIN RETURN EXISTS (SELECT FROM allowed WHERE w = $1); END $f$;"
        " CREATE TABLE s2.data2 (w text); SET search_path = s2; INSERT INTO s2.data2 VALUES ('A'); ALTER TABLE s2.data2 ADD CONSTRAINT k CHECK (s2.ok(w))",
        "the CHECK constraint k of s2.data2 cannot be restored", 'COPY failed for table "data2"', by_owner=True,
    ),
    "generated column whose function finds by search_path": Case(
        "CREATE SCHEMA s3; SET search_path = s3; CREATE FUNCTION s3.h(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $f$ BEGIN RETURN lower($1); END $f$;"
        " CREATE FUNCTION s3.g(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $f$ BEGIN RETURN h($1); END $f$;"
        " CREATE TABLE s3.data3 (w text, l text GENERATED ALWAYS AS (s3.g(w)) STORED); INSERT INTO s3.data3 VALUES ('A')",
        "the generated column l of s3.data3 cannot be restored", 'COPY failed for table "data3"', by_owner=True,
    ),
    "materialised view whose function finds by search_path": Case(
        "CREATE SCHEMA s4; SET search_path = s4; CREATE TABLE s4.w (w text); INSERT INTO s4.w VALUES ('A');"
        " CREATE FUNCTION s4.g(text) RETURNS bigint LANGUAGE plpgsql AS $f$ BEGIN RETURN (SELECT count(*) FROM w); END $f$;"
        " ALTER FUNCTION s4.g(text) SET search_path = s4; CREATE VIEW s4.v AS SELECT s4.g(w) AS n FROM s4.w;"
        " CREATE MATERIALIZED VIEW s4.m AS SELECT * FROM s4.v; ALTER FUNCTION s4.g(text) RESET search_path",
        "the materialized view s4.m cannot be restored", "REFRESH MATERIALIZED VIEW s4.m", by_owner=True,
    ),
    "domain whose function finds by search_path": Case(
        "CREATE SCHEMA s5; SET search_path = s5; CREATE FUNCTION s5.h(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $f$ BEGIN RETURN true; END $f$;"
        " CREATE FUNCTION s5.g(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $f$ BEGIN RETURN h($1); END $f$;"
        " CREATE DOMAIN s5.word AS text CHECK (s5.g(VALUE)); CREATE TABLE s5.data5 (w s5.word); INSERT INTO s5.data5 VALUES ('A')",
        "the domain s5.word of the column w of s5.data5 cannot be restored", 'COPY failed for table "data5"', by_owner=True,
    ),
    "broken foreign key": Case(
        "CREATE SCHEMA s6 AUTHORIZATION {owner}; SET ROLE {owner}; CREATE TABLE s6.p (id int PRIMARY KEY);"
        " CREATE TABLE s6.c (p int CONSTRAINT k REFERENCES s6.p); RESET ROLE; SET session_replication_role = replica; INSERT INTO s6.c VALUES (7)",
        "the foreign key k of s6.c says that it is valid", "ADD CONSTRAINT k FOREIGN KEY",
    ),
    "revoked from a language": Case("REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC", "language plpgsql", "REVOKE ALL ON LANGUAGE plpgsql"),
    "setting": Case("ALTER DATABASE {database} SET lc_messages = 'C'", "lc_messages", 'permission denied to set parameter "lc_messages"'),
    "setting of replication": Case(
        "ALTER DATABASE {database} SET session_replication_role = 'replica'", "session_replication_role", 'permission denied to set parameter "session_rep'
    ),
}  # fmt: skip

# What looks like these and restores all the same: nothing is said of it.
HARMLESS = """
CREATE SCHEMA own; CREATE TYPE own.mood AS ENUM ('glad'); CREATE TYPE own.pair AS (a int, b text); CREATE TYPE own.span AS RANGE (subtype = int);
CREATE DOMAIN own.small AS int CHECK (VALUE < 100); CREATE COLLATION own.c (provider = libc, locale = 'C');
CREATE TEXT SEARCH CONFIGURATION own.plain (COPY = simple); CREATE OPERATOR own.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
CREATE AGGREGATE own.total (int) (SFUNC = int4pl, STYPE = int, INITCOND = 0);
CREATE FUNCTION own.to_int(own.mood) RETURNS int LANGUAGE sql IMMUTABLE RETURN 1; CREATE CAST (own.mood AS int) WITH FUNCTION own.to_int(own.mood);
CREATE TABLE own.t (id int PRIMARY KEY, m own.mood, p own.pair, s own.span, n own.small, parent int REFERENCES own.t);
INSERT INTO own.t VALUES (1, 'glad', (1, 'x'), '[1,5)', 5, 1), (2, NULL, NULL, NULL, NULL, NULL); CREATE STATISTICS own.st ON id, n FROM own.t;
CREATE FUNCTION own.kind(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $f$ BEGIN RETURN $1 + 1; END $f$; CREATE INDEX i ON own.t (own.kind(id));
CREATE PUBLICATION one FOR TABLE own.t; ALTER DEFAULT PRIVILEGES IN SCHEMA own GRANT SELECT ON TABLES TO PUBLIC; SELECT lo_create(4712);
CREATE EXTENSION citext SCHEMA own; GRANT SELECT ON own.t TO pg_monitor; ALTER TABLE own.t ADD CONSTRAINT late CHECK (n > 0) NOT VALID;
CREATE FUNCTION own.next(int) RETURNS boolean LANGUAGE plpgsql AS $f$ BEGIN RETURN nextval('own.numbers') > 0; END $f$; CREATE SEQUENCE own.numbers;
ALTER TABLE own.t ADD CHECK (own.next(id));
"""


def test_what_is_named_fails_to_restore_and_what_is_not_restores(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(superuser_objects, "SHOWN", 99)
    ask(walk.context.targets["auth_service"], HARMLESS)
    endpoint, service = walk.context.targets["user_service"], walk.service("user_service")
    for case in IN_THE_WAY.values():
        ask(endpoint if case.by_owner else service, case.make.replace("{owner}", str(endpoint.session_role)).replace("{database}", endpoint.dbname))
    lines = restore_blockers.obstacles(endpoint, "postgres")
    assert [name for name, case in IN_THE_WAY.items() if not any(case.named in line for line in lines)] == []
    assert [line for line in lines if "rollback_scope=data" not in line or "; " not in line] == []
    assert [line for line in lines for advice in ("GRANT postgres", "OWNER TO postgres", "SUPERUSER", "superuser's login") if advice in line] == []
    findings = rollback_readiness.check(walk.context)
    assert [f"{item.message.partition(': ')[2]}; {item.next_step}" for item in findings if item.place == "user_service"] == lines
    assert [item for item in findings if item.place == "auth_service"] == []
    with pytest.raises(MigrationError, match="the snapshot could not be proven: user_service could not be rolled back: ") as refused:
        take.take(walk.context, walk.taking(proof=True))
    assert [line for line in lines if line not in str(refused.value)] == []
    happened = _restored(walk)
    assert [name for name, case in IN_THE_WAY.items() if case.fails not in happened] == []
    harmless = manifest.read(Path(take.take(walk.context, walk.taking()).folder), None)
    auth, folder = walk.context.targets["auth_service"], Path(str(walk.root)) / harmless.run_id / "auth_service"
    name = "postgresql://nowhere/it's \\ dbname=postgres"  # bare, as an argument, it would be read as a connection string
    try:
        restore.restore(auth, harmless.database("auth_service"), folder, name, walk.restoring())
        assert restore.prove(auth, harmless.database("auth_service"), folder, name, walk.restoring()) == []
    finally:
        ask(walk.superuser, f'DROP DATABASE "{name}" WITH (FORCE)')


def _restored(place: Walk) -> str:
    """Return everything that goes wrong when user_service's migrator restores its dump: errors, and statements that are lost without one."""
    endpoint, folder = place.context.targets["user_service"], place.root.with_name("trial")
    folder.mkdir()
    dumped = dump.dump(endpoint, "target", folder, clients.candidates(place.bin_dir)[0], place.taking().dump, lambda table, done, total: None)
    copy = replace(endpoint, dbname=f"{endpoint.dbname}_trial")
    databases.create(endpoint, "postgres", copy.dbname, dumped.properties)
    archive = str(folder / "user_service")
    with clients.access(copy, "tests") as way:
        argv = [f"{place.bin_dir}/pg_restore", "--no-password", f"--role={endpoint.session_role}", f"--dbname={copy.dbname}", archive]
        said = subprocess.run(argv, env=dict(way.env), pass_fds=way.descriptors, capture_output=True, text=True, check=False).stderr
        wanted = clients.run([f"{place.bin_dir}/pg_restore", "--schema-only", "--file=-", archive], way, "here", "pg_restore")
    with clients.access(replace(place.superuser, dbname=copy.dbname), "tests") as way:
        found = clients.run([f"{place.bin_dir}/pg_dump", "--schema-only", "--no-password"], way, "here", "pg_dump")
    said = "\n".join(line for line in said.splitlines() if "GRANT" not in line or "Command was" in line)
    lost = Counter(wanted.splitlines()) - Counter(found.splitlines())
    refused = []
    for statement in databases.dress_sql(copy.dbname, dumped.properties):
        try:
            ask(replace(endpoint, dbname="postgres", session_role=None), statement)
        except Exception as exc:
            refused.append(str(exc))
    return "\n".join([said, *lost, *refused])
