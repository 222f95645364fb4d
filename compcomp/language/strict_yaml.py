"""Load YAML as plain data, with each key once."""

from __future__ import annotations

from typing import Any

import yaml

from compcomp.errors import InputError


class Loader(yaml.SafeLoader):
    """Load YAML as ``yaml.safe_load`` does, and refuse a key that a mapping has twice; PyYAML ignores the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise InputError(f"the key {key.value[:40]!r} is there twice (line {line})", "each key once", "recipe")
            seen.add((key.tag, key.value))
        return node
