"""LoSparse on tensors [li2023b]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.losparse import LoSparse
from compcomp.kernels._shared import check, effective, smallest, wide
from compcomp.kernels.truncated_svd import closest
from compcomp.layers.state import Factors, Format, LayerState


def kernel(technique: LoSparse, layer: LayerState) -> LayerState:
    """Split the effective weight into a low-rank term and rows of the rest.

    ``layer.weight`` is out x in. All is computed in float64 on the CPU, elsewhere in the weight's dtype but at least
    float32. Weight and factors (out x rank, rank x in) have the weight's dtype, the bool mask is out x in.
    ``ties="any"`` drops the lowest index first. Source: [li2023b].

    Raises:
        InputError: Runs do not divide the rows, or an entry is not finite.
    """
    check(technique, layer)
    dtype = torch.float64 if layer.weight.device.type == "cpu" else wide(layer.weight)
    weight = effective(layer, dtype)
    found = closest(weight, technique.rank, precision=torch.finfo(layer.weight.dtype).eps)
    left, right = (factor.to(layer.weight.dtype) for factor in found)
    rest = weight - left.to(dtype) @ right.to(dtype)
    norms = rest.square().reshape(-1, technique.size * rest.shape[1]).sum(dim=1)
    taken = smallest(norms[None], technique.count(len(rest)), technique.ties)[0]
    dropped = taken.repeat_interleave(technique.size)[:, None].expand(rest.shape)
    kept = rest.masked_fill(dropped, 0).to(layer.weight.dtype)
    return replace(layer, weight=kept, format=Format(mask=~dropped, factors=Factors(left, right)))
