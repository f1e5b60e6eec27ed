# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stage modules and module_utils as a collection, the shape in which mypy and `ansible-test sanity` understand them.

    python -m tests.lint.stage <folder>
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
NAMESPACE, NAME = "edulink", "migration"
GALAXY = f"""---
namespace: {NAMESPACE}
name: {NAME}
version: 0.0.1
readme: README.md
authors: [The Edulink migration project]
license_file: LICENSE
repository: https://example.invalid/edulink-migration
"""
FRAGMENTS = "|".join(sorted(path.stem for path in (PROJECT / "plugins" / "doc_fragments").glob("*.py")))
SOURCES = {"library": "plugins/modules", "module_utils": "plugins/module_utils", "plugins/doc_fragments": "plugins/doc_fragments"}


def stage(root: Path) -> Path:
    """Copy into root/ansible_collections/<namespace>/<name> and return that folder."""
    folder = root / "ansible_collections" / NAMESPACE / NAME
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source, destination in SOURCES.items():
        shutil.copytree(PROJECT / source, folder / destination, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "plugins" / "modules").glob("*.py"):  # in a collection a fragment has the collection's name
        text = path.read_text(encoding="utf-8")
        named = re.sub(rf"^(extends_documentation_fragment: |  - )((?:{FRAGMENTS})(?:\.\w+)?)$", rf"\1{NAMESPACE}.{NAME}.\2", text, flags=re.MULTILINE)
        path.write_text(named, encoding="utf-8")
    (folder / "galaxy.yml").write_text(GALAXY, encoding="utf-8")
    (folder / "meta").mkdir()
    (folder / "meta" / "runtime.yml").write_text("---\nrequires_ansible: '>=2.19.0'\n", encoding="utf-8")
    for name in ("README.md", "LICENSE"):
        if (PROJECT / name).exists():
            shutil.copy(PROJECT / name, folder / name)
    return folder


if __name__ == "__main__":
    print(stage(Path(sys.argv[1])))
