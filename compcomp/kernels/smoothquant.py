"""SmoothQuant on tensors [xiao2023]."""

from __future__ import annotations

import torch

from compcomp.encodings.smoothquant import SmoothQuant
from compcomp.kernels._shared import Tensor, check, largest_inputs, largest_magnitudes, range_of, wide
from compcomp.layers.basis import Scaling
from compcomp.layers.state import LayerState


def kernel(technique: SmoothQuant, layer: LayerState) -> LayerState:
    """Scale the weight's columns by s_j = max|X_j|^alpha / max|W_:j|^(1 - alpha).

    ``layer.weight`` is out x in. ``layer.inputs`` is in x tokens; ``layer.magnitudes`` can replace it. Scales are
    computed in float64 and kept in the weight's dtype, but at least float32, in which they stay above 0. The weight
    keeps its dtype. Source: [xiao2023].

    Raises:
        InputError: There are no inputs, or an entry is not finite.
    """
    check(technique, layer, weight_too=False)
    weight, alpha = layer.weight, float(technique.alpha)
    columns = largest_magnitudes(weight, dim=0)[0]
    range_of(columns, technique)
    exponent = largest_inputs(layer, technique).to(torch.float64).log2().mul_(alpha)
    exponent.sub_(columns.log2_().mul_(1 - alpha)).nan_to_num_(0, 0, 0)  # not finite where a size is 0
    return layer.rebased(Scaling(scales(exponent, technique.scales, wide(weight))))


def scales(exponent: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Return 2 to these exponents (in), or to the nearest whole ones, in this dtype and within its range."""
    if kind == "power_of_two":
        exponent = exponent.add_(0.5).floor_()
    info = torch.finfo(dtype)
    return exponent.exp2_().clamp_(info.tiny, info.max).to(dtype)
