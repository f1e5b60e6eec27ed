# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cells of the campaign: which servers, what is unusual about them, and the story that each must live through."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.migration.embedded import server as postgres

from tests.servers.tls import authority
from tests.servers.trial import HOSTS, PROJECT, Failed, Trial, standby, trial

EQUAL = r"equal: [\d,]+ rows in \d+ tables, every column, no difference"
MUTANT = "SELECT min(id::text)::uuid FROM auth_service.users"


@dataclass(frozen=True)
class Cell:
    """Servers by major: the source's, auth_service's, user_service's (with the control database), and what is special."""

    source: int
    auth: int
    user: int
    special: str = ""

    @property
    def name(self) -> str:
        """Return how the table calls it."""
        targets = f"{self.auth}" if self.auth == self.user else f"{self.auth}+{self.user}"
        return f"{self.source}->{targets}{f' {self.special}' if self.special else ''}"


CELLS = (
    Cell(14, 18, 18),
    Cell(18, 14, 14),
    Cell(15, 17, 17),
    Cell(17, 15, 15),
    Cell(16, 16, 16),
    Cell(16, 14, 18),
    Cell(17, 17, 17, "tls"),
    Cell(14, 18, 18, "standby"),
    Cell(16, 15, 17, "latin1"),
    Cell(14, 17, 18, "settings"),
    Cell(14, 15, 14, "clients"),
)


def run(cell: Cell, programs: Mapping[int, Path], users: int) -> str:
    """Live through the whole story on the cell's servers; return validation's verdict, or raise Failed with what was expected."""
    majors = dict(zip(HOSTS, (cell.source, cell.auth, cell.user), strict=True))
    with trial(majors, programs, users, tls=cell.special == "tls") as made, contextlib.ExitStack() as stack:
        if cell.special == "tls":
            tell_a_wrong_authority(made)
        elif cell.special == "standby":
            stack.enter_context(standby(made, "monolith"))
        elif cell.special == "latin1":
            recode(made, "LATIN1")
        elif cell.special == "settings":
            twist(made)
            written = local_times(made)
            return story(made, lambda: require_times(made, written))
        elif cell.special == "clients":  # the runner has the newest clients alone
            made.vars("all", pg_bin_dir=str(programs[max(programs)]))
        return story(made)


def story(made: Trial, look: Callable[[], None] = lambda: None) -> str:
    """Migrate (and look), again, sessions, a fault that must be found and mended, and the way back."""
    played = made.play("site", "-e", "snapshot_verify_restore=true", says=EQUAL)
    look()
    again = made.play("site", "-e", "snapshot_verify_restore=true", says=EQUAL)
    if again.changed:
        raise Failed(f"the second site.yml reports changed={again.changed}")
    made.play("sessions")
    made.play("sessions", "-e", "sessions_state=compare")
    made.sql("auth_service", f"UPDATE auth_service.users SET password_hash = reverse(password_hash) WHERE id = ({MUTANT})")
    made.play("validate", expect=2, says=r"NOT equal: 1 differences? .*users.*password_hash")
    made.play("repair", says=EQUAL)
    made.play("rollback")
    left = [host for host in HOSTS[1:] if made.sql(host, "SELECT to_regnamespace('migration') IS NOT NULL")]
    if left:
        raise Failed(f"after the rollback {', '.join(left)} still has what the migration made")
    return played.found(EQUAL)


def tell_a_wrong_authority(made: Trial) -> None:
    """See that TLS is in use and said so, and that a server whose certificate another authority signed is refused in a clear line."""
    made.play("preflight", says=r"TLSv1\.[23]")
    stranger = authority(made.folder / "stranger", "a stranger", None)
    trusted = made.read("user_service", "ca_cert")
    made.vars("user_service", ca_cert=str(stranger.certificate))
    made.play("preflight", expect=2, says=r"cannot connect to user_service .*certificate verify failed.*host_vars/user_service")
    made.vars("user_service", ca_cert=trusted)


