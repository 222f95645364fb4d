"""Optimal brain surgeon on tensors [hassibi1993, frantar2022]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.obs import OBS
from compcomp.kernels._second_order import Greedy, damped, inverse_root
from compcomp.kernels._shared import check, chunks
from compcomp.layers.state import LayerState


def kernel(technique: OBS, layer: LayerState) -> LayerState:
    """Remove one weight after the other in every row, compensated by the rest of the row.

    ``layer.weight`` is out x in, ``layer.gram`` is in x in, of the current inputs. All is computed in float64, with out
    * in * k^2 / 2 multiplications for k weights a row. The result has the weight's dtype and a bool mask, out x in.
    ``ties="any"`` takes the lowest column. Source: [hassibi1993]; row by row [frantar2022].

    Raises:
        InputError: There are no inputs, the pattern does not fit, an entry is not finite, or the damped Gram matrix is
        not positive definite.
    """
    check(technique, layer)
    rows, columns = layer.weight.shape
    size = technique.partition.size or columns
    count = technique.count(size)
    steps = count * (columns // size)
    gram, dead = damped(technique, layer, technique.damping)
    root = inverse_root(technique, gram)
    inverse = root.T @ root
    weight = layer.weight.to(torch.float64).masked_fill(dead, 0)
    dropped = torch.empty_like(weight, dtype=torch.bool)
    for part in chunks(rows, Greedy.memory(columns, steps), weight.device):
        greedy = Greedy(weight[part], inverse, steps)
        zeros = weight.new_zeros(len(weight[part]))
        for _ in range(steps):
            scores = greedy.scores(greedy.weights)
            if technique.pattern != "unstructured":
                full = greedy.fixed.reshape(len(scores), -1, size).sum(dim=2, keepdim=True) >= count
                scores.masked_fill_(full.expand(-1, -1, size).reshape(scores.shape), torch.inf)
            greedy.fix(scores.argmin(dim=1), zeros)
        dropped[part] = greedy.fixed
    form = replace(layer.format, grid=None, rank=None)
    mask = ~dropped
    if technique.pattern != "unstructured":
        form = replace(form, pattern=((size - count, size),), cut=None)
    elif form.mask is not None:
        mask &= form.mask
    return replace(layer, weight=weight.to(layer.weight.dtype), format=replace(form, mask=mask))
