# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/options.md: every role's options, from its meta/argument_specs.yml.

    python -m tests.lint.options
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "options.md"
HEAD = """# Options of the roles

Made by `make docs` from each role's `meta/argument_specs.yml`. Set them in the inventory, or with `-e` for one run.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for path in sorted((PROJECT / "roles").glob("*/meta/argument_specs.yml")):
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"]
        options = spec.get("options") or {}
        parts.append(f"## {path.parts[-3]}\n\n{spec['short_description']}.\n")
        if options:
            parts.append("| option | type | default | meaning |\n|---|---|---|---|")
            parts.append("\n".join(_row(name, option) for name, option in sorted(options.items())) + "\n")
    return "\n".join(parts)


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
