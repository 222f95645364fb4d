"""Adaptive sparse training on tensors [huang2024]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.adaptive_sparse_training import AdaptiveSparseTraining
from compcomp.kernels._shared import Tensor, check, drop, effective
from compcomp.kernels.gradient_distill import dense_products
from compcomp.layers.state import LayerState


def kernel(technique: AdaptiveSparseTraining, layer: LayerState) -> LayerState:
    """Train the weights towards the dense layer's outputs under a mask that is updated as they change.

    ``layer.weight`` and ``layer.reference`` are out x in, ``layer.gram`` is in x in, of the current inputs. All is
    computed in float64; memory is a few times that of the weight. The result has the weight's dtype and a bool mask,
    out x in. ``ties="any"`` drops the lowest index first. Source: [huang2024].

    Raises:
        InputError: There are no inputs, the pattern does not fit, or an entry is not finite.
    """
    check(technique, layer)
    assert layer.gram is not None
    gram, mask, selection = layer.gram.to(torch.float64), layer.format.mask, technique.selection
    weight = layer.weight.to(torch.float64)
    constant = (effective(layer, torch.float64) - weight) @ gram - dense_products(layer, gram)
    latent = weight.clone() if mask is None else weight.masked_fill(~mask, 0)
    start = replace(layer, weight=latent, format=replace(layer.format, grid=None))  # its weights are moved in place

    def score(part: slice) -> Tensor:
        sizes: Tensor = latent[part].abs()
        return sizes if mask is None else sizes.masked_fill_(~mask[part], -1)

    trace = gram.trace()
    step = torch.where(trace > 0, float(technique.rate) / trace, 0.0)
    pruned = drop(start, selection, score)
    for turn in range(1, technique.iterations + 1):
        dropped: Tensor = ~pruned.format.mask  # type: ignore[operator]
        move = (pruned.weight @ gram).add_(constant).mul_(step)
        move.addcmul_(latent, dropped.to(latent), value=float(technique.decay * turn / technique.iterations))
        latent -= move if mask is None else move.masked_fill_(~mask, 0)
        if technique.new_mask(turn):
            pruned = drop(start, selection, score)
        else:
            pruned = replace(pruned, weight=latent.masked_fill(dropped, 0))
    return replace(pruned, weight=pruned.weight.to(layer.weight.dtype))
