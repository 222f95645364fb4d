"""Wanda pruning on tensors [sun2024]."""

from __future__ import annotations

import torch

from compcomp.encodings.wanda import Wanda
from compcomp.kernels._shared import Tensor, check, drop, selection
from compcomp.layers.state import LayerState


def kernel(technique: Wanda, layer: LayerState) -> LayerState:
    """Set the weights of least |w_ij| |x_j|_2 in every group of an output row to zero.

    ``layer.weight`` is out x in. ``layer.gram`` is in x in; its diagonal holds |x_j|_2^2. Scores are compared as
    squares in float64, which are exact for 16-bit weights, so that rounding makes no ties. The result has the weight's
    dtype and a bool mask, out x in. ``ties="any"`` drops the lowest index first. Source: [sun2024].

    Raises:
        InputError: There are no inputs, the pattern does not fit, or an entry is not finite.
    """
    check(technique, layer)
    assert layer.gram is not None
    norms2 = layer.gram.diagonal().to(torch.float64)

    def score(rows: slice) -> Tensor:
        part: Tensor = layer.weight[rows]
        return part.to(torch.float64, copy=True).square_().mul_(norms2)

    if layer.weight.dtype != torch.float32 or not 0 < (most := float(norms2.max())) < torch.inf:
        return drop(layer, selection(technique), score)
    norms = (norms2 / most).sqrt_().float()  # at most 1

    def quick(rows: slice) -> Tensor:
        part: Tensor = layer.weight[rows]
        return part.abs().mul_(norms)

    return drop(layer, selection(technique), score, quick)
