"""Absmax quantization on tensors [dettmers2022]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from compcomp.encodings.absmax import AbsMax
from compcomp.kernels._shared import Tensor, cached, check, chunks, in_range, largest_magnitudes, pieces, rounded, wide
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
    largest = largest_magnitudes(layer.weight.reshape(-1, size))  # groups x 1
    step = (largest / levels).to(dtype)
    groups, repeats = pieces(layer.weight, size)  # rows of one group or of parts of it
    if repeats > 1:
        largest = largest.expand(-1, repeats).reshape(-1, 1)
    weight, rounding = torch.empty_like(groups), technique.rounding
    steps = (largest / levels).to(dtype)

    def exact(part: slice | Tensor) -> None:
        ratio = groups[part].to(torch.float64, copy=True).mul_(levels).div_(largest[part])
        level = rounded(ratio.masked_fill_(largest[part] == 0, 0), rounding)
        weight[part] = (level.clamp_(-levels, levels).to(dtype) * steps[part]).to(weight.dtype)

    if dtype == torch.float32 and in_range(largest):
        _round(groups, weight, largest, steps, levels, exact)
    else:
        for rows in chunks(len(groups), 32 * groups.shape[1], groups.device):
            exact(rows)
    grid = Grid(
        step=step.expand(-1, size).reshape(shape) if len(step) > 1 else step.expand(shape),
        levels=levels,
        scales=layer.weight.numel() // size,
    )
    return replace(layer, weight=weight.reshape(shape), format=replace(layer.format, grid=grid, rank=None))


def _round(
    groups: Tensor, weight: Tensor, largest: Tensor, step: Tensor, levels: int, exact: Callable[[Tensor], None]
) -> None:
    """Round in float32, and again by ``exact`` the rows with a ratio that may be on the other side of a midpoint.

    The float32 ratios ``w (L / max|w|)`` have two roundings of 2^-24 each, so they are off by less than L 2^-22. One
    that is further from every midpoint has the level of the exact ratio, which no rule for midpoints changes.
    """
    factor = torch.where(largest == 0, 0, levels / largest).float()
    limit = 0.5 - levels * 2.0**-22
    near = torch.empty(len(groups), device=groups.device)
    for part in cached(groups):
        ratio = groups[part] * factor[part]
        level = ratio.round()
        torch.mul(level, step[part], out=weight[part])
        near[part] = ratio.sub_(level).abs_().amax(dim=1)
    again = (near >= limit).nonzero()[:, 0]
    for part in chunks(len(again), 32 * groups.shape[1], groups.device):
        exact(again[part])
