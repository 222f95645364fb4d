"""Bring the config of a transformers model up to date with its sizes, by building models from it without memory.

A model can be loaded if its config, written and read again, builds a model of the same parameters. The modules of the
built model also have to hold the same numbers (``num_heads``, ``sliding_window``, ``layer_idx``) as those of the model.
No architecture is known here by name: trials on the meta device find which of a config's numbers have to change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations, islice
from typing import Any

import torch
from torch import nn

from compcomp.errors import InputError
from compcomp.models.changes import Changes
from compcomp.models.layers import is_from_transformers

NAME_PARTS = {
    "neurons": ("intermediate", "ffn", "inner", "d_ff", "hidden_dim"),
    "heads": ("head", "kv"),
    "blocks": ("layer",),
}
"""Parts of the names of numbers that say how many neurons, heads or blocks there are."""

PER_BLOCK = ("layer", "block", "types", "attention", "window", "pattern", "rope", "expert")
"""Parts of the names of lists that have an entry for each block, or name some blocks."""

PLACES = ("idx", "index", "_id")
"""Parts of the names of attributes that say which block a module is in."""

TRIES = 12
"""The largest number of configs that are tried."""

Setting = tuple[Any, str, Any]
"""A config, the name of an attribute, and its value."""


class Described:
    """A transformers model, and the model that its config builds.

    ``name``: the name of the model within the whole one, "" for the whole one itself.
    """

    def __init__(self, name: str, model: nn.Module, built: nn.Module) -> None:
        self.name, self.model, self._built = name, model, built

    def without_blocks(self, modules: str, alive: Sequence[bool], changes: Changes) -> None:
        """Bring the config up to date after blocks of the list of this name have been removed."""
        count, left = len(alive), sum(alive)
        settings, lists = list[Setting](), list[Setting]()
        for config in self._configs():
            for key, value in vars(config).items():
                if _is_number(value) and value == count and _says(key, "blocks"):
                    settings.append((config, key, left))
                elif isinstance(value, list | tuple) and (shorter := _filtered(key, value, alive)) is not None:
                    lists.append((config, key, shorter))
        own = self._built.get_submodule(modules)
        assert isinstance(own, nn.ModuleList)
        changes.keep(own, list(alive))
        found = self._fitting([[*chosen, *lists] for chosen in _subsets(settings)], changes)
        _check_places(own, found.get_submodule(modules), alive)
        self._adopt(found, changes)

    def with_units(self, kind: str, sizes: Mapping[int, int], more: Mapping[str, int], changes: Changes) -> None:
        """Bring the config up to date after neurons or heads have been removed.

        Args:
            kind: "neurons" or "heads".
            sizes: For each earlier number, the new one.
            more: Further settings that may be needed, such as ``head_dim``.
            changes: Receives the changes.
        """
        settings, further = list[Setting](), list[Setting]()
        for config in self._configs():
            for key, value in vars(config).items():
                if not _says(key, kind) or key in more:
                    continue
                if value is None and kind == "neurons":
                    settings += [(config, key, after) for after in sizes.values()]
                elif _is_number(value) and value in sizes:
                    settings.append((config, key, sizes[value]))
            further += [(config, key, value) for key, value in more.items() if getattr(config, key, None) != value]
        tries = [[*chosen, *extra] for extra in ([], further) for chosen in _subsets(settings) if extra or not further]
        if further:
            tries += _subsets(settings)
        self._adopt(self._fitting(tries, changes), changes)

    def _configs(self) -> list[Any]:
        root: Any = self.model.config
        return [root, *(value for value in vars(root).values() if _is_config(value))]

    def _fitting(self, tries: Sequence[Sequence[Setting]], changes: Changes) -> nn.Module:
        """Return the model built from the first config that fits the model as it is now, and keep that config."""
        wanted = _shapes(self.model)
        for settings in tries[:TRIES]:
            trial = Changes()
            try:
                for config, key, value in settings:
                    trial.put(config, key, value)
                built = _build(self.model)
            except AttributeError:  # the config computes this setting from others
                built = None
            if built is not None and _shapes(built) == wanted:
                changes.add(trial)
                return built
            trial.undo()
        config = type(self.model.config).__name__
        raise InputError(f"sizes that {config} cannot say", "sizes of which a config builds a model", "cut")

    def _adopt(self, found: nn.Module, changes: Changes) -> None:
        """Give the model's modules and their configs the new config's numbers, if they had the old config's numbers."""
        seen = set[int]()
        for name, module in self.model.named_modules():
            old, new = (_submodule(built, name) for built in (self._built, found))
            if old is None or new is None:
                continue
            pairs = [(module, old, new)]
            if _is_config(config := getattr(module, "config", None)) and id(config) not in seen:
                seen.add(id(config))
                pairs.append((config, old.config, new.config))
            for mine, before, after in pairs:
                for key, value in _numbers(after).items():
                    known = _numbers(before).get(key, value)
                    if known != value and vars(mine).get(key) == known:
                        changes.put(mine, key, value)
        changes.put(self, "_built", found)


