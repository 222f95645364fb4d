"""Read a recipe file as plain data: JSON, or YAML without tags, duplicate keys, or aliases that grow without bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from compcomp.errors import InputError
from compcomp.language.strict_yaml import Loader

LARGEST_FILE = 2**20
LARGEST_TREE = 20_000
"""The most nodes that a recipe may have once its aliases are expanded."""
DEEPEST = 40


def _twice(key: str) -> InputError:
    return InputError(f"the key {key[:40]!r} is there twice", "each key once", "audit")


def load(path: Path) -> Any:
    """Return the content of a recipe file as plain data.

    Raises:
        InputError: the file is missing, too large, malformed, or would need more than plain data.
    """
    where = f"audit {path}"
    if not path.is_file():
        raise InputError("no such file", "the path of a YAML or JSON file", where)
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path.stat().st_size} bytes", f"at most {LARGEST_FILE}", where)
    try:
        return parsed(path.read_text(encoding="utf-8"), is_json=path.suffix.lower() == ".json")
    except InputError as error:
        raise InputError(error.given, error.allowed, where) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
        problem = " ".join(str(error).split())[:120]
        raise InputError(f"malformed {kind} ({problem})", f"valid {kind} of plain data", where) from None


def parsed(text: str, *, is_json: bool) -> Any:
    """Return the data in a text."""
    if is_json:
        data = json.loads(text, object_pairs_hook=_object)
        _check_size(data)
        return data
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _twice(key)
        found[key] = value
    return found


def _check_size(data: Any, depth: int = 0) -> int:
    """Return the number of values, and refuse a tree that is too large or too deep."""
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    if depth > DEEPEST:
        raise _too_large()
    count = 1 + sum(_check_size(value, depth + 1) for value in inner)
    if count > LARGEST_TREE:
        raise _too_large()
    return count


def _check_nodes(node: yaml.Node) -> None:
    """Refuse a tree that is too large once its aliases are expanded, and one that contains itself."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, above: tuple[int, ...]) -> int:
        if id(node) in above or len(above) > DEEPEST:
            raise _too_large()
        if id(node) not in sizes:
            inner: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                inner = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                inner = list(node.value)
            sizes[id(node)] = 1 + sum(size(part, (*above, id(node))) for part in inner)
        if sizes[id(node)] > LARGEST_TREE:
            raise _too_large()
        return sizes[id(node)]

    size(node, ())


def _too_large() -> InputError:
    return InputError(
        "a recipe that is too large, too deep, or contains itself",
        f"at most {LARGEST_TREE} values, {DEEPEST} levels, and no aliases that multiply",
        "audit",
    )
