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
    """Fit a quantized weight and a low-rank branch to the effective weight, in turn.

    ``layer.weight`` is out x in. All is computed in float64 on the CPU, elsewhere in the weight's dtype but at least
    float32. Values are cast to the weight's dtype before they are quantized. Weight and factors (out x rank, rank x in)
    are returned in it. ``rounding="any"`` is "half_up". Source: [li2023].

    Raises:
        InputError: The group does not divide a row, or an entry is not finite.
    """
    check(technique, layer)
    dtype = torch.float64 if layer.weight.device.type == "cpu" else wide(layer.weight)
    target = effective(layer, dtype)
    quantizer = AbsMax(bits=technique.bits, group=technique.group, rounding=technique.rounding)
    low = torch.zeros_like(target)
    for _ in range(technique.rounds):
        rest = (target - low).to(layer.weight.dtype)
        quantized = absmax.kernel(quantizer, replace(layer, weight=rest, format=Format()))
        found = closest(target - quantized.weight.to(dtype), technique.rank, precision=torch.finfo(rest.dtype).eps)
        left, right = (factor.to(rest.dtype) for factor in found)
        low = left.to(dtype) @ right.to(dtype)
    return replace(quantized, format=replace(quantized.format, factors=Factors(left, right)))