def described(model: nn.Module) -> list[Described]:
    """Return the outermost transformers models in this one whose configs build the same parameters."""
    found = list[Described]()
    outer = list[str]()
    for name, module in model.named_modules():
        if any(not above or name.startswith(f"{above}.") for above in outer):
            continue
        if is_from_transformers(module, "PreTrainedModel"):
            outer.append(name)
            built = _build(module)
            if built is not None and _shapes(built) == _shapes(module):
                found.append(Described(name, module, built))
    return found


def _build(model: nn.Module) -> nn.Module | None:
    """Build a model on the meta device from the model's config, written and read again; None if that fails."""
    config: Any = model.config
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            read = type(config).from_dict(json.loads(config.to_json_string(use_diff=True)))
            built: nn.Module = type(model)(read)
    except Exception:  # any error of a config that makes no sense
        return None
    return built


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _check_places(old: nn.Module, new: nn.Module, alive: Sequence[bool]) -> None:
    """Raise InputError if loading would give blocks of another kind (a sliding window, no rotation)."""
    for name, module in old.named_modules():
        other = new.get_submodule(name)
        for key, value in _numbers(module).items():
            after = _numbers(other).get(key)
            if isinstance(value, list | tuple) and _filtered(key, value, alive) == after:
                continue
            if value != after and not any(part in key for part in PLACES):
                given = f"blocks of which the next ones would have {key} = {after} where they have {value}"
                raise InputError(given, "blocks that the config can tell apart", "cut")


def _filtered(key: str, value: Sequence[Any], alive: Sequence[bool]) -> list[Any] | None:
    """Return a list without the entries of the removed blocks, or None if it is no list about blocks.

    It has an entry for each block, or names blocks by their positions.
    """
    count, places = len(alive), [sum(alive[:place]) for place in range(len(alive))]
    if not any(part in key for part in PER_BLOCK):
        return None
    if list(value) == list(range(count)):
        return list(range(sum(alive)))
    if len(value) == count:
        return [one for one, lives in zip(value, alive, strict=True) if lives]
    if "layer" in key and value and all(_is_number(one) and 0 <= one < count for one in value):
        return [places[one] for one in value if alive[one]]
    return None


def _subsets(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Return all settings, then the smaller choices of them, the smallest first."""
    sizes = (len(settings), *range(1, len(settings)))
    return [list(chosen) for size in sizes for chosen in islice(combinations(settings, size), TRIES)]


def _numbers(owner: Any) -> dict[str, Any]:
    """Return the attributes that are numbers, texts or lists of these."""
    return {key: value for key, value in vars(owner).items() if not key.startswith("_") and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_config(value: Any) -> bool:
    return any(c.__name__ in ("PreTrainedConfig", "PretrainedConfig") for c in type(value).__mro__)


def _says(key: str, kind: str) -> bool:
    return any(part in key for part in NAME_PARTS[kind])


def _submodule(model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
