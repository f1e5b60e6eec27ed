# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say what an error of PostgreSQL was about without repeating its text.

A text can hold values of rows: a function's RAISE writes what it likes, under any SQLSTATE, constraint, table and column, and
PostgreSQL itself quotes values and names that a function made of values. So a fault is built from three things only: the
SQLSTATE, phrases of this file, and names that are known without the error (of the plan, of the inventory, of our own statement).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LOCKED = "55P03"  # lock_not_available
NO_PRIVILEGE = "42501"
RAISED_STEP = (
    "a function there raised it (a trigger, an event trigger, a default or a CHECK); its text can hold values, so only the server's log"
    " has it: read it there, mend or disable the function, then run this again"
)
_STEPS = {
    LOCKED: "another session holds a lock on it (pg_locks says who): let it end, then run this again",
    NO_PRIVILEGE: "GRANT the role what docs/privileges.md lists; playbooks/preflight.yml names each missing privilege",
    "57014": "the statement was cancelled: see statement_timeout of the role, or who cancelled it, then run this again",
    "40001": (
        "on a standby: it cancelled the read to go on replaying, so set hot_standby_feedback = on there; else another transaction wrote the"
        " same rows; run this again"
    ),
    "25006": "it is a standby, or set to read only: name the primary as login_host",
    "53100": "free space on the server's disk, then run this again",
    "53300": "end sessions there or raise max_connections, then run this again",
    "55006": "let the sessions that use it end, then run this again",
}
_CLASS_STEPS = {
    "08": "look whether the server runs, then run this again: what was committed is kept",
    "22": "playbooks/preflight.yml names the rows",
    "23": "playbooks/preflight.yml names the rows",
    "40": "run this again",
    "42": "playbooks/preflight.yml compares what is there with the mappings and the schema SQL",
    "53": "give the server more of it (its log says of what), then run this again",
    "57": "look whether the server runs, then run this again: what was committed is kept",
    "58": "the server's log names the file; mend the disk or its rights, then run this again",
    "XX": "a table or an index may be damaged: the server's log names it, amcheck proves it; mend it, then run this again",
}
_OTHER_STEP = "the server's log has the whole text; mend the cause, then run this again"
LOST = "the connection was lost"
LOST_STEP = _CLASS_STEPS["08"]

# What PostgreSQL writes in English, and what is said of it. In another language the SQLSTATE's own name has to do.
_PHRASES = tuple(
    (re.compile(pattern), phrase)
    for pattern, phrase in (
        (r"row-level security", "row-level security hides rows from the role"),
        (r"permission denied", "permission denied"),
        (r"must be owner of", "the role is not the owner"),
        (r"must be (?:a )?superuser|superuser-only|Only superusers|only superuser|reserved for roles with", "only a superuser may do that"),
        (r"must (?:be a )?member of role|must be able to SET ROLE|must have .* option", "the role is no member of the other role"),
        (r"role .* does not exist", "the role does not exist"),
        (r"extension .* is not available|could not open extension control file|could not access file", "the extension is not installed on that server"),
        (r"because other objects depend on it", "other objects depend on it"),
        (r"does not exist", "it does not exist"),
        (r"already exists", "it exists already"),
        (r"could not create unique index", "two rows have the same key"),
        (r"violates unique constraint", "two rows have the same key"),
        (r"violates foreign key constraint", "a row refers to one that is not there"),
        (r"violates check constraint|is violated by some row", "a row breaks a CHECK"),
        (r"violates not-null constraint|contains null values", "a row has no value where one is needed"),
        (r"violates exclusion constraint|could not create exclusion constraint", "two rows exclude each other"),
        (r"canceling statement due to lock timeout|could not obtain lock", "another session holds a lock on it"),
        (r"canceling statement due to statement timeout", "the statement took longer than statement_timeout"),
        (r"canceling statement due to user request", "somebody cancelled the statement"),
        (r"canceling statement due to conflict with recovery", "the standby cancelled the statement to go on replaying"),
        (r"terminating connection due to administrator command", "an administrator or a shutdown ended the session"),
        (r"deadlock detected", "two sessions waited for each other"),
        (r"invalid input syntax", "a value cannot be read as its type"),
        (r"out of range", "a value is out of range"),
        (r"value too long", "a value is too long for its column"),
        (r"invalid byte sequence|has no equivalent in encoding", "a value is not valid in the encoding"),
        (r"unrecognized configuration parameter", "the server does not know a setting"),
        (r"being accessed by other users|is being used", "others are using it"),
        (r"read-only transaction", "it is read only"),
        (r"No space left on device|Disk quota exceeded", "the disk is full"),
        (r"out of shared memory", "the server's lock table is full (max_locks_per_transaction)"),
    )
)
_KINDS = (
    "access method", "aggregate", "cast", "collation", "column", "constraint", "conversion", "database", "domain", "event trigger", "extension",
    "foreign table", "function", "index", "language", "large object", "materialized view", "operator", "operator class", "parameter", "policy",
    "procedure", "publication", "relation", "role", "rule", "schema", "sequence", "server", "statistics object", "subscription", "table", "tablespace",
    "trigger", "type", "view",
)  # fmt: skip
_NAME = r'"(?:[^"]|"")+"|[^\W\d][\w$]*'
_NAMED = re.compile(rf"\b({'|'.join(sorted(_KINDS, key=len, reverse=True))})s? ((?:{_NAME})(?:\.(?:{_NAME}))*)")
_QUOTED = re.compile(r'["»„«“]\s?([^"»„«“”]+?)\s?["«“»”]')
_LITERAL = re.compile(r"\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$", re.DOTALL)
_WORD = re.compile(_NAME)
_WORK = re.compile(
    rf"\s*(COPY|INSERT INTO|UPDATE|DELETE FROM|TRUNCATE|MERGE INTO|(?:CREATE|ALTER|DROP) (?:UNIQUE )?(?:TABLE|INDEX|TYPE|DOMAIN|SCHEMA|DATABASE|FUNCTION))"
    rf"(?: (?:IF NOT EXISTS|IF EXISTS|CONCURRENTLY|ONLY))* ((?:{_NAME})(?:\.(?:{_NAME}))*)"
)
_LONGEST = 200_000  # characters of a statement that are searched for names
_STATE = re.compile(r"[0-9A-Z]{5}")
# Where the languages of functions, and servers behind a foreign table, hand on what somebody else wrote.
_RAISERS = re.compile(r"(?:pl_exec|pl_handler|plpy_\w+|plperl|Util|SPI|pltcl|dblink|postgres_fdw|connection)\.(?:c|xs)")

