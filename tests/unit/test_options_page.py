# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/options.md is what the roles' specs say, and the specs say what the defaults are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.lint.options import PAGE, PROJECT, page

ROLES = sorted(path for path in (PROJECT / "roles").iterdir() if path.is_dir())


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run 'make docs'"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_and_spec_agree(role: Path) -> None:
    spec = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]["main"].get("options") or {}
    path = role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None) or {}
    assert set(defaults) <= set(spec), "an option that the spec does not know"
    differing = {name for name, value in defaults.items() if spec[name].get("default") != value}
    assert not differing


def test_what_the_progress_plugin_reads_is_an_option_of_the_role_that_every_phase_has() -> None:
    plugin = (PROJECT / "plugins" / "action" / "live_progress.py").read_text(encoding="utf-8")
    read = set(re.findall(r'_option\(variables, "(\w+)"', plugin))
    spec = yaml.safe_load((PROJECT / "roles" / "migration" / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    assert len(read) >= 4
    assert read <= set(spec["argument_specs"]["main"]["options"])


def test_no_folder_is_shown_by_a_way_around() -> None:
    defaults = [(role.name, name, value) for role in ROLES for name, value in (yaml.safe_load((role / "defaults" / "main.yml").read_text()) or {}).items()]
    assert [item for item in defaults if "/../" in str(item[2])] == []
