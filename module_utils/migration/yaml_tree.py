# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read YAML so that every value knows its file and line. Controller only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .errors import MigrationError
from .mistakes import Consequence, Mistakes

try:
    import yaml
except ImportError:  # a remote runner never reads mappings
    yaml = None  # type: ignore[assignment]  # the name stays bound; Node is only made on a controller


@dataclass(frozen=True)
class Node:
    """A YAML value and its place; `value` is a scalar, a list of Nodes or a dict of key to Node."""

    value: Any
    place: str

    def fail(self, text: str) -> MigrationError:
        """Return an error at this node's place."""
        return MigrationError(f"{self.place}: {text}")

    def mapping(self, what: str) -> dict[str, Node]:
        """Return the value as a mapping or raise."""
        if not isinstance(self.value, dict):
            raise self.fail(f"{what} must be a mapping (key: value)")
        return self.value

    def text_or_texts(self, what: str) -> str | dict[str, str]:
        """Return a text, or a mapping of texts that is not empty."""
        if not isinstance(self.value, dict):
            return self.text(what)
        if not self.value:
            raise self.fail(f"{what} must not be empty")
        return {name: node.text(f"{what}.{name}") for name, node in self.mapping(what).items()}

    def text(self, what: str) -> str:
        """Return the value as a non-empty string or raise."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.fail(f"{what} must be a text")
        return self.value

    def texts(self, what: str) -> tuple[str, ...]:
        """Return the value as one string or a list of them."""
        if isinstance(self.value, list):
            if not self.value:
                raise self.fail(f"{what} must not be empty")
            return tuple(item.text(what) for item in self.value)
        return (self.text(what),)

    def only(self, what: str, known: tuple[str, ...], required: tuple[str, ...] = (), mistakes: Mistakes | None = None) -> dict[str, Node]:
        """Return a mapping that has no unknown and every required key; with `mistakes` they are noted there instead of raised."""
        own = mistakes if mistakes is not None else Mistakes()
        found = self.mapping(what)
        for key, node in found.items():
            if key not in known:
                own.note(node.fail(f"{what}: unknown key {key!r}{suggest(key, known)}"))
        for key in required:
            if key not in found:
                own.note(self.fail(f"{what}: {key!r} is missing"))
        if mistakes is None:
            own.settle()
        return found

    def part(self, found: dict[str, Node], key: str) -> Node:
        """Return what a key of only() holds; a key that is missing was noted there."""
        if key not in found:
            raise Consequence(f"{self.place}: {key!r} is missing")
        return found[key]


def suggest(name: str, known: tuple[str, ...]) -> str:
    """Return the end of a message that says what would be right."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(sorted(known))})"


def read(path: Path, shown: str) -> Node:
    """Return a file's content; `shown` is how messages name it."""
    if yaml is None:
        raise MigrationError("PyYAML is missing on the controller; install ansible-core with its dependencies")
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as exc:
        raise MigrationError(f"{shown}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise MigrationError(f"{shown}: is not UTF-8 text (byte {exc.start})") from exc
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise MigrationError(f"{shown}{line}: is not YAML: {getattr(exc, 'problem', None) or 'cannot be parsed'}") from exc
    if root is None:
        raise MigrationError(f"{shown}: is empty")
    try:
        return _convert(root, shown)
    except RecursionError as exc:
        raise MigrationError(f"{shown}: a YAML alias contains itself") from exc


def _convert(node: Any, shown: str) -> Node:
    place = f"{shown}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        return Node(dict(_pairs(node, shown)), place)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, shown) for item in node.value], place)
    return Node(_scalar(node, place), place)


def _pairs(node: Any, shown: str) -> Iterator[tuple[str, Node]]:
    seen: set[str] = set()
    for key_node, value_node in node.value:
        place = f"{shown}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise MigrationError(f"{place}: a key must be a text")
        key = str(key_node.value)
        if key in seen:
            raise MigrationError(f"{place}: {key!r} stands twice")
        seen.add(key)
        value = _convert(value_node, shown)
        yield key, Node(value.value, place)


def _scalar(node: Any, place: str) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as exc:
        raise MigrationError(f"{place}: {node.value!r} is not a value that YAML knows") from exc
    finally:
        loader.dispose()
