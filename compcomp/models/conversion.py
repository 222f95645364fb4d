"""Read and write tensors under the names of a transformers checkpoint, by the rules that transformers has for them.

Files may hold other tensors than the model: fused experts one by one, projections fused or apart, names of earlier
versions. transformers converts them when it loads a model and when it saves one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(eq=False)
class Part:
    """Tensors of files that make up tensors of the model.

    Attributes:
        targets: The names in the model.
        sources: The names in the files, each with the pattern that it matches.
        rule: The rule that converts them. None for one tensor that has another name at most.
    """

    targets: tuple[str, ...]
    sources: list[tuple[str, str]] = field(default_factory=list)
    rule: Any = None


class Conversion:
    """The way between the tensors of some files and those of a model.

    Attributes:
        parts: For the name of each tensor of the model that files hold, what it is made from.
        rules: The rules that apply to the files, for the way back.
    """

    def __init__(self, model: nn.Module, stored: Iterable[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        self._model: Any = model
        rules: list[Any] = get_model_conversion_mapping(self._model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        own: dict[str, Any] = dict(model.state_dict(keep_vars=True))
        base = self._model.base_model_prefix
        self.parts: dict[str, Part] = {}
        for source in sorted(stored, key=dot_natural_key):
            name, pattern = rename_source_key(source, renamings, converters, base, own)
            if name not in own and source in own:
                name, pattern = rename_source_key(source, [], [], base, own)
            if name not in own:
                continue
            rule = None if pattern is None else by_pattern[pattern]
            ends = [name] if rule is None else [name.replace(rule.target_patterns[0], p) for p in rule.target_patterns]
            part = self.parts.get(name) or Part(tuple(end for end in ends if end in own), rule=deepcopy(rule))
            if rule is None:
                part.sources.clear()
            part.sources.append((source, pattern or source))
            self.parts |= dict.fromkeys(part.targets, part)
        self.rules = [rule for rule in rules if rule.was_used()]

    def read(self, part: Part, get: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Return the model's tensors of a part by name. ``get`` returns a tensor of the files."""
        if part.rule is None:
            return {part.targets[0]: get(part.sources[-1][0])}
        rule, first = deepcopy(part.rule), part.targets[0]
        for source, pattern in part.sources:
            rule.add_tensor(first, source, pattern, get(source))
        found: dict[str, Any] = rule.convert(first, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}

    def written(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that files hold for some of the model's, by their names there."""
        from transformers.core_model_loading import revert_weight_conversion

        self._model._weight_conversions = self.rules
        try:
            found: dict[str, Tensor] = revert_weight_conversion(self._model, dict(tensors))
        finally:
            del self._model._weight_conversions
        return found
