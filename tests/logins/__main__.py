# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the login tests with every Django that a Python on this machine can run, and print Django version by flow.

Each version gets an environment of its own in .venv/logins/<version>; `python -m tests.logins --only 4.2 5.2` chooses some.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
HOME = PROJECT / ".venv" / "logins"
# Django: the Pythons it runs on (docs.djangoproject.com, "What Python version can I use with Django?")
PYTHONS = {"4.2": ("3.11", "3.12"), "5.2": ("3.11", "3.12", "3.13"), "6.0": ("3.12", "3.13", "3.14"), "6.1": ("3.12", "3.13", "3.14")}
PACKAGES = ("psycopg2-binary>=2.9.10", "redis>=6", "argon2-cffi>=23", "bcrypt>=4")


def python_for(versions: tuple[str, ...]) -> str | None:
    """Return an interpreter of one of the versions, from PATH."""
    for version in versions:
        candidates = [sys.executable, shutil.which(f"python{version}")]
        for candidate in filter(None, candidates):
            said = subprocess.run([candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=False)
            if said.stdout.strip() == version:
                return candidate
    return None


def prepare(django: str) -> Path | None:
    """Return the interpreter of an environment with this Django, made when it is missing; None without a fitting Python."""
    interpreter = HOME / django / "bin" / "python"
    if not (HOME / django / "ready").exists():
        base = python_for(PYTHONS[django])
        if base is None:
            return None
        shutil.rmtree(HOME / django, ignore_errors=True)
        subprocess.run([base, "-m", "venv", str(HOME / django)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"Django~={django}.0", *PACKAGES], check=True)
        (HOME / django / "ready").touch()
    return interpreter


def flows(interpreter: Path, report: Path) -> dict[str, tuple[int, int]]:
    """Run the tests and return for each flow how many cases passed, of how many."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/logins", f"--junitxml={report}"]
    subprocess.run(command, cwd=PROJECT, env={**os.environ, "LOGINS_PYTHON": str(interpreter)}, check=False)
    passed, seen = collections.Counter[str](), collections.Counter[str]()
    for case in xml.parse(report).iter("testcase"):
        flow = re.sub(r"\[.*", "", case.get("name", "")).removeprefix("test_").replace("_", " ")
        seen[flow] += 1
        passed[flow] += not any(child.tag in ("failure", "error", "skipped") for child in case)
    return {flow: (passed[flow], seen[flow]) for flow in seen}


def main() -> int:
    """Print the matrix; fail when any flow failed anywhere or no version could run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(PYTHONS), choices=list(PYTHONS))
    results: dict[str, dict[str, tuple[int, int]]] = {}
    missing = []
    for django in parser.parse_args().only:
        interpreter = prepare(django)
        if interpreter is None:
            missing.append(f"Django {django} did not run: no Python {' or '.join(PYTHONS[django])} here")
            continue
        said = subprocess.run([str(interpreter), "-m", "django", "--version"], capture_output=True, text=True, check=True)
        results[said.stdout.strip()] = flows(interpreter, HOME / django / "report.xml")
    names = list(dict.fromkeys(flow for result in results.values() for flow in result))
    print("\n| flow | " + " | ".join(f"Django {version}" for version in results) + " |")
    print("|---|" + "---|" * len(results))
    for flow in names:
        cells = [result.get(flow, (0, 0)) for result in results.values()]
        print(f"| {flow} | " + " | ".join(f"{passed} of {seen}" for passed, seen in cells) + " |")
    print("\n".join(["", *missing]))
    good = results and all(passed == seen and seen for result in results.values() for passed, seen in result.values())
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
