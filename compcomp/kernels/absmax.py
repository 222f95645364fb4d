"""Absmax quantization on tensors [dettmers2022]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from compcomp.encodings.absmax import AbsMax
from compcomp.kernels._scales import stored
from compcomp.kernels._shared import Tensor, cached, check, chunks, divisors, largest_magnitudes, pieces, rounded, wide
from compcomp.language.parameters import known
from compcomp.layers.grids import GRIDS
from compcomp.layers.scales import scale_bits
from compcomp.layers.state import Grid, LayerState


def kernel(technique: AbsMax, layer: LayerState) -> LayerState:
    """Round every weight to the nearest value of its group's grid.

    ``layer.weight`` is out x in. The step is kept in the weight's dtype, but at least float32. The weight is level
    times step, cast to its own dtype. Levels come from float64 ratios ``w * L / max|w|``, whose midpoints are exact for
    float32 and narrower weights. L is here the level of max|w|, before it is clipped. With a step of some format they
    come from ratios ``w / step``. ``rounding="any"`` is "half_up". Source: [dettmers2022].

    Raises:
        InputError: The group does not divide a row, or a weight is not finite.
    """
    check(technique, layer, weight_too=False)
    shape, dtype = tuple(layer.weight.shape), wide(layer.weight)
    of, levels = GRIDS[technique.grid], known(technique.levels, "AbsMax.bits")
    size, reach = technique.partition.group_size((shape[0], shape[1])), float(of.reach(levels))
    ends = -levels - of.below, levels
    largest = largest_magnitudes(layer.weight.reshape(-1, size), dtype)  # groups x 1
    divisor, moderate = divisors(largest, technique)
    if of.signed:
        sign = _mirrored(layer.weight.reshape(-1, size), dtype)
        largest, divisor = largest * sign, divisor * sign
    step, clips = largest / reach, reach > ends[1]
    if technique.scales != "exact":
        exact = stored(largest.to(torch.float64) / reach, technique.scales)
        step, divisor, reach, clips = exact.to(dtype), torch.where(exact == 0, 1, exact), 1.0, True
    groups, repeats = pieces(layer.weight, size)  # rows of one group or of parts of it

    def of_pieces(column: Tensor) -> Tensor:
        return column if repeats == 1 else column.expand(-1, repeats).reshape(-1, 1)

    weight, tops, steps = torch.empty_like(groups), of_pieces(divisor), of_pieces(step)
    nearest = partial(_nearest, reach=reach, ends=ends if clips else None, rounding=technique.rounding)
    if dtype == torch.float32 and moderate:
        most = reach if technique.scales == "exact" else float((largest / divisor).abs().amax())
        _round(groups, weight, tops.to(dtype), steps, reach, most, ends if clips else None, nearest)
    else:
        for part in chunks(len(groups), 32 * groups.shape[1], groups.device):
            torch.mul(nearest(groups[part], tops[part]).to(dtype), steps[part], out=weight[part])
    grid = Grid(
        step=step.expand(-1, size).reshape(shape) if len(step) > 1 else step.expand(shape),
        levels=levels,
        scales=layer.weight.numel() // size,
        scale_bits=scale_bits(technique.scales),
        below=of.below,
    )
    return replace(layer, weight=weight.reshape(shape), format=replace(layer.format, grid=grid, rank=None))


def _mirrored(groups: Tensor, dtype: torch.dtype) -> Tensor:
    """Return -1 for the groups whose first weight of largest magnitude is positive, and 1 for the others."""
    first = groups.abs().argmax(dim=1, keepdim=True)
    return 1 - 2 * (groups.gather(1, first) > 0).to(dtype)


def _nearest(groups: Tensor, divisor: Tensor, reach: float, ends: tuple[int, int] | None, rounding: str) -> Tensor:
    """Return the levels, float64. ``ends`` are the last ones where a weight may be beyond them."""
    level = rounded(groups.to(torch.float64, copy=True).mul_(reach).div_(divisor), rounding)
    return level if ends is None else level.clamp_(*ends)


def _round(
    groups: Tensor,
    weight: Tensor,
    divisor: Tensor,
    step: Tensor,
    reach: float,
    most: float,
    ends: tuple[int, int] | None,
    nearest: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Round in float32, and again by ``nearest`` the rows with a ratio that may be on the other side of a midpoint.

    The float32 ratios ``w (reach / divisor)`` have two roundings, which are off by a share of 2^-24 each, so they are
    off by less than ``most 2^-23 (1 + 2^-20)``, where no ratio is larger than ``most``. One that is further from every
    midpoint has the level of the exact ratio, which no rule for midpoints changes, nor does clipping to the last level
    afterwards. The distance of a ratio from its level is exact.
    """
    factor, limit = torch.full_like(divisor, reach).div_(divisor), 0.5 - most * 2.0**-23 * (1 + 2.0**-20)
    near = None
    for part in cached(groups):
        out = weight[part]
        ratio = groups[part] * factor[part]
        level = torch.round(ratio, out=out) if out.dtype == ratio.dtype else ratio.round()
        low, high = map(float, ratio.sub_(level).aminmax())
        if ends is not None:
            level.clamp_(*ends)
        torch.mul(level, step[part], out=out)
        if max(-low, high) >= limit:
            near = torch.zeros_like(divisor)[:, 0] if near is None else near
            torch.amax(ratio.abs_(), dim=1, out=near[part])
    if near is not None:
        again = (near >= limit).nonzero()[:, 0]
        for part in chunks(len(again), 32 * groups.shape[1], groups.device):
            some = again[part]
            level = nearest(groups[some], divisor[some]).to(step.dtype)
            weight[some] = level.mul_(step[some]).to(weight.dtype)
