"""Remove physically what does nothing: neurons, heads and blocks whose outputs are read by zeros alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.language.whole import Group
from compcomp.models.devices import move
from compcomp.models.layers import Layer, evaluating, layers_by_name, unwrap
from compcomp.models.structure import attentions, block_list, blocks, feed_forwards
from compcomp.models.whole import Whole

TOLERANCE = 1e-3
"""What outputs may differ by, relative to the largest: sums over fewer zeros are rounded otherwise. In float64 1e-9."""

Undo = Callable[[], None]


def cut(model: nn.Module, batch: Any) -> nn.Module:
    """Make the layers of a model smaller by what has no effect, and return the same module.

    Neurons and heads (all that share keys and values together) go whose columns in the layer that reads them are all
    zero, as ``PruneNeurons`` and ``PruneHeads`` leave them; blocks go that write nothing but zeros, as ``RemoveBlocks``
    leaves them. One neuron and one head stay of each network and attention, and one block. ``config`` of a transformers
    model is brought up to date where all its blocks are alike, so that it can be saved and loaded as usual.

    ``batch``: one of calibration, to see that the model's outputs stay what they were up to rounding. Raises
    InputError, with the model as it was, where they do not.
    """
    inner = unwrap(model)
    batch = move(batch, next(inner.parameters()).device)
    undo: list[Undo] = []
    with evaluating(inner), torch.no_grad():
        before = _outputs(inner, batch)
        try:
            _cut_blocks(inner, batch, undo)
            for group in feed_forwards(inner, layers_by_name(inner)):
                _cut_units(inner, group, undo)
            for group in attentions(inner, layers_by_name(inner)):
                if _apart(group):
                    _cut_units(inner, group, undo)
            _update_config(inner, undo)
            after = _outputs(inner, batch)
            size = float(before.abs().max())
            apart = float((after - before).abs().max()) if after.shape == before.shape else float("inf")
            tolerance = 1e-9 if before.dtype == torch.float64 else TOLERANCE
            if not apart <= tolerance * size:
                given = f"a model whose outputs change by {apart:.3g}, the largest being {size:.3g}"
                raise InputError(given, "blocks, heads and neurons that can be removed without a trace", "cut")
        except BaseException:
            for step in reversed(undo):
                step()
            raise
    return model


def _outputs(model: nn.Module, batch: Any) -> Tensor:
    logits = Whole(model, layers_by_name(model), {}, []).forward(batch).logits
    if not isinstance(logits, Tensor):
        raise InputError(f"a model that puts out a {type(logits).__name__}", "a tensor, or logits", "cut")
    return logits


# ------------------------------------------------------------------------------------------------- units


def _apart(group: Group) -> bool:
    """Whether queries, keys and values are layers of their own: packed ones are split by sizes kept elsewhere."""
    return len({part.layer for part in group.parts}) == 4


def _cut_units(model: nn.Module, group: Group, undo: list[Undo]) -> None:
    """Remove the units of a group that are read by zeros alone."""
    layers = layers_by_name(model)
    if any(len(layers[part.layer].modules) > 1 for part in group.parts):
        return
    reads = layers[group.reads.layer].weight
    alive = reads.reshape(len(reads), group.units, group.reads.size).ne(0).any(dim=2).any(dim=0)
    if not bool(alive.any()):
        alive[0] = True
    if bool(alive.all()):
        return
    kept: dict[tuple[str, str], Tensor] = {}
    for part in group.parts:
        key = part.layer, part.side
        layer = layers[part.layer]
        if key not in kept:
            kept[key] = torch.ones(layer.shape[0 if part.side == "out" else 1], dtype=torch.bool, device=alive.device)
        chosen = alive.repeat_interleave(part.size)
        kept[key][part.start : part.start + len(chosen)] = chosen
    for (name, side), which in kept.items():
        _shrink(layers[name], side, which, undo)
    parent = model.get_submodule(group.name)
    before, after = group.units, int(alive.sum())
    for name in ("num_heads", "num_key_value_heads", "num_attention_heads"):
        count = getattr(parent, name, None)
        if isinstance(count, int) and _apart(group) and count % before == 0:
            _put(parent, name, count // before * after, undo)


def _shrink(layer: Layer, side: str, kept: Tensor, undo: list[Undo]) -> None:
    """Keep these rows (out) or columns (in) of a layer."""
    module: Any = layer.modules[0]
    which = kept.to(module.weight.device)
    axis = (0 if side == "out" else 1) if not layer.transposed else (1 if side == "out" else 0)
    whole = module.weight
    part = whole.detach()[which] if axis == 0 else whole.detach()[:, which]
    _put(module, "weight", nn.Parameter(part.contiguous().clone(), requires_grad=whole.requires_grad), undo)
    if side == "out" and getattr(module, "bias", None) is not None:
        bias = module.bias
        _put(module, "bias", nn.Parameter(bias.detach()[which].clone(), requires_grad=bias.requires_grad), undo)
    name = {"out": "nf", "in": "nx"}[side] if layer.transposed else {"out": "out_features", "in": "in_features"}[side]
    if hasattr(module, name):
        _put(module, name, int(which.sum()), undo)


def _put(owner: Any, name: str, value: Any, undo: list[Undo]) -> None:
    before = getattr(owner, name)
    setattr(owner, name, value)
    undo.append(lambda: setattr(owner, name, before))


# ------------------------------------------------------------------------------------------------- blocks


def _cut_blocks(model: nn.Module, batch: Any, undo: list[Undo]) -> None:
    """Remove the blocks whose layers that write are all zero, and that leave the batch's hidden states as they are."""
    layers = layers_by_name(model)
    found = block_list(model, layers)
    if found is None:
        return
    name, modules = found
    groups = [*feed_forwards(model, layers), *attentions(model, layers)]
    hidden = Whole(model, layers, {}, []).forward(batch).hidden
    alive = [
        not (_writes_zeros(names, groups, layers) and torch.equal(hidden[k], hidden[k + 1]))
        for k, names in enumerate(blocks(model, layers))
    ]
    if not any(alive):
        alive[0] = True
    if all(alive):
        return
    *parents, last = name.split(".")
    parent: Any = model.get_submodule(".".join(parents))
    stay = [module for module, lives in zip(modules, alive, strict=True) if lives]
    _put(parent, last, nn.ModuleList(stay), undo)
    for place, block in enumerate(stay):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                _put(module, "layer_idx", place, undo)
    config = getattr(model, "config", None)
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        if getattr(config, key, None) == len(alive):
            _put(config, key, len(stay), undo)
    types = getattr(config, "layer_types", None)
    if isinstance(types, list) and len(types) == len(alive):
        _put(config, "layer_types", [kind for kind, lives in zip(types, alive, strict=True) if lives], undo)


