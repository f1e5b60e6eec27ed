#!/usr/bin/python
# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry the sessions of django_session to Redis."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: migration_sessions
short_description: Carry the live sessions of a Django monolith to Redis
description:
  - Streams C(django_session), checks each signature, gives each session the user's UUID, and writes it to Redis in the layout of
    the service, ending at the same second.
  - Keeps a record of what it wrote beside the sessions, so that a rerun writes only what changed and an undo removes only that.
  - A session that the service has written, prolonged or ended since is never touched.
  - Never unpickles. Session keys are reported as a short hash only.
author: The Edulink migration project (@edulink)
extends_documentation_fragment:
  - connections
  - session_store
options:
  state:
    description:
      - V(present) carries the sessions and removes those that have ended in the monolith since.
      - V(compare) tells what V(present) would do and writes nothing, in any mode.
      - V(absent) deletes exactly the sessions that were written and are still as they were written.
    type: str
    default: present
    choices: [present, compare, absent]
  engine:
    description: The service's session engine; V(neutral) is JSON for a service that is not written in Django.
    type: str
    default: cache
    choices: [cache, cached_db, neutral]
  key_prefix:
    description: KEY_PREFIX of the service's cache.
    type: str
    default: ""
  key_version:
    description: VERSION of the service's cache.
    type: int
    default: 1
  service_table:
    description:
      - For O(engine=cached_db) the service's own C(django_session) as V(schema.table), which gets a row for each carried session, because
        Django saves a changed session with an UPDATE of it. Empty means C(django_session) in the schema of the users.
      - While there is no such table only the store is written, with a warning; a later run adds the rows.
    type: str
    default: ""
  serializer:
    description: The serializer of the service's cache; Django's own is V(pickle).
    type: str
    default: pickle
    choices: [pickle, json]
  secret_key:
    description: SECRET_KEY of the monolith. Not needed for O(state=absent).
    type: str
  secret_key_fallbacks:
    description: SECRET_KEY_FALLBACKS of the monolith.
    type: list
    elements: str
    default: []
  service_secret_key:
    description: SECRET_KEY of the service, when it is another one.
    type: str
  salt:
    description: The signing salt of the monolith's session engine; it holds the class name of a home-made one.
    type: str
    default: django.contrib.sessions.SessionStore
  backends:
    description: Authentication backends of the monolith and what they are called in the service.
    type: dict
    default: {}
  ids:
    description: Keys of the session data that hold ids of the monolith, and the entity of each; they are translated, and left out where the id is not known.
    type: dict
    default: {}
  known_backends:
    description: AUTHENTICATION_BACKENDS of the service; a session of another one is rejected. Empty means that all are known.
    type: list
    elements: str
    default: []
  users_entity:
    description: The entity of the plan that mints the users' ids.
    type: str
    default: users
  password_column:
    description: The column of the users' table that holds the password string.
    type: str
    default: password_hash
  user_index:
    description: Prefix of a set for each user that names the user's sessions, for revocation; needs Redis 7. Empty means none.
    type: str
    default: ""
  restore:
    description: Write sessions again that were carried and are gone from the store before their end.
    type: bool
    default: false
  ended:
    description: What becomes of carried sessions that have ended in the monolith since.
    type: str
    default: remove
    choices: [remove, keep]
  eviction_allowed:
    description: Accept a store that throws sessions away when it is full.
    type: bool
    default: false
  forged_limit:
    description:
      - How many percent of the signatures may be made with none of the keys. More looks like a wrong key, or like a rotated one whose
        predecessor is not among the fallbacks, and is an error before anything is written or removed, in check mode too.
      - Counted among all live sessions and among those that were carried before; of 20,000 and more a sample of about 10,000 is looked at.
    type: int
    default: 50
  batch:
    description: Sessions read at once.
    type: int
    default: 2000
  workers:
    description: Processes that decode and write; few sessions are carried by one.
    type: int
    default: 2
requirements:
  - psycopg2
  - redis 5 or later (Python package)
  - Redis 6.2, Valkey 7.2 or later
attributes:
  check_mode:
    support: full
    description: Tells the same numbers and writes nothing anywhere.
  diff_mode:
    support: full
    description: Shows the numbers before and after.
  idempotent:
    support: full
    description: A second run changes nothing unless sessions began, changed or ended in between.
