"""Absmax quantization on tensors [dettmers2022]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.absmax import AbsMax
from compcomp.kernels._shared import check, chunks, rounded, wide
from compcomp.layers.state import Grid, LayerState


def kernel(technique: AbsMax, layer: LayerState) -> LayerState:
    """Round every weight to the nearest value of its group's grid.

    ``layer.weight`` is out x in. The step is kept in the weight's dtype, but at least float32. The weight is level
    times step, cast to its own dtype. Levels come from float64 ratios ``w * L / max|w|``, whose midpoints are exact for
    float32 and narrower weights. ``rounding="any"`` is "half_up". Source: [dettmers2022].

    Raises:
        InputError: The group does not divide a row, or a weight is not finite.
    """
    check(technique, layer)
    shape, dtype = tuple(layer.weight.shape), wide(layer.weight)
    (step_map,) = technique.steps()
    size, levels = step_map.partition.group_size((shape[0], shape[1])), step_map.known_levels
    groups = layer.weight.reshape(-1, size)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    largest = torch.maximum(-low, high).to(torch.float64)  # groups x 1
    step = (largest / levels).to(dtype)
    if len(groups) == 1:  # row by row, which bounds the memory
        groups, largest, step = layer.weight, largest.expand(shape[0], 1), step.expand(shape[0], 1)
    weight = torch.empty_like(groups)
    for part in chunks(len(groups), 32 * groups.shape[1], groups.device):
        ratio = groups[part].to(torch.float64, copy=True).mul_(levels).div_(largest[part])
        level = rounded(ratio.masked_fill_(largest[part] == 0, 0), technique.rounding)
        weight[part] = (level.clamp_(-levels, levels).to(dtype) * step[part]).to(weight.dtype)
    grid = Grid(
        step=step.expand(groups.shape).reshape(shape),
        levels=levels,
        scales=layer.weight.numel() // size,
    )
    return replace(layer, weight=weight.reshape(shape), format=replace(layer.format, grid=grid, rank=None))
