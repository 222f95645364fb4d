"""Rounding to codebooks on tensors, shared by NF4, FP4, FP8, MX and block floating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import torch

from compcomp.kernels._shared import Tensor, cached, check, chunks, divisors, largest_magnitudes, pieces, wide
from compcomp.language.steps import CodebookMap
from compcomp.language.technique import Technique
from compcomp.layers.codebooks import midpoints_down
from compcomp.layers.state import LayerState

CELLS = 2**16
"""The cells of a table of nearest codes."""

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
    largest = largest_magnitudes(layer.weight.reshape(-1, size))
    count = len(largest)
    groups, repeats = pieces(layer.weight, size)  # rows of one group or of parts of it
    if repeats > 1:
        largest = largest.expand(-1, repeats).reshape(-1, 1)
    step, places, reach = in_steps(groups, largest, step_map)
    if stored is not None:
        step = stored(step[::repeats]).expand(-1, repeats).reshape(-1, 1)
    steps = step.to(dtype)
    codes, weight = coded(step_map.codes, step).to(dtype), torch.empty_like(groups)

    def exact(part: slice | Tensor) -> None:
        weight[part] = (codes[places(part)] * steps[part]).to(weight.dtype)

    if dtype == torch.float32 and divisors(largest, technique)[1]:
        _look_up(groups, weight, steps, reach, Table.of(step_map, groups.device), exact)
    else:
        for rows in chunks(len(groups), 96 * groups.shape[1], groups.device):
            exact(rows)
    each = steps[::repeats]
    wide_step = each.expand(-1, size).reshape(shape) if count > 1 else each.expand(shape)
    grid = step_map.grid(wide_step, count)
    return replace(layer, weight=weight.reshape(shape), format=replace(layer.format, grid=grid, rank=None))


@dataclass(frozen=True)
class Table:
    """Hold the code nearest to each number of -1 to 1 times the largest, for cells of equal width.

    values: The codes (cells, float32); nan for a cell that a midpoint is in or near.
    """

    values: Tensor

    @classmethod
    def of(cls, step_map: CodebookMap, device: torch.device) -> Table:
        """Return the table of a codebook map."""
        return _table(tuple(step_map.codes), _range(step_map), device)


@lru_cache(maxsize=8)
def _table(codes: tuple[Fraction, ...], most: float, device: torch.device) -> Table:
    sums = coded([a + b for a, b in pairwise(codes)], torch.empty(0, device="cpu"))
    edges = (sums / most + 1) * (CELLS / 2)
    middle = torch.arange(CELLS, dtype=torch.float64, device="cpu") + 0.5
    values = torch.tensor([float(code) for code in codes], device="cpu")[torch.bucketize(middle, edges)]
    for edge in edges.tolist():
        values[max(0, int(edge - 0.25)) : int(edge + 0.25) + 1] = torch.nan
    return Table(values.to(device))


def _range(step_map: CodebookMap) -> float:
    """Return a bound on twice a weight over its step, for any weight."""
    return 4 * float(step_map.largest_power) if step_map.scale == "power_of_two" else 2 * float(step_map.largest)


def _look_up(
    groups: Tensor, weight: Tensor, step: Tensor, reach: Tensor, table: Table, exact: Callable[[Tensor], None]
) -> None:
    """Find the codes in a table, and again by ``exact`` those of rows with a weight in a cell near a midpoint.

    A place in the table has three roundings to float32, each less than 1/100 of a cell.

    Args:
        groups: The weights, rows x n.
        weight: The result, of that shape.
        step: The steps as stored, rows x 1.
        reach: The magnitudes of weights at the two ends of the table, rows x 1, float64.
        table: The table.
        exact: The function that rounds chosen rows.
    """
    half = CELLS / 2
    factor = torch.where(reach == 0, 0, half / reach).float()
    unsure = torch.empty(len(groups), device=groups.device)
    for part in cached(groups):
        places = (groups[part] * factor[part]).add_(half).clamp_(0, CELLS - 1).to(torch.int32)
        found = table.values.index_select(0, places.reshape(-1)).reshape(places.shape)
        unsure[part] = found.sum(dim=1)
        torch.mul(found, step[part], out=weight[part])
    again = unsure.isnan().nonzero()[:, 0]
    for part in chunks(len(again), 96 * groups.shape[1], groups.device):
        exact(again[part])


def coded(codes: Sequence[Fraction], like: Tensor) -> Tensor:
    """Return the codes as float64 on the device of another tensor."""
    return torch.tensor([float(code) for code in codes], dtype=torch.float64, device=like.device)


def in_steps(
    groups: Tensor, largest: Tensor, step_map: CodebookMap
) -> tuple[Tensor, Callable[[slice | Tensor], Tensor], Tensor]:
    """Return the step of each group, a function that gives the places of some groups' codes, and the reach of each.

    Step and reach are groups x 1, float64. No weight of a group is larger than its reach, which is :func:`_range` times
    half the step.
    """
    if step_map.scale == "power_of_two":
        step = largest_power(largest) / float(step_map.largest_power)
        factor, unit = 2.0, step
        reach = step * (2 * float(step_map.largest_power))
    else:
        top = float(step_map.largest)
        step, factor, unit, reach = largest / top, 2 * top, largest, largest

    def places(part: slice | Tensor) -> Tensor:
        return nearest_places(groups[part].to(torch.float64) * factor, unit[part], step_map.codes, step_map.rounding)

    return step, places, reach


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
