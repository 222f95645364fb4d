"""Remove physically the neurons, heads and blocks without effect: only zeros read their outputs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.layers.whole import Group
from compcomp.models.changes import Changes
from compcomp.models.configs import PLACES, Described, described
from compcomp.models.devices import move
from compcomp.models.identities import identities
from compcomp.models.layers import Layer, evaluating, layers_by_name, unwrap
from compcomp.models.structure import attentions, block_lists, feed_forwards, head_size

TOLERANCE = 1e-3
"""The largest change of outputs, relative to the largest output: sums over fewer zeros are rounded differently."""

ROUNDED = {torch.float64: 1e-6, torch.float32: 1.0, torch.float16: 10.0, torch.bfloat16: 40.0}
"""The tolerance for outputs of another dtype, relative to that for float32."""

ALLOWED = "blocks, heads and neurons that can be removed without a trace"

COUNTS = ("num_heads", "n_heads", "num_attention_heads", "num_key_value_heads", "num_kv_heads")
"""Names that attentions give to the number of their heads, if no config holds it."""

FINDERS: dict[str, Callable[[nn.Module, Mapping[str, Layer]], list[Group]]] = {
    "neurons": feed_forwards,
    "heads": attentions,
}

Change = Callable[[Changes], None]


def cut(model: nn.Module, batch: Any) -> nn.Module:
    """Make the layers of a model smaller by removing everything without effect, and return the same module.

    Neurons and heads are removed if their columns in the layer that reads them are all zero, as ``PruneNeurons`` and
    ``PruneHeads`` leave them. All heads that share keys and values go together. Blocks are removed if they add nothing
    to any inputs, as ``RemoveBlocks`` leaves them. One neuron and one head of each network and attention stay, and one
    block.

    A transformers model can still be saved and loaded with ``save_pretrained`` and ``from_pretrained``: its ``config``
    is brought up to date, and a change that the config cannot express is not made. So its networks keep the same number
    of neurons, that of the largest one. Heads stay if their size is the model's width divided by their number.

    Whatever cannot be removed stays, with a warning that gives the reason.

    Args:
        model: The model, changed in place.
        batch: A batch of calibration, on which the model's outputs have to stay the same up to rounding.

    Raises:
        InputError: Something without effect cannot be removed, and nothing else was. The model is then as it was.
    """
    inner = unwrap(model)
    batch = move(batch, next(inner.parameters()).device)
    with torch.inference_mode(False), torch.no_grad(), evaluating(inner):  # new parameters have to be ordinary tensors
        cutter = _Cutter(inner, batch)
        try:
            cutter.blocks()
            cutter.units("neurons")
            cutter.units("heads")
        except BaseException:
            cutter.done.undo()
            raise
    if cutter.stayed and not cutter.done:
        raise InputError(cutter.stayed[0], ALLOWED, "cut")
    for reason in cutter.stayed:
        warnings.warn(f"cut: left as they are: {reason}", stacklevel=2)
    return model


class _Cutter:
    """A model, its outputs for a batch, the changes made to it, and the parts that stayed, with reasons."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self.model, self.batch = model, batch
        self.before = self._outputs()
        self.configs = described(model)
        self.done, self.stayed = Changes(), list[str]()

    def blocks(self) -> None:
        """Remove from every list the blocks that add nothing: together, or one by one if that fails."""
        for name, modules in block_lists(self.model, layers_by_name(self.model)):
            idle = [place for place, nothing in enumerate(identities(list(modules), self._run)) if nothing]
            if len(idle) == len(modules):
                idle = idle[1:]
            if idle and self._attempt(self._without(name, modules, idle)) is not None:
                for place in reversed(idle):
                    if (reason := self._attempt(self._without(name, modules, [place]))) is not None:
                        self.stayed.append(f"block {name}.{place}: {reason}")

    def units(self, kind: str) -> None:
        """Remove the units that only zeros read: of all similar networks at once, and then of each kind."""
        together: dict[tuple[int, int], list[Group]] = {}
        for group in FINDERS[kind](self.model, layers_by_name(self.model)):
            together.setdefault((id(self._config_of(group.name)), group.units), []).append(group)
        for groups in together.values():
            names = [group.name for group in groups]
            parts: dict[str, list[str]] = {}
            for name in names:  # a config has one size for encoders and one for decoders; without one each is free
                free = self._config_of(name) is None
                parts.setdefault(name if free else re.sub(r"\.\d+(?=\.|$)", ".*", name), []).append(name)
            whole = self._attempt(self._fewer(kind, names))
            for part in parts.values():
                reason = whole if len(part) == len(names) else self._attempt(self._fewer(kind, part))
                if reason is not None:
                    more = f" and {len(part) - 1} more" if len(part) > 1 else ""
                    self.stayed.append(f"{kind} of {part[0]}{more}: {reason}")

    def _without(self, name: str, modules: nn.ModuleList, idle: Sequence[int]) -> Change:
        """Return the change that takes these blocks out of a list."""
        alive = [place not in idle for place in range(len(modules))]

        def change(changes: Changes) -> None:
            places = iter(range(sum(alive)))
            for before, (block, lives) in enumerate(zip(modules, alive, strict=True)):
                after = next(places) if lives else before
                for module in block.modules():
                    for key, value in vars(module).items():
                        if type(value) is int and value == before != after and any(part in key for part in PLACES):
                            changes.put(module, key, after)
            changes.keep(modules, alive)
            if (config := self._config_of(name)) is not None:
                config.without_blocks(name.removeprefix(config.name).removeprefix("."), alive, changes)

        return change

    def _fewer(self, kind: str, names: Sequence[str]) -> Change:
        """Return the change that removes the idle units of these networks or attentions.

        Under one config the same number is removed of all.
        """

        def change(changes: Changes) -> None:
            layers = layers_by_name(self.model)
            groups = [group for group in FINDERS[kind](self.model, layers) if group.name in names]
            alive = [_alive(group, layers) for group in groups]
            config = self._config_of(names[0])
            if config is not None:
                _level(alive)
            if all(bool(which.all()) for which in alive):
                return
            for group, which in zip(groups, alive, strict=True):
                _check_own(self.model, group, layers)
                _take(group, which, layers, changes)
                if config is None and kind == "heads":
                    parent, left = self.model.get_submodule(group.name), int(which.sum())
                    for key, count in list(vars(parent).items()):
                        if key in COUNTS and type(count) is int and count % group.units == 0:
                            changes.put(parent, key, count // group.units * left)
            if config is not None:
                group, left = groups[0], int(alive[0].sum())
                sizes, more = {group.units: left}, dict[str, int]()
                if kind == "heads":
                    side = head_size(self.model.get_submodule(group.name)) or 1
                    shared = group.reads.size // side
                    sizes, more = {group.units * shared: left * shared, group.units: left}, {"head_dim": side}
                config.with_units(kind, sizes, more, changes)

        return change

    def _attempt(self, change: Change) -> str | None:
        """Make a change. If it alters outputs or the model could not be loaded, undo it and return the reason."""
        changes = Changes()
        try:
            change(changes)
            if changes:
                self._compare()
        except InputError as error:
            changes.undo()
            return error.given
        except Exception as error:  # the model's own code does not support the sizes
            changes.undo()
            return f"without them the model raises {type(error).__name__} ({str(error).splitlines()[0][:80]})"
        except BaseException:
            changes.undo()
            raise
        self.done.add(changes)
        return None

    def _compare(self) -> None:
        """Raise InputError if the model's outputs are not the earlier ones."""
        after = self._outputs()
        if [x.shape for x in after] != [x.shape for x in self.before]:
            raise InputError("outputs change their shape", ALLOWED, "cut")
        for one, other in zip(self.before, after, strict=True):
            if one.numel():
                size, apart = float(one.abs().max()), float((other - one).abs().max())
                if not apart <= TOLERANCE * ROUNDED.get(one.dtype, 1.0) * size:
                    given = f"without them outputs change by {apart:.3g}, the largest being {size:.3g}"
                    raise InputError(given, ALLOWED, "cut")

    def _outputs(self) -> list[Tensor]:
        found = list(_floats(self._run()))
        if not found:
            raise InputError("a model that puts out no tensor of floats", "a tensor, or logits", "cut")
        return found

    def _run(self) -> Any:
        """Return the model's output, computed without caches: these would grow if a block runs twice."""
        named = isinstance(self.batch, Mapping)
        kwargs = dict(self.batch) if named else {}
        args = () if named else self.batch if isinstance(self.batch, list | tuple) else (self.batch,)
        caches = Changes()
        try:
            for module in self.model.modules():
                if getattr(config := getattr(module, "config", None), "use_cache", None) is True:
                    caches.put(config, "use_cache", False)
            return self.model(*args, **kwargs)
        finally:
            caches.undo()

    def _config_of(self, name: str) -> Described | None:
        return next((one for one in self.configs if not one.name or name.startswith(f"{one.name}.")), None)


def _floats(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of floats in a model's output."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _floats(item)
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _floats(item)


def _alive(group: Group, layers: Mapping[str, Layer]) -> Tensor:
    """Return for each unit if anything but zeros reads it; the first unit if nothing does."""
    reads = layers[group.reads.layer].weight
    alive = reads.reshape(len(reads), group.units, group.reads.size).ne(0).any(dim=2).any(dim=0)
    if not bool(alive.any()):
        alive[0] = True
    return alive


def _level(alive: Sequence[Tensor]) -> None:
    """Mark the first idle units as alive, so that all networks have as many as the one with most."""
    most = max(int(which.sum()) for which in alive)
    for which in alive:
        idle = (~which).nonzero()[:, 0]
        which[idle[: most - int(which.sum())]] = True


def _check_own(model: nn.Module, group: Group, layers: Mapping[str, Layer]) -> None:
    """Raise InputError if a layer of the group shares its weight, or computes it."""
    users: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        key = parameter.untyped_storage().data_ptr()
        users[key] = users.get(key, 0) + 1
    for name in {part.layer for part in group.parts}:
        for module in layers[name].modules:
            weight: Any = module._parameters.get("weight")
            if weight is None or len(layers[name].modules) > 1 or users[weight.untyped_storage().data_ptr()] > 1:
                raise InputError(f"{name} has a weight that is shared or computed", ALLOWED, "cut")


def _take(group: Group, alive: Tensor, layers: Mapping[str, Layer], changes: Changes) -> None:
    """Remove the units that are not alive from all layers of the group."""
    kept: dict[tuple[str, str], Tensor] = {}
    for part in group.parts:
        key, layer = (part.layer, part.side), layers[part.layer]
        if key not in kept:
            kept[key] = torch.ones(layer.shape[0 if part.side == "out" else 1], dtype=torch.bool, device=alive.device)
        chosen = alive.repeat_interleave(part.size)
        kept[key][part.start : part.start + len(chosen)] = chosen
    for (name, side), which in kept.items():
        changes.shrink(layers[name], side, which)
