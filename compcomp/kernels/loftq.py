"""LoftQ on tensors [li2023]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.loftq import LoftQ
from compcomp.kernels import absmax
from compcomp.kernels._shared import check, effective, wide
from compcomp.kernels.truncated_svd import closest
from compcomp.layers.state import Factors, Format, LayerState


def kernel(technique: LoftQ, layer: LayerState) -> LayerState:
    """Fit a quantized weight and a low-rank term beside it to the effective weight, in turn.

    ``layer.weight``: out x in. Computed in float64 on the CPU, elsewhere in the weight's dtype but at least float32;
    what is quantized is cast to the weight's dtype first, and weight and factors (out x rank, rank x in) come back in
    it. ``rounding="any"`` is "half_up". Raises InputError when the group does not divide a row or an entry is not
    finite. Source: [li2023].
    """
    check(technique, layer)
    dtype = torch.float64 if layer.weight.device.type == "cpu" else wide(layer.weight)
    target = effective(layer, dtype)
    quantizer = AbsMax(bits=technique.bits, group=technique.group, rounding=technique.rounding)
    low = torch.zeros_like(target)
    for _ in range(technique.rounds):
        rest = (target - low).to(layer.weight.dtype)
        quantized = absmax.kernel(quantizer, replace(layer, weight=rest, format=Format()))
        left, right = (
            factor.to(layer.weight.dtype) for factor in closest(target - quantized.weight.to(dtype), technique.rank)
        )
        low = left.to(dtype) @ right.to(dtype)
    return replace(quantized, format=replace(quantized.format, factors=Factors(left, right)))