def recode(made: Trial, encoding: str) -> None:
    """Give the monolith's database another encoding and collation; characters that it has not got become question marks."""
    server = made.servers["monolith"]
    environment = {"PGPASSWORD": server.password, "PGHOST": str(server.home), "PGPORT": str(server.port), "PGUSER": "postgres", "PGDATABASE": "edulink"}
    text = subprocess.run([server.bin_dir / "pg_dump"], env=environment, capture_output=True, check=True).stdout.decode()
    create = f"CREATE DATABASE edulink OWNER edulink ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    made.sql("monolith", "ALTER DATABASE edulink RENAME TO edulink_before", create, dbname="postgres")
    again = text.replace("SET client_encoding = 'UTF8';", f"SET client_encoding = '{encoding}';").encode(encoding, errors="replace")
    argv = [server.bin_dir / "psql", "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--output=/dev/null"]
    subprocess.run(argv, env=environment, input=again, check=True)


def twist(made: Trial) -> None:
    """Set for the migration's roles, and for every database, what would change results or end the work of a client that pins nothing."""
    for host, server in made.servers.items():
        settings = dict(TWISTED) | ({"transaction_timeout": "'300ms'"} if postgres.major(server) >= 17 else {})
        role = "migration_reader" if host == "monolith" else "migrator"
        names = made.rows(host, "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'")
        for thing in (f"ROLE {role}", *(f"DATABASE {name}" for (name,) in names)):
            made.sql(host, *(f"ALTER {thing} SET {name} TO {value}" for name, value in settings.items()), dbname="postgres")


def local_times(made: Trial) -> set[tuple[Any, ...]]:
    """Turn a column of the monolith into local times without a zone, say so in the mapping; return what is to arrive, in UTC."""
    local = f"created_at AT TIME ZONE '{ZONE}'"
    # The hour that autumn repeats names no instant.
    once = f"SELECT company_name, created_at AT TIME ZONE 'UTC' FROM companies WHERE ({local}) AT TIME ZONE '{ZONE}' = created_at"
    written = set(made.rows("monolith", once))
    made.sql("monolith", f"ALTER TABLE companies ALTER created_at TYPE timestamp USING {local}")
    made.play("preflight", says=f"time zone is {ZONE}, and mapped columns are timestamps without a zone")
    mappings = shutil.copytree(PROJECT / "mappings", made.folder / "mappings")
    path = mappings / "user_service" / "company_profiles.yml"
    mapped = path.read_text(encoding="utf-8").replace("created_at: created_at", f"created_at: {{sql: \"{local} AT TIME ZONE 'UTC'\"}}")
    path.write_text(mapped, encoding="utf-8")
    made.vars("all", migration_mappings_dir=str(mappings))
    return written


def require_times(made: Trial, written: set[tuple[Any, ...]]) -> None:
    """See that the local times arrived as the same instants."""
    missing = written - set(made.rows("user_service", "SELECT company_name, created_at FROM user_service.company_profiles"))
    if missing or not written:
        raise Failed(f"{len(missing)} of {len(written)} local times did not arrive as the instants that they were")


ZONE = "America/Sao_Paulo"
TWISTED = {
    "TimeZone": f"'{ZONE}'",
    "DateStyle": "'SQL, DMY'",
    "IntervalStyle": "'sql_standard'",
    "bytea_output": "'escape'",
    "extra_float_digits": "'0'",
    "standard_conforming_strings": "'off'",
    "client_encoding": "'LATIN1'",
    "search_path": "'nowhere'",
    "statement_timeout": "'200ms'",
    "lock_timeout": "'1ms'",
    "idle_session_timeout": "'200ms'",
    "idle_in_transaction_session_timeout": "'200ms'",
    "default_transaction_read_only": "'on'",
    "default_transaction_isolation": "'serializable'",
    "default_transaction_deferrable": "'on'",
    "transform_null_equals": "'on'",
    "array_nulls": "'off'",
    "quote_all_identifiers": "'on'",
    "exit_on_error": "'on'",
    "jit": "'on'",
    "jit_above_cost": "'0'",
    "row_security": "'off'",
    "work_mem": "'64kB'",
}
