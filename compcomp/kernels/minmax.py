"""Min-max quantization on tensors [jacob2018]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.minmax import MinMax
from compcomp.kernels._scales import stored
from compcomp.kernels._shared import check, chunks, rounded, wide
from compcomp.layers.scales import scale_bits
from compcomp.layers.state import Grid, LayerState


def kernel(technique: MinMax, layer: LayerState) -> LayerState:
    """Round every weight to the nearest value of its group's grid.

    ``layer.weight`` is out x in. Step and offset are kept in the weight's dtype, but at least float32. The weight is
    level times step plus offset in that dtype, so that a zero is exact, cast to its own. Levels come from float64
    ratios ``w * L / (high - low)``, or ``w / step`` with a step of some format. Their midpoints are exact for float32
    and narrower weights of like size. ``rounding="any"`` is "half_up". Source: [jacob2018].

    Raises:
        InputError: The group does not divide a row, or a weight is not finite.
    """
    check(technique, layer)
    shape, dtype = tuple(layer.weight.shape), wide(layer.weight)
    step_map = technique.step_map
    size, levels = step_map.partition.group_size((shape[0], shape[1])), step_map.known_levels
    groups = layer.weight.reshape(-1, size)
    low, high = (bound.to(torch.float64) for bound in groups.aminmax(dim=-1, keepdim=True))  # groups x 1
    if step_map.zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    span = high - low
    scale, top = stored(span / levels, technique.scales), float(levels)
    step = scale.to(dtype)
    if technique.scales != "exact":  # levels are those of the stored step
        low, span, top = low if step_map.zero else stored(low, technique.scales), scale, 1.0
    if step_map.zero:
        lowest = rounded((low * top / span).masked_fill_(span == 0, 0), technique.rounding).clamp_(min=-levels)
        start, offset = torch.zeros_like(low), lowest.to(dtype) * step
    else:
        lowest, start, offset = torch.zeros_like(low), low, low.to(dtype)
    if len(groups) == 1:  # row by row, which bounds the memory
        groups = layer.weight
        span, step, lowest, start, offset = (x.expand(shape[0], 1) for x in (span, step, lowest, start, offset))
    weight = torch.empty_like(groups)
    for part in chunks(len(groups), 32 * groups.shape[1], groups.device):
        ratio = groups[part].to(torch.float64, copy=True).sub_(start[part]).mul_(top).div_(span[part])
        level = rounded(ratio.masked_fill_(span[part] == 0, 0), technique.rounding).sub_(lowest[part])
        weight[part] = (level.clamp_(0, levels).to(dtype) * step[part] + offset[part]).to(weight.dtype)
    grid = Grid(
        step=step.expand(groups.shape).reshape(shape),
        levels=levels,
        scales=layer.weight.numel() // size,
        offset=offset.expand(groups.shape).reshape(shape),
        zero=step_map.zero,
        scale_bits=scale_bits(technique.scales),
    )
    return replace(layer, weight=weight.reshape(shape), format=replace(layer.format, grid=grid, rank=None))
