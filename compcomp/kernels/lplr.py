"""LPLR on tensors [saha2023]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.lplr import LPLR
from compcomp.kernels import absmax
from compcomp.kernels._shared import Tensor, check, effective
from compcomp.layers.state import Factors, Format, Grid, LayerState

TOLERANCE = 1e-10
"""The share of a factor's largest singular value below which one counts as zero."""


def kernel(technique: LPLR, layer: LayerState) -> LayerState:
    """Replace the effective weight by a product of two quantized factors.

    ``layer.weight`` is out x in. All is computed in float64. Factors (out x rank, rank x in) are rounded to the
    weight's dtype, which the zero weight has too. Their grids' steps are kept in it, but at least float32.
    ``rounding="any"`` is "half_up". Source: [saha2023].

    Raises:
        InputError: An entry is not finite.
    """
    check(technique, layer)
    weight = effective(layer, torch.float64)
    bits, right_bits = technique.both_bits
    sketch = torch.from_numpy(technique.sketched(weight.shape[1])).to(weight)
    left, left_grid = _quantized(technique, (weight @ sketch).to(layer.weight.dtype), bits)
    fitted = torch.linalg.pinv(left.to(torch.float64), rtol=TOLERANCE) @ weight
    right, right_grid = _quantized(technique, fitted.to(layer.weight.dtype), right_bits)
    factors = Factors(left, right, left_grid, right_grid)
    return replace(layer, weight=torch.zeros_like(layer.weight), format=Format(factors=factors, rank=0))


def _quantized(technique: LPLR, factor: Tensor, bits: int) -> tuple[Tensor, Grid | None]:
    after = absmax.kernel(AbsMax(bits=bits, rounding=technique.rounding), LayerState.dense(factor))
    return after.weight, after.format.grid
