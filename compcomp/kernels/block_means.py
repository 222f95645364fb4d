"""A low-rank branch of block means on tensors [huang2024]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.block_means import BlockMeans
from compcomp.kernels._shared import check, effective
from compcomp.kernels.truncated_svd import joined_factors
from compcomp.layers.state import Factors, LayerState


def kernel(technique: BlockMeans, layer: LayerState) -> LayerState:
    """Add the mean errors over runs of columns, as factors (out x rank, rank x in).

    ``layer.weight`` and ``layer.reference`` are out x in. All is computed in float64; the factors have the weight's
    dtype. Source: [huang2024].

    Raises:
        InputError: The rank does not divide the columns, or an entry is not finite.
    """
    check(technique, layer)
    error = layer.reference.to(torch.float64) - effective(layer, torch.float64)
    rows, columns = error.shape
    means = error.reshape(rows, technique.rank, -1).mean(dim=2)
    runs = torch.arange(columns, device=error.device) // (columns // technique.rank)
    member = runs == torch.arange(technique.rank, device=error.device)[:, None]
    factors = Factors(means.to(layer.weight.dtype), member.to(layer.weight.dtype))
    return replace(layer, format=replace(layer.format, factors=joined_factors(layer.format.factors, factors)))