"""

EXAMPLES = r"""
- name: Carry the sessions
  migration_sessions:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    store:
      hosts: [{host: sessions.example.org, port: 6379}]
      password: "{{ session_store_password }}"
    secret_key: "{{ sessions_secret_key }}"
  register: __sessions_result

- name: Take them back
  migration_sessions:
    plan: "{{ __migration_plan.plan }}"
    connections: "{{ __migration_connections }}"
    store: "{{ __sessions_store }}"
    state: absent
"""

RETURN = r"""
counts:
  description:
    - What there was (C(live), C(expired), C(anonymous), C(authenticated), C(not_migrated), C(outdated), C(rejected) by reason) and
      what became of it (C(carried) = C(written) + C(updated) + C(unchanged) + C(service) + C(ended_in_service); C(removed)).
    - For O(state=absent) C(removed), C(service) and C(gone).
  type: dict
  returned: success
  sample: {live: 3, carried: 3, written: 3}
differences:
  description: How many sessions O(state=present) would write, update or remove.
  type: int
  returned: state=compare
msg:
  description: The same in a line.
  type: str
  returned: success
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.migration.context import CONTEXT_SPEC, Context
from ..module_utils.migration.errors import MigrationError
from ..module_utils.migration.module import MigrationModule, finish
from ..module_utils.migration.postgres import driver
from ..module_utils.migration.postgres.quote import qualified
from ..module_utils.migration.sessions import session_ids
from ..module_utils.migration.sessions.cache_layout import ENGINES, SERIALIZERS, Layout
from ..module_utils.migration.sessions.carry import Result, Rules, carry, remove
from ..module_utils.migration.sessions.ledger import Ledger
from ..module_utils.migration.sessions.records import alone, in_store, record
from ..module_utils.migration.sessions.reset_links import TEXT
from ..module_utils.migration.sessions.service_table import ServiceRows, service_rows
from ..module_utils.migration.sessions.signing import SESSION_SALT
from ..module_utils.migration.sessions.store import STORE_SPEC, StoreOptions, open_store
from ..module_utils.migration.sessions.users import ForeseenUsers, MigratedUsers, Users, entity_of
from ..module_utils.migration.state import control, gates
from ..module_utils.migration.state.rolled_back import require_not_rolled_back
from ..module_utils.migration.stopping import stop_with_ansible

