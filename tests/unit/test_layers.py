# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The core's packages stand on floors: a package imports from lower floors only, is small, and says what it is for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

CORE = PROJECT / "module_utils" / "migration"
MODULES_AT_MOST = 18
LINES_AT_MOST = 400
# From the ground up. A module that lies directly in the core counts as a package of its own.
FLOORS = {
    "errors": 1,
    "mistakes": 2,
    "text": 1,
    "yaml_tree": 3,
    "tls": 1,
    "progress": 1,
    "stopping": 1,
    "postgres": 2,
    "embedded": 3,
    "contract": 3,
    "module": 3,
    "plan": 4,
    "context": 5,
    "schema": 6,
    "upsert": 6,
    "state": 7,
    "throttle": 8,
    "checks": 9,
    "snapshot": 9,
    "sessions": 9,
    "transfer": 10,
    "rollback": 10,
    "validate": 10,
    "repair": 11,
    "preflight": 11,
    "report": 11,
}


def modules(core: Path) -> Iterator[tuple[str, Path]]:
    """Yield the package (or the lone module's name) and the path of every module of the core."""
    for path in sorted(core.rglob("*.py")):
        parts = path.relative_to(core).with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], path


def imported(core: Path, path: Path) -> Iterator[str]:
    """Yield the packages of the core that a module imports from."""
    depth = len(path.relative_to(core).parts) - 1
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level <= depth:
            continue
        if node.level > depth + 1:
            yield f"(outside: {node.module})"
        elif node.module:
            yield node.module.split(".")[0]
        else:
            yield from (alias.name for alias in node.names)


def upward(core: Path) -> list[str]:
    """Return every import that does not go down."""
    faults = []
    for package, path in modules(core):
        for other in imported(core, path):
            if other != package and FLOORS.get(other, 99) >= FLOORS.get(package, 0):
                faults.append(f"{path.relative_to(core)} imports from {other}")
    return sorted(set(faults))


def too_large(core: Path) -> list[str]:
    """Return every package with too many modules and every file with too many lines."""
    files = list(modules(core))
    packages = {package for package, path in files if path.parent != core}
    sizes = {package: sum(path.stem != "__init__" for owner, path in files if owner == package) for package in packages}
    faults = [f"{package} has {size} modules" for package, size in sizes.items() if size > MODULES_AT_MOST]
    for _, path in files:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES_AT_MOST:
            faults.append(f"{path.relative_to(core)} has {lines} lines")
    return sorted(faults)


def test_imports_go_down():
    assert upward(CORE) == []


def test_packages_and_files_stay_small():
    assert too_large(CORE) == []


def test_every_package_has_a_floor_and_says_what_it_is_for():
    for package in {package for package, _ in modules(CORE)}:
        assert package in FLOORS, f"{package} has no floor: give it one here, above what it imports from"
        if (CORE / package).is_dir():
            said = ast.get_docstring(ast.parse((CORE / package / "__init__.py").read_text(encoding="utf-8"))) or ""
            assert said.endswith("."), f"{package}/__init__.py does not say in a sentence what the package is for"


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("plan/mapping.py", "from ..validate.digest import digest\n", "plan/mapping.py imports from validate"),
        ("plan/mapping.py", "from .. import report\n", "plan/mapping.py imports from report"),
        ("errors.py", "from .plan.model import Plan\n", "errors.py imports from plan"),
        ("plan/new/deep.py", "def f():\n    from ...state import control\n", "plan/new/deep.py imports from state"),
        ("validate/digest.py", "from ..transfer import run\n", "validate/digest.py imports from transfer"),
        ("plan/mapping.py", "from ...lab import layout\n", "plan/mapping.py imports from (outside: lab)"),
    ],
)
def test_an_import_that_goes_up_is_found(tmp_path: Path, module: str, text: str, fault: str):
    (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / module).write_text(text, encoding="utf-8")
    assert upward(tmp_path) == [fault]


def test_a_large_package_and_a_long_file_are_found(tmp_path: Path):
    (tmp_path / "plan").mkdir()
    for number in range(MODULES_AT_MOST + 1):
        (tmp_path / "plan" / f"m{number}.py").write_text("\n" * (LINES_AT_MOST + (number == 3)), encoding="utf-8")
    assert too_large(tmp_path) == [f"plan has {MODULES_AT_MOST + 1} modules", f"plan/m3.py has {LINES_AT_MOST + 1} lines"]
