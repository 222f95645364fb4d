"""Rounding to codebooks on tensors, shared by NF4, FP4, FP8, MX and block floating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import torch

from compcomp.kernels._shared import Tensor, check, chunks, wide
from compcomp.language.steps import CodebookMap
from compcomp.language.technique import Technique
from compcomp.layers.codebooks import midpoints_down
from compcomp.layers.state import LayerState

Stored = Callable[[Tensor], Tensor]


def quantize(
    technique: Technique, layer: LayerState, step_map: CodebookMap | None = None, stored: Stored | None = None
) -> LayerState:
    """Round every weight to the nearest value of its group's codebook.

    The step is kept in the weight's dtype, but at least float32. The weight is code times step, cast to its own dtype.
    Codes are chosen by comparing products in float64. These are exact for float32 and narrower weights, so midpoints
    are too. ``rounding="any"`` is "half_up".

    Args:
        technique: The technique, whose only step is the codebook map unless ``step_map`` is given.
        layer: The layer; its weight is out x in.
        step_map: A codebook map that replaces the technique's only step.
        stored: Returns the steps to store for the steps by which codes are chosen (groups x 1).

    Raises:
        InputError: The group does not divide a row, or a weight is not finite.
    """
    check(technique, layer)
    if step_map is None:
        (found,) = technique.steps()
        assert isinstance(found, CodebookMap)
        step_map = found
    shape, dtype = tuple(layer.weight.shape), wide(layer.weight)
    size = step_map.partition.group_size((shape[0], shape[1]))
    groups = layer.weight.reshape(-1, size)
    largest = largest_magnitudes(groups)
    count = len(groups)
    if count == 1:  # row by row, which bounds the memory
        groups, largest = layer.weight, largest.expand(shape[0], 1)
    step, places = in_steps(groups, largest, step_map)
    if stored is not None:
        step = stored(step[:count]).expand(len(groups), 1)
    codes, weight = coded(step_map.codes, step).to(dtype), torch.empty_like(groups)
    for part in chunks(len(groups), 96 * groups.shape[1], groups.device):
        weight[part] = (codes[places(part)] * step[part].to(dtype)).to(weight.dtype)
    grid = step_map.grid(step.to(dtype).expand(groups.shape).reshape(shape), count)
    return replace(layer, weight=weight.reshape(shape), format=replace(layer.format, grid=grid, rank=None))


def coded(codes: Sequence[Fraction], like: Tensor) -> Tensor:
    """Return the codes as float64 on the device of another tensor."""
    return torch.tensor([float(code) for code in codes], dtype=torch.float64, device=like.device)


def largest_magnitudes(groups: Tensor) -> Tensor:
    """Return the largest magnitude of each row, float64, as a column."""
    low, high = groups.aminmax(dim=-1, keepdim=True)
    return torch.maximum(-low, high).to(torch.float64)


def in_steps(groups: Tensor, largest: Tensor, step_map: CodebookMap) -> tuple[Tensor, Callable[[slice], Tensor]]:
    """Return the step of each group (groups x 1, float64), and a function that gives the places of a slice's codes."""
    if step_map.scale == "power_of_two":
        step = largest_power(largest) / float(step_map.largest_power)
        factor, unit = 2.0, step
    else:
        top = float(step_map.largest)
        step, factor, unit = largest / top, 2 * top, largest

    def places(part: slice) -> Tensor:
        return nearest_places(groups[part].to(torch.float64) * factor, unit[part], step_map.codes, step_map.rounding)

    return step, places


def largest_power(values: Tensor) -> Tensor:
    """Return the largest power of two that is no more than each value; 0 for 0."""
    exponents = torch.frexp(values).exponent - 1
    return torch.where(values == 0, 0.0, torch.ldexp(torch.ones_like(values), exponents))


def nearest_places(doubled: Tensor, unit: Tensor, codes: Sequence[Fraction], rounding: str) -> Tensor:
    """Return the places of the codes nearest to ``doubled / (2 unit)``; if ``unit`` is 0, the place of the code 0.


    Both tensors are float64. At a midpoint, ``doubled`` equals ``unit`` times the sum of two neighbours, which is exact
    if these are short. The quotient only serves to find the neighbours.
    """
    sums = coded([a + b for a, b in pairwise(codes)], doubled)
    goes_down = torch.tensor(midpoints_down(tuple(codes), rounding), device=doubled.device)
    last = len(sums)
    place = torch.bucketize((doubled / torch.where(unit == 0, 1.0, unit)).contiguous(), sums)
    low, high = sums[(place - 1).clamp_(min=0)] * unit, sums[place.clamp(max=last - 1)] * unit
    place = (
        place - ((place > 0) & (doubled < low)).to(place.dtype) + ((place < last) & (doubled > high)).to(place.dtype)
    )
    for middle in (place - 1, place):  # on the midpoint below, or above
        at = middle.clamp(0, last - 1)
        tied = (middle == at) & (doubled == sums[at] * unit) & (unit != 0)
        place = torch.where(tied, torch.where(goes_down[at], at, at + 1), place)
    return place
