"""What a technique does to weights, as data: the prover reads these, never a technique's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from compcomp.errors import InputError
from compcomp.language.parameters import Unknown
from compcomp.language.partition import Partition
from compcomp.terms import And, Choices, Div, If, Max, Min, Not, Term, each, nearest, smallest

if TYPE_CHECKING:
    from compcomp.language.layer import Format, LayerState


@dataclass(frozen=True)
class Element:
    """One weight as a selection sees it.

    ``weight``: the current value. ``norm2``: the squared 2-norm of the input feature it multiplies, or None
    where a claim speaks of weights alone. ``reference``: its value in the dense layer.
    """

    weight: Term
    norm2: Term
    reference: Term


@dataclass(frozen=True)
class Selection:
    """Set to zero the ``int(n * share)`` weights of least score in every group of n.

    ``score`` maps an :class:`Element` to a number. ``share`` is in [0, 1). ``ties`` is one of
    :data:`compcomp.terms.TIES`.
    """

    score: Callable[[Element], Term]
    partition: Partition
    share: Fraction | Unknown
    ties: str
    needs_inputs: bool = False

    def count(self, size: int) -> int:
        """How many weights of a group of this size go."""
        if isinstance(self.share, Unknown):
            raise InputError("sparsity=Any", "a number where a layer is pruned", "Selection.count")
        return int(size * self.share)

    def scores(self, layer: LayerState) -> list[list[Term]]:
        """The scores of each group, in the order of ``partition.groups``."""
        norms = layer.input_norms2() if self.needs_inputs else [None] * layer.weight.shape[1]
        return [
            [self.score(Element(layer.weight[i, j], norms[j], layer.reference[i, j])) for i, j in group]
            for group in self.partition.groups(layer.weight.shape)
        ]

    def apply(self, layer: LayerState) -> LayerState:
        dropped = np.empty(layer.weight.shape, dtype=object)
        groups = self.partition.groups(layer.weight.shape)
        for group, scores in zip(groups, self.scores(layer), strict=True):
            taken = smallest(scores, self.count(len(group)), self.ties, layer.choices)
            for index, drop in zip(group, taken, strict=True):
                dropped[index] = drop
        weight = each(lambda w, drop: If(drop, 0, w), layer.weight, dropped)
        mask = each(Not, dropped)
        if layer.format.mask is not None:
            mask = each(And, layer.format.mask, mask)
        return replace(layer, weight=weight, format=self.format_after(layer.format, mask))

    def format_after(self, before: Format, mask: Any) -> Format:
        """The format once ``mask`` is its mask."""
        pattern, size = before.pattern, self.partition.size
        if size is not None:
            pattern = before.with_pattern(size - self.count(size), size)
        return replace(before, mask=mask, rank=None, pattern=pattern)


def at_most(share: Fraction | Unknown, other: Fraction | Unknown) -> bool:
    """Whether a share is known to be no larger than another: all that are Any in a claim are the same."""
    if isinstance(share, Unknown) or isinstance(other, Unknown):
        return share is other
    return share <= other


@dataclass(frozen=True)
class GridMap:
    """Round every weight to the nearest of ``k * step``, ``|k| <= levels``, where its group shares the step.

    The group's context is the largest ``measure(weight)`` in it; the step is context / levels. ``rounding`` is
    one of :data:`compcomp.terms.ROUNDINGS`. A group whose context is 0 becomes zero.
    """

    measure: Callable[[Term], Term]
    levels: int | Unknown
    rounding: str
    partition: Partition

    def step(self, context: Term) -> Term:
        """The distance of neighbouring grid values."""
        return Div(context, self.known_levels)

    def value(self, weight: Term, context: Term, choices: Choices) -> Term:
        """The grid value nearest to a weight."""
        return nearest(weight, self.step(context), self.known_levels, self.rounding, choices)

    @property
    def known_levels(self) -> int:
        """How many levels lie on each side of zero; InputError when that is not known."""
        if isinstance(self.levels, Unknown):
            raise InputError("bits=Any", "a number where a layer is quantized", "GridMap.levels")
        return self.levels

    def context(self, weights: Iterable[Term]) -> Term:
        """What the weights of a group share."""
        return Max(map(self.measure, weights))

    def apply(self, layer: LayerState) -> LayerState:
        from compcomp.language.layer import Grid

        weight = np.empty(layer.weight.shape, dtype=object)
        step = np.empty(layer.weight.shape, dtype=object)
        groups = self.partition.groups(layer.weight.shape)
        for group in groups:
            context = layer.choices.context(self.context([layer.weight[index] for index in group]))
            for index in group:
                weight[index] = self.value(layer.weight[index], context, layer.choices)
                step[index] = self.step(context)
        grid = Grid(step=step, levels=self.known_levels, scales=len(groups))
        return replace(layer, weight=weight, format=replace(layer.format, grid=grid, rank=None))


@dataclass(frozen=True)
class RangeMap:
    """Round every weight to the nearest of ``levels + 1`` values from the least to the largest weight of its group.

    The step is (high - low) / levels for the group's ``bounds`` low and high. ``zero``: the bounds are widened to
    reach 0, and the values lie at multiples of the step, the least of them that nearest to low, so that 0 is one; a
    weight beyond them goes to the last. Otherwise they lie at low + k * step. ``rounding`` is one of
    :data:`compcomp.terms.ROUNDINGS`. A group of one value stays as it is.
    """

    levels: int | Unknown
    rounding: str
    partition: Partition
    zero: bool

    @property
    def known_levels(self) -> int:
        """How many values lie above the least; InputError when that is not known."""
        if isinstance(self.levels, Unknown):
            raise InputError("bits=Any", "a number where a layer is quantized", "RangeMap.levels")
        return self.levels

    def bounds(self, weights: Iterable[Term]) -> tuple[Term, Term]:
        """What the weights of a group share: low and high."""
        terms = list(weights)
        zero = [0] if self.zero else []
        return Min([*terms, *zero]), Max([*terms, *zero])

    def offset(self, low: Term, step: Term, levels: Term, choices: Choices) -> Term:
        """The least value of a group's grid."""
        return nearest(low, step, levels, self.rounding, choices) if self.zero else low

    def value(self, weight: Term, offset: Term, step: Term, levels: Term, choices: Choices) -> Term:
        """The grid value nearest to a weight within the bounds."""
        if not self.zero:
            return offset + nearest(weight - offset, step, levels, self.rounding, choices)
        value = nearest(weight, step, levels, self.rounding, choices)
        return Min([Max([value, offset]), offset + levels * step])

    def apply(self, layer: LayerState) -> LayerState:
        from compcomp.language.layer import Grid

        weight, step, offset = (np.empty(layer.weight.shape, dtype=object) for _ in range(3))
        levels, choices = self.known_levels, layer.choices
        groups = self.partition.groups(layer.weight.shape)
        for group in groups:
            low, high = self.bounds([layer.weight[index] for index in group])
            width = Div(high - low, levels)
            least = self.offset(low, width, levels, choices)
            for index in group:
                weight[index] = self.value(layer.weight[index], least, width, levels, choices)
                step[index], offset[index] = width, least
        grid = Grid(step, levels, len(groups), offset, self.zero)
        return replace(layer, weight=weight, format=replace(layer.format, grid=grid, rank=None))


@dataclass(frozen=True)
class Optimum:
    """What a joint step chooses the best of: weights with zeros in every group, and a grid.

    From weights w (out x in) it may leave every v such that (i) in each group of n weights of ``partition`` at least
    ``int(n * share)`` weights of v are 0, and (ii) for each group of ``grid.partition`` there is a ratio r out of
    ``ratios``, so that every weight of v in the group is one of ``k * r * c / L``, ``|k| <= L``, c the context of w
    in the group and L the levels of ``grid``. The optimum is a v of least ``loss`` with w as the reference.
    """

    loss: str
    partition: Partition
    share: Fraction | Unknown
    grid: GridMap
    ratios: tuple[Fraction, ...]


Step = Selection | GridMap | RangeMap