APPLICATION_NAME = "edulink-migration sessions"
NO_TABLE = (
    "there is no table {}: the service can read the carried sessions, but its cached_db saves a changed one with an UPDATE of that table and"
    " answers 400; run the service's manage.py migrate (or set sessions_service_table) and then playbooks/sessions.yml again"
)
EVICTED = (
    "the session store has evicted {} keys since it started: of the {} sessions counted as ended by the service some may have been evicted instead;"
    " set maxmemory-policy to noeviction, and write them again with -e sessions_restore=true if nobody uses the service yet"
)
READY = "SELECT to_regclass('migration.id_map') IS NOT NULL"


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; MigrationError when sessions cannot be carried."""
    params = module.params
    options = StoreOptions.from_params(params["store"])  # before the first connection: it may be refused
    context = Context.from_params(params, module.check_mode)
    layout = Layout(params["engine"], params["key_prefix"], params["key_version"], params["serializer"])
    with contextlib.closing(open_store(options)) as store, _rows(context, params) as rows:
        ledger = Ledger(store, layout, rows=rows)
        if params["state"] == "absent":
            return _absent(context, ledger, params)
        if params["engine"] == "cached_db" and rows is None:
            module.warn(NO_TABLE.format(_table(context, params)))
        answer = _present(context, ledger, options, params)
        evicted = sum(room.evicted for room in store.rooms())
        if evicted and answer["counts"]["ended_in_service"]:
            module.warn(EVICTED.format(evicted, answer["counts"]["ended_in_service"]))
        return answer


def _absent(context: Context, ledger: Ledger, params: dict[str, Any]) -> dict[str, Any]:
    with alone(context, write=not context.check) as records:
        counts = dict(remove(ledger, write=not context.check, user_index=params["user_index"] or None))
        to = "to be " if context.check else ""
        line = f"sessions: {counts['removed']} {to}removed, {counts['service']} kept because the service has changed them, {counts['gone']} had ended"
        if records is not None and (any(counts.values()) or in_store(context, records)):
            record(context, records, "sessions", "removed", {**counts, "remark": line.removeprefix("sessions: ")})
    return {"changed": any(counts.values()), "counts": counts, "msg": line, "diff": _diff(counts["removed"], 0)}


def _present(context: Context, ledger: Ledger, options: StoreOptions, params: dict[str, Any]) -> dict[str, Any]:
    if not params["secret_key"]:
        raise MigrationError("sessions_secret_key is missing: it is SECRET_KEY of the monolith; keep it in the vault")
    compare = params["state"] == "compare"
    write = not (context.check or compare)
    with alone(context, write=write) as records:
        if records is not None:
            _require_migration(context, records)
        result, note = _carry(context, ledger, options, params, records)
        if context.check and not compare:
            note = _required(context) or note
    counts = result.to_dict()
    answer: dict[str, Any] = {"changed": result.changed and not compare, "counts": counts, "msg": result.line(wrote=write) + note}
    if compare:
        answer["differences"] = differences = result.written + result.updated + result.removed + result.service_rows
        if not context.check:
            remark = f"{differences:,} of {result.live:,} live sessions differ from the session store"
            with contextlib.closing(control.connect(context.control)) as records:
                record(context, records, "sessions compared", "failed" if differences else "passed", {**counts, "remark": remark})
    before = result.unchanged + result.updated + result.service + result.removed
    return {**answer, "diff": _diff(before, result.unchanged + result.updated + result.service + result.written)}


def _require_migration(context: Context, records: driver.Connection) -> None:
    """Require an open migration of this plan whose services were not rolled back."""
    with driver.database_errors(context.control.place, "reading the record"):
        migration = control.require_open(records, context.plan.digest)
    require_not_rolled_back(context, migration)


def _required(context: Context) -> str:
    """Return as a remark what the real run would refuse to begin without; "" for nothing."""
    with contextlib.closing(control.connect(context.control, readonly=True)) as records:
        try:
            _require_migration(context, records)
        except MigrationError as exc:
            return f"; {gates.would_refuse(exc)}"
    return ""


def _carry(
    context: Context, ledger: Ledger, options: StoreOptions, params: dict[str, Any], records: driver.Connection | None
) -> tuple[Result, str]:
    """Carry the sessions and keep the record of it; without `records` only tell. Return what became of them and a remark."""
    rules = Rules(
        secret_key=params["secret_key"],
        secret_key_fallbacks=tuple(params["secret_key_fallbacks"]),
        service_secret_key=params["service_secret_key"] or None,
        salt=params["salt"],
        backends=params["backends"],
        known_backends=tuple(params["known_backends"]),
        ids=params["ids"],
        user_index=params["user_index"] or None,
        restore=params["restore"],
        ended=params["ended"],
        eviction_allowed=params["eviction_allowed"],
        forged_limit=params["forged_limit"],
        batch=params["batch"],
        workers=params["workers"],
    )
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(driver.connect(context.source, application_name=APPLICATION_NAME, readonly=True)))
        users, note = _users(stack, context, params)

        @contextlib.contextmanager
        def crew() -> Iterator[tuple[Users, Ledger]]:
            """Open the connections of a worker process."""
            with contextlib.ExitStack() as own, contextlib.closing(open_store(options)) as store, _rows(context, params) as rows:
                yield _users(own, context, params)[0], Ledger(store, ledger.layout, rows=rows)

        def opening() -> None:
            """Note that the store is about to be written: a run that is killed must be known to validation and rollback."""
            if records is not None and not in_store(context, records):
                record(context, records, "sessions", "begun", {"remark": "carrying has begun and was not told to have ended"})

        result = carry(
            source, context.source.schema, users, ledger, rules, write=records is not None, place=context.source.place, crew=crew, opening=opening
        )
    if records is not None:
        record(context, records, "sessions", "passed", {**result.to_dict(), "remark": result.remark, "announcement": TEXT})
    return result, note


def _users(stack: contextlib.ExitStack, context: Context, params: dict[str, Any]) -> tuple[Users, str]:
    """Return where to look users up; in check mode, before anything was migrated, that is the source."""
    entity = entity_of(context.plan, params["users_entity"])
    target = stack.enter_context(
        contextlib.closing(context.connect_target(entity.service, APPLICATION_NAME, readonly=True, autocommit=True))
    )
    with driver.database_errors(context.targets[entity.service].place, "looking for the id map"):
        ready = driver.scalar(target, READY)
    if ready:
        users = MigratedUsers(target, context.plan, context.namespace, entity=entity.name, password_column=params["password_column"])
        users.ids = session_ids.migrated(_id_maps(stack, context, params), context.plan)
        return users, ""
    if not context.check:
        raise MigrationError(f"{context.targets[entity.service].place}: no users are here yet; run playbooks/migrate.yml first")
    source = stack.enter_context(
        contextlib.closing(driver.connect(context.source, application_name=APPLICATION_NAME, readonly=True, autocommit=True))
    )
    foreseen = ForeseenUsers(source, context.source.schema, context.plan, context.namespace, entity=entity.name)
    foreseen.ids = session_ids.foreseen(source, context.source.schema, context.plan, context.namespace)
    return foreseen, "; would require that playbooks/migrate.yml has carried the users"


def _id_maps(stack: contextlib.ExitStack, context: Context, params: dict[str, Any]) -> dict[str, driver.Connection]:
    """Return a connection to each service whose id map is asked for what the sessions hold."""
    services = dict.fromkeys(entity_of(context.plan, entity, f"sessions_map: {key}").service for key, entity in params["ids"].items())
    connect = functools.partial(context.connect_target, application_name=APPLICATION_NAME, readonly=True, autocommit=True)
    return {service: stack.enter_context(contextlib.closing(connect(service))) for service in services}


@contextlib.contextmanager
def _rows(context: Context, params: dict[str, Any]) -> Iterator[ServiceRows | None]:
    """Open the service's own django_session, where its engine needs one."""
    if params["engine"] != "cached_db":
        yield None
        return
    service = entity_of(context.plan, params["users_entity"]).service
    with service_rows(context.targets[service], _table(context, params), APPLICATION_NAME) as rows:
        yield rows


