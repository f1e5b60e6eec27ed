# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole story with a login for each database, none of which is anybody in another's; a service's trigger gains nothing by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible.module_utils.migration.contract.model import Contract
from ansible.module_utils.migration.errors import MigrationError
from ansible.module_utils.migration.repair import repair
from ansible.module_utils.migration.rollback import run as rollback
from ansible.module_utils.migration.schema import build
from ansible.module_utils.migration.snapshot import take
from ansible.module_utils.migration.validate import run as validate

from tests.walk.environment import SERVICES, Walk, ask
from tests.walk.fixtures import project_plan, services_server, walk  # noqa: F401

# A trigger of the service's owner writes down which roles the session that fires it could become.
SEES = """
CREATE TABLE auth_service.seen (role text);
CREATE FUNCTION auth_service.look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO auth_service.seen SELECT rolname FROM pg_roles WHERE pg_has_role(session_user, oid, 'MEMBER');
    RETURN NULL;
END $$;
CREATE TRIGGER look AFTER UPDATE ON auth_service.users EXECUTE FUNCTION auth_service.look();
"""


def test_every_phase_works_with_logins_that_are_nobody_in_anothers_database(walk: Walk) -> None:  # noqa: F811
    auth, user = (walk.context.targets[name] for name in SERVICES)
    records = walk.context.control
    for login, others in ((auth, (user, records)), (user, (auth, records)), (records, (auth, user))):
        for other in others:
            with pytest.raises(MigrationError, match="the role may not connect to the database"):
                ask(replace(login, dbname=other.dbname, session_role=None), "SELECT 1")
    take.take(walk.context, walk.taking(proof=True))
    walk.carry()
    for name, contract in walk.context.plan.contracts:
        build.build(walk.context.targets[name], Contract.from_dict(contract))
    migration = walk.migration()
    assert migration is not None

    def compared() -> validate.Verification:
        return validate.compare(walk.context, migration.plan_time, options=validate.Options(settle_attempts=0))

    assert compared().passed
    for statement in (*filter(None, SEES.strip().split(";\n\n")), "UPDATE auth_service.users SET email = email || 'x' WHERE username = 'ada'"):
        ask(auth, statement)
    ask(auth, "TRUNCATE auth_service.seen")
    planned = repair.plan_repair(compared().to_dict(), after_cutover=False)
    assert planned.findings
    repair.apply_repair(walk.context, migration.plan_time, planned)
    assert compared().passed
    seen = set(ask(auth, "SELECT array_agg(DISTINCT role) FROM auth_service.seen"))
    assert {auth.user, auth.session_role} <= seen
    assert not seen & {user.user, user.session_role, records.user, "postgres"}
    ask(auth, "DROP TRIGGER look ON auth_service.users; DROP FUNCTION auth_service.look(); DROP TABLE auth_service.seen")
    done = rollback.roll_back(walk.context, walk.rolling())
    assert done.complete
    rollback.close(walk.context, walk.rolling())
    assert [walk.content(name) for name in SERVICES] == [{}, {}]