_TYPES = (
    "bigint bit boolean bytea cidr date double float inet integer interval json jsonb name numeric oid point real smallint text time timestamp"
    " timestamptz tsvector uuid varbit varchar xml"
)
_known: set[str] = {"public", "pg_catalog", "information_schema", "migration", *_TYPES.split()}


@dataclass(frozen=True)
class Fault:
    """What an error was about: words that may be shown, its SQLSTATE, the known names in it with their kinds, what helps."""

    text: str
    state: str
    step: str
    names: tuple[tuple[str, str], ...] = ()
    raised: bool = False


def know(names: Iterable[str | None]) -> None:
    """Remember names that may be shown: of the plan, the inventory, the catalog. Never pass a value of a row."""
    _known.update(name for name in names if name)


def known(name: str) -> bool:
    """Return whether a name, qualified or not, may be shown."""
    return _all_known(name, _known)


def fault_of(exc: BaseException) -> Fault:
    """Return what an error of psycopg2 with a SQLSTATE may say aloud."""
    state = str(getattr(exc, "pgcode", None) or "")
    diag = getattr(exc, "diag", None)
    statement = _statement(exc)
    text = str(getattr(diag, "message_primary", None) or "")
    shown = f" [SQLSTATE {state}]" if _STATE.fullmatch(state) else ""
    if is_raised(exc):
        work = _WORK.match(statement)
        during = f" during {work[1]} {work[2]}" if work else ""
        return Fault(f"an error that a function raised{during}{shown}", state, RAISED_STEP, raised=True)
    may = _known | names_in(statement)
    names = _of_diag(diag, may) or _of_text(text, may)
    return Fault(f"{_phrase(text) or _condition(exc)}{_listed(names)}{shown}", state, step_for(state), names)


def is_raised(exc: BaseException) -> bool:
    """Return whether a function wrote the error: its SQLSTATE and names are then claims, however they look."""
    diag = getattr(exc, "diag", None)
    if str(getattr(exc, "pgcode", None) or "").startswith("P0"):
        return True
    return bool(_RAISERS.fullmatch(str(getattr(diag, "source_file", None) or "")))


def step_for(state: str) -> str:
    """Return what helps against a SQLSTATE."""
    return _STEPS.get(state) or _CLASS_STEPS.get(state[:2]) or _OTHER_STEP


def said_by_client(text: str) -> str:
    """Return what the server's text in a client program's error was about, without SQLSTATE, which clients do not print."""
    phrase = _phrase(text)
    return f"{phrase}{_listed(_of_text(text, _known))}" if phrase else ""


def names_in(statement: str) -> set[str]:
    """Return the words of our own statement that stand outside its literals."""
    words = _WORD.findall(_LITERAL.sub(" ", statement[:_LONGEST]))
    return {_plain(word) for word in words} | {word.lower() for word in words}


def _statement(exc: BaseException) -> str:
    query = getattr(getattr(exc, "cursor", None), "query", None)
    return query.decode(errors="replace") if isinstance(query, bytes) else str(query or "")


def _phrase(text: str) -> str:
    return next((phrase for pattern, phrase in _PHRASES if pattern.search(text)), "")


def _condition(exc: BaseException) -> str:
    """Return the SQLSTATE's name in words: `lock not available`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(exc).__name__.rstrip("_")).lower()


def _of_diag(diag: Any, may: set[str]) -> tuple[tuple[str, str], ...]:
    schema, table = getattr(diag, "schema_name", None), getattr(diag, "table_name", None)
    found = (
        ("constraint", getattr(diag, "constraint_name", None)),
        ("table", f"{schema}.{table}" if schema in may and table in may else table),
        ("column", getattr(diag, "column_name", None)),
    )
    return tuple((kind, name) for kind, name in found if name and (name in may or (kind == "table" and table in may)))


def _of_text(text: str, may: set[str]) -> tuple[tuple[str, str], ...]:
    found = [(kind, _plain(name)) for kind, name in _NAMED.findall(text)]
    seen = {name for _, name in found}
    found += [("", name) for name in _QUOTED.findall(text) if name not in seen]
    return tuple(dict.fromkeys((kind, name) for kind, name in found if _all_known(name, may)))


def _all_known(name: str, may: set[str]) -> bool:
    return name in may or all(part in may for part in name.split("."))


def _plain(name: str) -> str:
    """Return a name as the catalog has it."""
    return ".".join(word[1:-1].replace('""', '"') if word.startswith('"') else word for word in _WORD.findall(name))


def _listed(names: Iterable[tuple[str, str]]) -> str:
    listed = ", ".join(f"{kind} {name}".strip() for kind, name in names)
    return f" ({listed})" if listed else ""
