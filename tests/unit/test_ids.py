# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe in the documentation is the recipe of the migration."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible.module_utils.migration.plan import ids
from ansible.parsing.vault import VaultLib, VaultSecret

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENT = (PROJECT / "docs" / "ids.md").read_text(encoding="utf-8")
NAMESPACE = re.search(r"Namespace: `(.+?)`", DOCUMENT).group(1)
ROWS = re.findall(r"^\| `(\S+)` \| `(.+?)` \| `([0-9a-f-]{36})` \|$", DOCUMENT, re.MULTILINE)
VECTORS = [(entity, json.loads(f"[{key}]"), made) for entity, key, made in ROWS]


def code(language: str) -> str:
    return re.search(rf"```{language}\n(.+?)```", DOCUMENT, re.DOTALL).group(1)


def test_the_document_has_vectors() -> None:
    assert len(VECTORS) >= 9


@pytest.mark.parametrize(("entity", "key", "made"), VECTORS)
def test_the_migration_makes_the_documents_ids(entity: str, key: list[int | str], made: str) -> None:
    found = ids.compute(ids.prefix(NAMESPACE, entity), key)
    assert str(found) == made
    assert found.version == 8
    assert found.variant == "specified in RFC 4122"


@pytest.mark.parametrize(("entity", "key", "made"), VECTORS)
def test_the_documents_python_makes_them_too(entity: str, key: list[int | str], made: str) -> None:
    names: dict[str, object] = {}
    exec(code("python"), names)
    assert str(names["make_id"](NAMESPACE, entity, *key)) == made


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_documents_javascript_makes_them_too() -> None:
    calls = [[NAMESPACE, entity, *[f"{value}n" if isinstance(value, int) else json.dumps(value) for value in key]] for entity, key, _ in VECTORS]
    lines = [f"console.log(makeId({json.dumps(one)}, {json.dumps(two)}, {', '.join(rest)}));" for one, two, *rest in calls]
    done = subprocess.run(["node", "-e", code("javascript") + "\n".join(lines)], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() == [made for _, _, made in VECTORS]


def test_a_namespace_that_is_known_or_can_be_guessed_is_refused() -> None:
    """The examples' are readable with the password that their file names."""
    vault = VaultLib([("default", VaultSecret(b"example"))])
    shipped = [NAMESPACE]
    for file in sorted(PROJECT.glob("inventories/*/group_vars/all/vault.yml")):
        found = re.search(r"^migration_namespace: !vault \|\n((?: +\S+\n)+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        shipped.append(vault.decrypt("\n".join(found[1].split()).encode()).decode())
    assert len(shipped) > 3
    for namespace in shipped:
        assert "example" in ids.weakness(namespace)
    for namespace in ("a" * 16, secrets.token_hex(15), "a" * 64, "ab" * 32, "0123456789abcdef" * 4):
        assert ids.weakness(namespace)
    assert not any(ids.weakness(make(size)) for make, size in ((secrets.token_hex, 32), (secrets.token_hex, 16), (secrets.token_urlsafe, 24)))