def _writes_zeros(names: Sequence[str], groups: Sequence[Group], layers: dict[str, Layer]) -> bool:
    """Whether the layers of a block are those of groups whose reading layers are zero, without a bias."""
    own = [group for group in groups if group.reads.layer in names]
    if set(names) != {part.layer for group in own for part in group.parts}:
        return False
    for group in own:
        module: Any = layers[group.reads.layer].modules[0]
        bias = getattr(module, "bias", None)
        if bool(module.weight.ne(0).any()) or (bias is not None and bool(bias.ne(0).any())):
            return False
    return True


# ------------------------------------------------------------------------------------------------- config


def _update_config(model: nn.Module, undo: list[Undo]) -> None:
    """The sizes that a transformers config names, where all blocks have the same."""
    config, layers = getattr(model, "config", None), layers_by_name(model)
    if config is None:
        return
    neurons = {group.units for group in feed_forwards(model, layers)}
    if len(neurons) == 1:
        for key in ("intermediate_size", "ffn_dim", "n_inner"):
            if isinstance(getattr(config, key, None), int) or (key == "n_inner" and hasattr(config, key)):
                _put(config, key, next(iter(neurons)), undo)
    heads = {(g.units, g.parts[0].size, g.parts[1].size) for g in attentions(model, layers) if _apart(g)}
    if len(heads) == 1:
        units, queries, side = next(iter(heads))
        counts = {"num_key_value_heads": units, "num_attention_heads": units * queries // side}
        if any(isinstance(was := getattr(config, key, None), int) and was != now for key, now in counts.items()):
            if getattr(config, "head_dim", None) != side:  # without it, transformers divides the width by the heads
                known, before = hasattr(config, "head_dim"), getattr(config, "head_dim", None)
                config.head_dim = side
                undo.append(lambda: setattr(config, "head_dim", before) if known else delattr(config, "head_dim"))
            for key, now in counts.items():
                if isinstance(getattr(config, key, None), int):
                    _put(config, key, now, undo)