def _table(context: Context, params: dict[str, Any]) -> str:
    """Return the quoted name of the service's django_session."""
    entity = entity_of(context.plan, params["users_entity"])
    schema, _, name = params["service_table"].rpartition(".")
    target = next(item for item in context.plan.targets if (item.service, item.table) == (entity.service, entity.target))
    return qualified(schema or target.schema, name or "django_session")


def _diff(before: int, after: int) -> dict[str, str]:
    return {"before": f"carried sessions in the store: {before}\n", "after": f"carried sessions in the store: {after}\n"}


def main() -> None:
    """Read the options, carry, report."""
    module = MigrationModule(
        argument_spec={
            **CONTEXT_SPEC,
            "state": {"type": "str", "default": "present", "choices": ["present", "compare", "absent"]},
            "store": {"type": "dict", "required": True, "options": STORE_SPEC},
            "engine": {"type": "str", "default": "cache", "choices": list(ENGINES)},
            "key_prefix": {"type": "str", "default": "", "no_log": False},
            "key_version": {"type": "int", "default": 1, "no_log": False},
            "service_table": {"type": "str", "default": ""},
            "serializer": {"type": "str", "default": "pickle", "choices": list(SERIALIZERS)},
            "secret_key": {"type": "str", "no_log": True},
            "secret_key_fallbacks": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "service_secret_key": {"type": "str", "no_log": True},
            "salt": {"type": "str", "default": SESSION_SALT},
            "backends": {"type": "dict", "default": {}},
            "ids": {"type": "dict", "default": {}},
            "known_backends": {"type": "list", "elements": "str", "default": []},
            "users_entity": {"type": "str", "default": "users"},
            "password_column": {"type": "str", "default": "password_hash", "no_log": False},
            "user_index": {"type": "str", "default": ""},
            "restore": {"type": "bool", "default": False},
            "ended": {"type": "str", "default": "remove", "choices": ["remove", "keep"]},
            "eviction_allowed": {"type": "bool", "default": False},
            "forged_limit": {"type": "int", "default": 50},
            "batch": {"type": "int", "default": 2000},
            "workers": {"type": "int", "default": 2},
        },
        supports_check_mode=True,
    )
    stop_with_ansible()
    finish(module, run)


if __name__ == "__main__":
    main()
