# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/options.md: every role's options, from its meta/argument_specs.yml, and the inventory's variables.

The variables of a database are those of the modules' documentation fragment, under the inventory's names.

    python -m tests.lint.options
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "options.md"
HEAD = """# Options

Made by `make docs`. First what the inventory says of each database and of the session store; then each role's options, which are set in the
inventory or with `-e` for one run.
"""
DATABASES = """## Variables of a database

In `host_vars/<database>/`, or in `group_vars/databases/` for all of them. [databases.md](databases.md) has the ways to log in (password file,
certificate, socket and peer, tokens), poolers and managed servers.
"""
STORE = """## Variables of the session store

For the group `session_store`, in `group_vars/all/`; `sessions` and `preflight` read them. An empty text is as good as none.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD, DATABASES, *_table(_endpoint()), STORE, *_table(_store())]
    for path in sorted((PROJECT / "roles").glob("*/meta/argument_specs.yml")):
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"]
        options = spec.get("options") or {}
        parts.append(f"## {path.parts[-3]}\n\n{spec['short_description']}.\n")
        parts += _table(options) if options else []
    return "\n".join(parts)


def _table(options: dict[str, dict[str, Any]]) -> list[str]:
    return ["| option | type | default | meaning |\n|---|---|---|---|", "\n".join(_row(name, option) for name, option in sorted(options.items())) + "\n"]


def _fragment(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, PROJECT / "plugins" / "doc_fragments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # the file is there
    spec.loader.exec_module(module)  # type: ignore[union-attr]  # a file's spec has a loader
    return module


def _endpoint() -> dict[str, dict[str, Any]]:
    options = yaml.safe_load(_fragment("connections")._ENDPOINT)
    named = {"schema": "source_schema"}  # the inventory's word for it
    options["login_host"] = {**options["login_host"], "required": True}  # the inventory must say it, were it a socket's folder
    return {named.get(name, name): option for name, option in options.items() if name != "name"}


def _store() -> dict[str, dict[str, Any]]:
    options = yaml.safe_load(_fragment("session_store").ModuleDocFragment.DOCUMENTATION)["options"]["store"]["suboptions"]
    return {f"session_store_{name}": option for name, option in options.items()}


def _row(name: str, option: dict[str, Any]) -> str:
    text = option.get("description", "")
    meaning = " ".join(text) if isinstance(text, list) else str(text)
    if option.get("choices"):
        meaning += f" One of: {', '.join(f'`{choice}`' for choice in option['choices'])}."
    default = "required" if option.get("required") else f"`{option['default']}`" if "default" in option else ""
    cells = (f"`{name}`", str(option.get("type", "str")), default, meaning)
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.relative_to(PROJECT)}")
