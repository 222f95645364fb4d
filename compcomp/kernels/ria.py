"""RIA pruning on tensors [zhang2024]."""

from __future__ import annotations

import torch

from compcomp.encodings.ria import RIA
from compcomp.kernels._shared import Tensor, check, chunks, drop, selection
from compcomp.layers.state import LayerState


def kernel(technique: RIA, layer: LayerState) -> LayerState:
    """Set the weights of least (|w_ij| / column sum + |w_ij| / row sum) |x_j|^power in every group to zero.

    ``layer.weight`` is out x in. ``layer.gram`` is in x in; its diagonal holds |x_j|_2^2. Sums and scores are float64;
    a row or column of zeros scores 0. The result has the weight's dtype and a bool mask, out x in. ``ties="any"`` drops
    the lowest index first. Source: [zhang2024].

    Raises:
        InputError: There are no inputs, the pattern does not fit, or an entry is not finite.
    """
    check(technique, layer)
    weight: Tensor = layer.weight
    rows, columns = weight.shape
    column_sums = torch.zeros(columns, dtype=torch.float64, device=weight.device)
    for part in chunks(rows, 16 * columns, weight.device):
        column_sums += weight[part].to(torch.float64, copy=True).abs_().sum(dim=0)
    column_sums.masked_fill_(column_sums == 0, 1)  # of weights that are 0
    activation = torch.ones_like(column_sums)
    if technique.power:
        assert layer.gram is not None
        activation = layer.gram.diagonal().to(torch.float64) ** (float(technique.power) / 2)

    def score(part: slice) -> Tensor:
        sizes = weight[part].to(torch.float64, copy=True).abs_()
        row_sums = sizes.sum(dim=1, keepdim=True)
        row_sums.masked_fill_(row_sums == 0, 1)
        return (sizes / column_sums).add_(sizes / row_sums).mul_(activation)

    return drop(layer, selection(technique), score)
