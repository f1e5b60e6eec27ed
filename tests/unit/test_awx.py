# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The objects for AWX name playbooks and variables that exist, and form one workflow."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
OBJECTS: dict[str, Any] = {
    **yaml.safe_load((PROJECT / "awx/job_templates.yml").read_text()),
    **yaml.safe_load((PROJECT / "awx/workflow.yml").read_text()),
}
TEMPLATES = {item["name"]: item for item in OBJECTS["awx_job_templates"]}
NODES = {item["identifier"]: item for item in OBJECTS["awx_workflow_nodes"]}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_job_template_runs_a_playbook_that_exists(name: str) -> None:
    assert (PROJECT / TEMPLATES[name]["playbook"]).is_file()


@pytest.mark.parametrize("name", [name for name, item in TEMPLATES.items() if "survey_spec" in item])
def test_a_survey_asks_for_options_of_the_role(name: str) -> None:
    role = Path(TEMPLATES[name]["playbook"]).stem
    options = yaml.safe_load((PROJECT / "roles" / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    for question in TEMPLATES[name]["survey_spec"]["spec"]:
        assert question["variable"] in options
        if "choices" in question:
            assert question["choices"] == options[question["variable"]]["choices"]


def test_the_workflow_is_whole() -> None:
    reached = {"preflight"}
    for _ in NODES:
        reached |= {follower for name in reached for kind in ("success", "failure") for follower in NODES[name].get(kind, [])}
    assert reached == set(NODES)
    assert all(("approval" in node) != (node.get("template") in TEMPLATES) for node in NODES.values())


def test_nobody_writes_to_a_service_before_a_person_said_so() -> None:
    assert NODES["preflight"]["success"] == ["approve-begin"]
    assert "approval" in NODES["approve-begin"]
    assert not any("rollback" in node.get("template", "") for node in NODES.values())


@pytest.mark.skipif(importlib.util.find_spec("ansible_collections.awx") is None, reason="the community package has no awx.awx on this Python")
@pytest.mark.parametrize(("module", "data"), [("job_template", {**OBJECTS["awx_job_template_defaults"], **item}) for item in TEMPLATES.values()]
                         + [("workflow_job_template", OBJECTS["awx_workflow"]), ("project", OBJECTS["awx_project"])])
def test_the_collection_knows_every_option(module: str, data: dict[str, Any]) -> None:
    source = Path(str(importlib.util.find_spec("ansible_collections.awx").submodule_search_locations[0])) / f"awx/plugins/modules/{module}.py"
    documented = yaml.safe_load(source.read_text().split("DOCUMENTATION = '''")[1].split("'''")[0])["options"]
    assert set(data) <= set(documented)
