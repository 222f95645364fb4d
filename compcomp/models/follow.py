"""Find the groups in which a run of kernels on floats surely agrees with the run in exact arithmetic.

Both runs start from the same numbers, the floats of the dense layer. A group is *followed* through a step if the floats
surely decide as exact numbers do: which weights are dropped, and to which level a weight is rounded. Then each weight
is zero in both runs or in neither, and its relative error is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import Any, NoReturn

import torch
from torch import Tensor

from compcomp.kernels._shared import rounded, smallest, wide
from compcomp.language.steps import Element, GridMap, RangeMap, Selection, Step
from compcomp.language.technique import Sequence
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.models.states import applied

UNIT = 2.0**-53
"""The largest error of a float64 operation, relative to its result."""

FLOOR = 1e-280
"""Magnitudes of float64 below which an operation may have a larger error."""

EXACT_LEVELS = 2**16
"""The largest number of levels for which the ratio of float32 numbers times levels is rounded exactly, see `_map`."""

ENTRIES = 2**18
"""Weights that are processed together on a CPU, so that they stay in its cache; 64 times as many on other devices."""


@dataclass(frozen=True, eq=False)
class Factor:
    """Floats whose distance from the exact numbers they stand for is at most ``error``, relative to these.

    Scores and measures are evaluated on them as products. Any other operation raises TypeError: its rounding is not
    known.
    """

    values: Tensor
    error: float = 0.0

    def __abs__(self) -> Factor:
        return Factor(self.values.abs(), self.error)

    def __neg__(self) -> Factor:
        return Factor(-self.values, self.error)

    def __mul__(self, other: Any) -> Factor:
        if isinstance(other, int | Fraction) and not isinstance(other, bool):
            number = float(other)
            error = 0.0 if Fraction(number) == other else 2 * UNIT
            other = Factor(torch.tensor(number, dtype=torch.float64, device="cpu"), error)
        if not isinstance(other, Factor):
            return NotImplemented
        one, two = self.values.to(torch.float64), other.values.to(torch.float64)
        values = one * two
        error = 1.01 * (self.error + other.error + UNIT)
        small = values.abs() < FLOOR
        if bool(small.any()) and bool((small & (one != 0) & (two != 0)).any()):
            error = inf
        return Factor(values, error)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("a comparison of scores in a score")

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Groups:
    """One truth value for each group of a partition, row by row."""

    partition: Partition
    holds: Tensor

    def over(self, count: int) -> Tensor:
        """Return for each of ``count`` units if it holds in all groups of the unit, or in the group around it."""
        if len(self.holds) >= count:
            return self.holds.reshape(count, -1).all(dim=1)
        return self.holds.repeat_interleave(count // len(self.holds))

    def within(self, units: Tensor) -> Groups:
        """Return the groups in which it holds and which lie in these units (bool). No unit is smaller than a group."""
        return Groups(self.partition, self.holds & units.repeat_interleave(len(self.holds) // len(units)))


@dataclass(frozen=True)
class Followed:
    """One technique of a run.

    Attributes:
        step: The step of the technique; None if it is not a single selection or map.
        before: The state before it.
        after: The state after it.
        error: The relative error of the weights before it, wherever the run was followed up to there.
        sure: Groups that are followed through this step if they were followed before.
        separated: For a selection, groups in which every dropped score is surely less than every kept score.
    """

    step: Step | None
    before: LayerState
    after: LayerState
    error: float
    sure: Groups
    separated: Groups | None = None


@dataclass(frozen=True)
class FollowedRun:
    """A run of a sequence: its techniques in turn, the last state, and the relative error of its weights."""

    steps: tuple[Followed, ...]
    last: LayerState
    error: float

    def known(self, count: int, until: int | None = None) -> Tensor:
        """Return for each of ``count`` units if it is followed through all steps, or the first ``until`` of them."""
        device = self.last.weight.device
        found = torch.ones(count, dtype=torch.bool, device=device)
        for followed in self.steps[:until]:
            found &= followed.sure.over(count)
        return found


def follow(sequence: Sequence, name: str, layer: LayerState) -> FollowedRun:
    """Run the kernels of a sequence on the layer of this name, and find the groups that are followed."""
    found, error = [], 0.0
    for technique in sequence:
        after = applied(technique, name, layer)
        steps = technique.steps()
        plain = not (technique.promises().changes_inputs or technique.promises().changes_basis)
        plain = plain and layer.format.transform is None  # in another basis steps read other weights than these
        step = steps[0] if len(steps) == 1 and plain else None
        if isinstance(step, Selection):
            sure, separated = _select(step, layer, after, error)
            found.append(Followed(step, layer, after, error, sure, separated))
        elif isinstance(step, GridMap):
            sure, off = _map(step, layer, after, error)
            found.append(Followed(step, layer, after, error, sure))
            error = off
        else:
            # A range map's values may cancel, which leaves no relative error. Other techniques are not analysed.
            partition = Partition.tensor() if step is None else step.partition
            found.append(Followed(step, layer, after, error, _everywhere(partition, layer, False)))
        layer = after
    return FollowedRun(tuple(found), layer, error)


def measured(
    measure: Callable[[Any], Any], weight: Tensor, partition: Partition, error: float
) -> tuple[Tensor, float] | None:
    """Return the largest measure in each group, float64, and its relative error; None if the measure is no product."""
    lines, together = lined(weight, partition)
    largest, off = [], 0.0
    for part in slices(lines):
        found = _read(measure, Factor(lines[part].to(wide(weight)), error))
        if found is None:
            return None
        largest.append(found.values.amax(dim=1).to(torch.float64))
        off = max(off, found.error)
    return torch.cat(largest).reshape(-1, together).amax(dim=1), off


def lined(tensor: Tensor, partition: Partition) -> tuple[Tensor, int]:
    """Return the tensor (out x in) as lines that lie inside one group each, and the number of lines in a group."""
    rows, columns = tensor.shape
    if partition.kind == "tensor":
        return tensor, rows
    return tensor.reshape(-1, partition.group_size((rows, columns))), 1


def slices(lines: Tensor) -> Iterator[slice]:
    """Return slices of consecutive lines, each with as many lines as are processed together."""
    entries = ENTRIES * (1 if lines.device.type == "cpu" else 64)
    step = max(1, entries // lines.shape[1])
    return (slice(start, start + step) for start in range(0, len(lines), step))


def _everywhere(partition: Partition, layer: LayerState, value: bool) -> Groups:
    weight: Tensor = layer.weight
    count = weight.numel() // partition.group_size((weight.shape[0], weight.shape[1]))
    return Groups(partition, torch.full((count,), value, device=weight.device))


def _read(function: Callable[[Any], Any], given: Any) -> Factor | None:
    """Return a score or a measure as a product of its argument, or None if it is anything else."""
    try:
        found = function(given)
    except (TypeError, AttributeError):
        return None
    return found if isinstance(found, Factor) else None


# ------------------------------------------------------------------------------------------------ selections


def _select(selection: Selection, before: LayerState, after: LayerState, error: float) -> tuple[Groups, Groups]:
    """Return the groups through which a selection is followed, and those in which it separates its scores.

    Exact scores (such as magnitudes of the dense floats) are compared directly, and their ties are broken as in exact
    arithmetic. Other scores separate a group if they differ by more than the error that both may have. The kernel's
    result and the scores computed here both have to drop the same weights.
    """
    weight: Tensor = before.weight
    size = selection.partition.group_size((weight.shape[0], weight.shape[1]))
    count = selection.count(size)
    sure, separated = (_everywhere(selection.partition, before, False) for _ in range(2))
    whole = [slice(0, len(weight))] if selection.partition.kind == "tensor" else slices(weight)
    done = 0
    for rows in whole:
        groups, result = (layer.weight[rows].reshape(-1, size) for layer in (before, after))
        part = slice(done, done + len(groups))
        done = part.stop
        if count == 0:
            separated.holds[part] = True
            sure.holds[part] = (result == groups).all(dim=1)
            continue
        scores = _read(selection.score, _element(before, rows, error, selection.needs_inputs))
        if scores is None:
            continue
        values = scores.values.reshape(-1, size)
        last = values.kthvalue(count, dim=1, keepdim=True).values
        low = values <= last
        following = values.masked_fill(low, inf).amin(dim=1).to(torch.float64)
        last = last[:, 0].to(torch.float64)
        room = 0.0 if scores.error == 0 else FLOOR + 2 * scores.error * (last.abs() + following.abs())
        strict = (low.sum(dim=1) == count) & (following - last > room)
        agree = strict & (result == groups.masked_fill(low, 0)).all(dim=1)
        if scores.error == 0 and selection.ties != "any":
            tied = (~strict).nonzero()[:, 0]
            gone = smallest(values[tied], count, selection.ties)
            agree[tied] = (result[tied] == groups[tied].masked_fill(gone, 0)).all(dim=1)
        separated.holds[part], sure.holds[part] = strict, agree
    return sure, separated


def _element(layer: LayerState, rows: slice, error: float, needs_inputs: bool) -> Element:
    weight: Tensor = layer.weight[rows]
    reference: Tensor = layer.reference[rows]
    norms = None
    if needs_inputs and layer.gram is not None:
        gram: Tensor = layer.gram
        norms = Factor(gram.diagonal().to(torch.float64))
    return Element(Factor(weight.to(wide(weight)), error), norms, Factor(reference.to(wide(reference))))


# ------------------------------------------------------------------------------------------------ maps


def _map(grid: GridMap, before: LayerState, after: LayerState, error: float) -> tuple[Groups, float]:
    """Return the groups through which a grid map is followed, and the relative error of its values there.

    Ratios are r = w R / M, where R is the largest magnitude M in steps. Let w, M be float32 numbers, R <= 2^16, and 2 R
    whole. Then w R is exact in float64. The quotient is also on the exact side of every midpoint k + 1/2. For if r and
    k + 1/2 differ, 2 w R and (2 k + 1) M differ by a whole multiple of the smaller of the units in the last place of w
    and M. So r and k + 1/2 differ by more than 2^-42 r, which division does not round away. Other ratios have to be
    farther from a midpoint than their error.
    """
    weight: Tensor = before.weight
    shown = _everywhere(grid.partition, before, False)
    found = measured(grid.measure, weight, grid.partition, error)
    if found is None:
        return shown, error
    largest, off = found
    levels, reach, eps = grid.known_levels, float(grid.reach), torch.finfo(after.weight.dtype)
    lowest, halves = -levels - grid.below, 2 * grid.reach % 1 == 0 and reach <= EXACT_LEVELS
    exact = error == 0 and off == 0 and weight.dtype != torch.float64 and halves
    near = 0.0 if exact else 1.01 * (error + off + 4 * UNIT)
    lines, together = lined(weight, grid.partition)
    result, _ = lined(after.weight, grid.partition)
    shared = largest.repeat_interleave(together)[:, None]
    sure = torch.empty(len(lines), dtype=torch.bool, device=weight.device)
    for part in slices(lines):
        top = shared[part]
        ratio = (lines[part].to(torch.float64) * reach).div_(top).masked_fill_(top == 0, 0)
        level = rounded(ratio.clone(), grid.rounding).clamp_(lowest, levels)
        value = (level * top).div_(reach)
        agree = (result[part].to(torch.float64) - value).abs_() <= value.abs_().mul_(2 * eps.eps)
        if not exact or grid.rounding == "any":
            midpoint = (ratio - ratio.floor()).sub_(0.5).abs_()
            agree &= midpoint > ratio.abs_().mul_(near)
        sure[part] = agree.all(dim=1)
    normal = (largest == 0) | (largest / reach > 8 * max(eps.tiny, FLOOR))  # a smaller step has no relative error
    shown.holds[:] = sure.reshape(-1, together).all(dim=1) & normal
    return shown, off + 4 * eps.eps  # the measure's error, and the largest difference accepted here


def bounds(step: RangeMap, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest weight of each group, widened to include 0 if the map's grid does."""
    lines, together = lined(weight, step.partition)
    low, high = (x.reshape(-1, together) for x in lines.aminmax(dim=1))
    least, most = low.amin(dim=1), high.amax(dim=1)
    return (least.clamp(max=0), most.clamp(min=0)) if step.zero else (least, most)
