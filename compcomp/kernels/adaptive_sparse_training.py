"""Adaptive sparse training on tensors [huang2024]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.adaptive_sparse_training import AdaptiveSparseTraining
from compcomp.kernels._shared import Tensor, check, effective, smallest
from compcomp.kernels.gradient_distill import dense_products
from compcomp.language.layer import LayerState


def kernel(technique: AdaptiveSparseTraining, layer: LayerState) -> LayerState:
    """Train the weights towards the dense layer's outputs through a mask that is found again as they change.

    ``layer.weight``, ``layer.reference``: out x in. ``layer.gram``: in x in, of the current inputs. Computed in
    float64; memory is a few times that of the weight. The result has the weight's dtype and a bool mask, out x in.
    ``ties="any"`` drops the lowest index first. Raises InputError without inputs, when the pattern does not fit, or
    when an entry is not finite. Source: [huang2024].
    """
    check(technique, layer)
    assert layer.gram is not None
    gram, form = layer.gram.to(torch.float64), layer.format
    start = layer.weight.to(torch.float64)
    beside = (effective(layer, torch.float64) - start) @ gram - dense_products(layer, gram)
    barred = None if form.mask is None else ~form.mask
    latent = start.clone() if barred is None else start.masked_fill(barred, 0)
    trace = gram.trace()
    step = torch.where(trace > 0, float(technique.rate) / trace, 0.0)
    dropped = _dropped(technique, latent, barred)
    for turn in range(1, technique.iterations + 1):
        move = (latent.masked_fill(dropped, 0) @ gram).add_(beside).mul_(step)
        move.addcmul_(latent, dropped.to(latent), value=float(technique.decay * turn / technique.iterations))
        latent -= move if barred is None else move.masked_fill_(barred, 0)
        if technique.new_mask(turn):
            dropped = _dropped(technique, latent, barred)
    if (size := technique.partition.size) is not None:
        form = replace(form, pattern=form.with_pattern(size - int(size * technique.sparsity), size))
    weight = latent.masked_fill_(dropped, 0).to(layer.weight.dtype)
    return replace(layer, weight=weight, format=replace(form, mask=~dropped, grid=None, rank=None))


def _dropped(technique: AdaptiveSparseTraining, latent: Tensor, barred: Tensor | None) -> Tensor:
    """Out x in: the weights of least magnitude of every group, and all that are barred."""
    scores = latent.abs() if barred is None else latent.abs().masked_fill_(barred, -1)
    size = technique.partition.group_size((latent.shape[0], latent.shape[1]))
    taken = smallest(scores.reshape(-1, size), int(size * technique.sparsity), technique.ties).reshape(latent.shape)
    return taken if barred is None else taken | barred
