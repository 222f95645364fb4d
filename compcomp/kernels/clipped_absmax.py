"""Absmax quantization with clipping on tensors [nagel2021]."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch

from compcomp.encodings.clipped_absmax import ClippedAbsMax
from compcomp.kernels._shared import Tensor, check, chunks, largest_magnitudes, rounded, wide
from compcomp.layers.state import Grid, LayerState


def kernel(technique: ClippedAbsMax, layer: LayerState) -> LayerState:
    """Round every weight to the nearest value of its group's grid, with the scale of least error.

    ``layer.weight`` is out x in. The step is kept in the weight's dtype, but at least float32. The weight is level
    times step, cast to its own dtype. Ratios are chosen by losses in float64, of values before that cast.
    ``rounding="any"`` is "half_up". Source: [nagel2021].

    Raises:
        InputError: The group does not divide a row, or a weight is not finite.
    """
    check(technique, layer)
    shape, dtype, levels = tuple(layer.weight.shape), wide(layer.weight), technique.levels
    size = technique.partition.group_size((shape[0], shape[1]))
    groups = layer.weight.reshape(-1, size)
    count, largest = len(groups), largest_magnitudes(groups)
    lines = layer.weight if count == 1 else groups  # row by row, which bounds the memory
    top = largest.expand(len(lines), 1)

    def levels_of(part: slice, above: Tensor, below: Tensor) -> Tensor:
        """Return the levels of a slice of lines at the ratio above / below of each (whole numbers, as float64)."""
        unit = top[part] * above
        ratio = lines[part].to(torch.float64, copy=True).mul_(levels * below).div_(unit)
        return rounded(ratio.masked_fill_(unit == 0, 0), technique.rounding).clamp_(-levels, levels)

    def pair(ratio: Fraction) -> tuple[Tensor, Tensor]:
        above, below = (top.new_full((len(lines), 1), float(x)) for x in ratio.as_integer_ratio())
        return above, below

    parts = list(chunks(len(lines), 64 * lines.shape[1], lines.device))
    chosen, least = pair(Fraction(1)), top.new_full((count,), torch.inf)
    for ratio in technique.tried_ratios:
        above, below = pair(ratio)
        lost = top.new_zeros(len(lines))
        for part in parts:
            value = levels_of(part, above[part], below[part]) * (top[part] * above[part] / (below[part] * levels))
            lost[part] = value.sub_(lines[part]).square_().sum(dim=1)
        lost = lost.sum(dim=0, keepdim=True) if count == 1 else lost
        better = (lost < least).expand(len(lines))[:, None]
        chosen = torch.where(better, above, chosen[0]), torch.where(better, below, chosen[1])
        least = torch.minimum(least, lost)
    step = (top * chosen[0] / (chosen[1] * levels)).to(dtype)
    weight = torch.empty_like(lines)
    for part in parts:
        level = levels_of(part, chosen[0][part], chosen[1][part])
        weight[part] = (level.to(dtype) * step[part]).to(weight.dtype)
    grid = Grid(step=step.expand(lines.shape).reshape(shape), levels=levels, scales=count)
    return replace(layer, weight=weight.reshape(shape), format=replace(layer.format, grid=grid, rank=None))
