"""First-order Taylor importance on tensors [molchanov2019, ma2023]."""

from __future__ import annotations

import torch

from compcomp.encodings.taylor import Taylor
from compcomp.kernels._cuts import double, least, remove
from compcomp.kernels._shared import Tensor, check, chunks, drop, selection
from compcomp.layers.state import LayerState


def kernel(technique: Taylor, layer: LayerState) -> LayerState:
    """Set the weights, rows or columns of least |w g| to zero, g = W X X^T.

    ``layer.weight`` is out x in, ``layer.gram`` is in x in. Scores are float64, of the effective weight. The result has
    the weight's dtype and a bool mask, out x in; with group "row" or "column" also a cut. ``ties="any"`` drops the
    lowest index first. Source: [molchanov2019, ma2023].

    Raises:
        InputError: There are no inputs, groups do not fit, or an entry is not finite.
    """
    check(technique, layer)
    assert layer.gram is not None
    gram: Tensor = layer.gram.to(torch.float64)
    rows, columns = layer.weight.shape

    def score(part: slice) -> Tensor:
        weight = double(layer, part)
        return (weight @ gram).mul_(weight).abs_()

    if technique.group == "weight":
        return drop(layer, selection(technique), score)
    axis = 0 if technique.group == "row" else 1
    sums = torch.zeros((rows, columns)[axis], dtype=torch.float64, device=layer.weight.device)
    for part in chunks(rows, 32 * columns, layer.weight.device):
        if axis == 0:
            sums[part] = score(part).sum(dim=1)
        else:
            sums += score(part).sum(dim=0)
    sums = sums.reshape(-1, technique.size).sum(dim=1)
    return remove(layer, least(sums, technique.sparsity, technique.size, technique.ties), axis)
