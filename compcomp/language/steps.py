"""Define steps, which describe as data what a technique does to weights.

The prover reads steps, never the name of a technique.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.language.parameters import Unknown
from compcomp.layers.codebooks import Codes
from compcomp.layers.partition import Partition
from compcomp.layers.state import Format, Grid, LayerState
from compcomp.terms import (
    NO_FLOATS,
    ROUNDINGS,
    TIES,
    And,
    Choices,
    Div,
    If,
    Max,
    Min,
    Not,
    Term,
    each,
    nearest,
    nearest_code,
    power_of_two,
    reading,
    smallest,
)


@dataclass(frozen=True)
class Element:
    """Hold one weight as a selection sees it.

    Args:
        weight: the current value.
        norm2: the squared 2-norm of the input feature that it multiplies, or None for selections that need no inputs.
        reference: its value in the dense layer.
    """

    weight: Term
    norm2: Term
    reference: Term


_A_NUMBER = "a number for every weight: write Div of compcomp.terms, which is 0 there"


class _Closed:
    """Forbid subclasses of a kind of step in other modules, for which proofs of the rules need not hold."""

    def __init_subclass__(cls) -> None:
        if cls.__module__ != __name__:
            allowed = "its instances; what they cannot say goes into a technique's encode"
            raise InputError(f"a subclass {cls.__name__} of {cls.__mro__[1].__name__}", allowed, "steps")


def _require_exact(numbers: Iterable[Any], layer: LayerState) -> None:
    """Raise TypeError if one of the numbers is a float although all weights are exact."""
    if any(isinstance(x, float) for x in numbers) and not any(isinstance(w, float) for w in layer.weight.ravel()):
        raise TypeError(NO_FLOATS)


def _check_choice(name: str, given: object, allowed: tuple[str, ...], where: str) -> None:
    if given not in allowed:
        raise InputError(f"{name}={given!r}", ", ".join(allowed), where)


def _check_share(share: object, where: str) -> None:
    if not isinstance(share, Unknown) and not (
        isinstance(share, Fraction) and 0 <= share.numerator < share.denominator
    ):
        raise InputError(f"share={share!r}", "a Fraction in [0, 1), or Any", where)


def _check_levels(levels: object, where: str) -> None:
    if not isinstance(levels, Unknown) and (type(levels) is not int or levels < 1):
        raise InputError(f"levels={levels!r}", "a whole number from 1 on, or Any", where)


@dataclass(frozen=True)
class Selection(_Closed):
    """Set to zero the ``int(n * share)`` weights of least score in every group of n.

    Args:
        score: maps an :class:`Element` to a number.
        partition: the groups.
        share: the share to drop, in [0, 1), or Any.
        ties: one of :data:`compcomp.terms.TIES`.
        needs_inputs: True if scores depend on the inputs.
        of_layer: returns the scores (out x in) of a layer state, if a score depends on more than its own weight; see
            :meth:`by_layer`.

    Raises:
        InputError: the share or the convention for ties is not allowed.
    """

    score: Callable[[Element], Term]
    partition: Partition
    share: Fraction | Unknown
    ties: str
    needs_inputs: bool = False
    of_layer: Callable[[LayerState], Any] | None = None

    def __post_init__(self) -> None:
        _check_share(self.share, "Selection")
        _check_choice("ties", self.ties, TIES, "Selection")

    @classmethod
    def by_layer(
        cls,
        of_layer: Callable[[LayerState], Any],
        partition: Partition,
        share: Fraction | Unknown,
        ties: str,
        needs_inputs: bool = False,
    ) -> Selection:
        """Return a selection whose scores may depend on the whole layer. Rules treat such scores as any numbers.

        Args:
            of_layer: returns the scores (out x in) of a layer state.
            partition: the groups.
            share: the share to drop, in [0, 1), or Any.
            ties: one of :data:`compcomp.terms.TIES`.
            needs_inputs: True if scores depend on the inputs.
        """
        return cls(_no_score, partition, share, ties, needs_inputs, of_layer)

    @property
    def sees(self) -> Partition:
        """The partition into groups that are selected from independently of each other."""
        return self.partition if self.of_layer is None else Partition.tensor()

    def rate(self, weight: Term, norm2: Term, reference: Term) -> Term:
        """Return the score of one weight.

        Args:
            weight: the current value.
            norm2: the squared norm of its input feature, which is not used if the selection needs no inputs.
            reference: the value in the dense layer.

        Raises:
            InputError: the score divides by zero.
        """
        try:
            return self.score(Element(weight, norm2 if self.needs_inputs else None, reference))
        except ZeroDivisionError:
            raise InputError(f"a score that divides by zero at {weight}", _A_NUMBER, "Selection") from None

    def count(self, size: int) -> int:
        """Return how many weights of a group of this size are dropped; raise InputError if the share is Any."""
        if isinstance(self.share, Unknown):
            raise InputError("sparsity=Any", "a number where a layer is pruned", "Selection.count")
        return int(size * self.share)

    def scores(self, layer: LayerState) -> list[list[Term]]:
        """Return the scores of each group, in the order of ``partition.groups``."""
        if self.of_layer is not None:
            scores = self.of_layer(layer)
            return [[scores[index] for index in group] for group in self.partition.groups(layer.weight.shape)]
        norms = layer.input_norms2() if self.needs_inputs else [None] * layer.weight.shape[1]
        return [
            [self.rate(layer.weight[i, j], norms[j], layer.reference[i, j]) for i, j in group]
            for group in self.partition.groups(layer.weight.shape)
        ]

    def apply(self, layer: LayerState) -> LayerState:
        """Return the layer after the selection. Its mask drops the selected weights, and those that were dropped."""
        dropped = np.empty(layer.weight.shape, dtype=object)
        groups = self.partition.groups(layer.weight.shape)
        for group, scores in zip(groups, self.scores(layer), strict=True):
            _require_exact(scores, layer)
            taken = smallest(scores, self.count(len(group)), self.ties, layer.choices)
            for index, drop in zip(group, taken, strict=True):
                dropped[index] = drop
        weight = each(lambda w, drop: If(drop, 0, w), layer.weight, dropped)
        mask = each(Not, dropped)
        if layer.format.mask is not None:
            mask = each(And, layer.format.mask, mask)
        return replace(layer, weight=weight, format=self.format_after(layer.format, mask))

    def format_after(self, before: Format, mask: Any) -> Format:
        """Return the format after a selection that leads to this mask."""
        pattern, size = before.pattern, self.partition.size
        if size is not None:
            pattern = before.with_pattern(size - self.count(size), size)
        return replace(before, mask=mask, rank=None, pattern=pattern)


def _no_score(element: Element) -> Term:
    raise TypeError("a score of the whole layer is no score of one weight")


def leaves_free(step: Step) -> bool:
    """Return True if one of the step's conventions is "any"."""
    return "any" in (getattr(step, "ties", ""), getattr(step, "rounding", ""))


def at_most(share: Fraction | Unknown, other: Fraction | Unknown) -> bool:
    """Return True if a share is known to be at most another. All shares that are Any in a claim are equal."""
    if isinstance(share, Unknown) or isinstance(other, Unknown):
        return share is other
    return share <= other


class ScaledMap(_Closed):
    """Round every weight to a value of a grid that scales with the largest ``measure(weight)`` in its group.

    The largest measure is the group's *context*, a number >= 0. The grid is ``step`` times fixed numbers, and the step
    depends on the context only. A group whose context is 0 becomes zero. ``homogeneous`` is True if scaling the context
    by any factor > 0 scales the step by it.
    """

    measure: Callable[[Term], Term]
    rounding: str
    partition: Partition

    @property
    def sees(self) -> Partition:
        """The partition into groups that are rounded independently of each other."""
        return self.partition

    @property
    def homogeneous(self) -> bool:
        raise NotImplementedError

    @property
    def numbers(self) -> Hashable:
        """The data that determines the grid of a map, given its measure, its partition and the context of a group."""
        raise NotImplementedError

    def step(self, context: Term, choices: Choices) -> Term:
        """Return the step of the grid of a group with this context."""
        raise NotImplementedError

    def rounded(self, weight: Term, step: Term, choices: Choices) -> Term:
        """Return the value of the grid with this step that is nearest to a weight."""
        raise NotImplementedError

    def grid(self, step: Any, scales: int) -> Grid:
        """Return the grid, given the step at each weight (out x in) and the number of groups."""
        raise NotImplementedError

    def value(self, weight: Term, context: Term, choices: Choices) -> Term:
        """Return the grid value that is nearest to a weight, in a group with this context."""
        return self.rounded(weight, self.step(context, choices), choices)

    def context(self, weights: Iterable[Term]) -> Term:
        """Return the context of a group; raise InputError if the measure divides by zero."""
        try:
            return Max(map(self.measure, weights))
        except ZeroDivisionError:
            raise InputError("a measure that divides by zero", _A_NUMBER, type(self).__name__) from None

    def apply(self, layer: LayerState) -> LayerState:
        """Return the layer with every weight rounded, and with its grid recorded."""
        weight = np.empty(layer.weight.shape, dtype=object)
        step = np.empty(layer.weight.shape, dtype=object)
        groups = self.partition.groups(layer.weight.shape)
        for group in groups:
            context = self.context([layer.weight[index] for index in group])
            _require_exact([context], layer)
            if reading(context) == "number" and context < 0:
                raise InputError(f"a measure of {context}", "numbers from 0 on", type(self).__name__)
            context = layer.choices.context(context)
            unit = self.step(context, layer.choices)
            for index in group:
                weight[index] = self.rounded(layer.weight[index], unit, layer.choices)
                step[index] = unit
        form = replace(layer.format, grid=self.grid(step, len(groups)), rank=None)
        return replace(layer, weight=weight, format=form)


@dataclass(frozen=True)
class GridMap(ScaledMap):
    """Round every weight to the nearest of ``k * step``, ``-levels - below <= k <= levels``, one step for each group.

    The step is context / (levels + beyond). A weight beyond the last value is rounded to it.

    Args:
        measure: maps a weight to a number >= 0. The context of a group is its largest measure.
        levels: the number of values above 0, or Any.
        rounding: one of :data:`compcomp.terms.ROUNDINGS`.
        partition: the groups.
        below: how many more values there are below 0 than above it.
        beyond: the context in steps, less the levels.

    Raises:
        InputError: the levels, the rounding or the last two are not allowed.
    """

    measure: Callable[[Term], Term]
    levels: int | Unknown
    rounding: str
    partition: Partition
    below: int = 0
    beyond: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if self.below < 0 or self.beyond < 0:
            raise InputError(f"below={self.below}, beyond={self.beyond}", "numbers from 0 on", "GridMap")
        _check_levels(self.levels, "GridMap")
        _check_choice("rounding", self.rounding, ROUNDINGS, "GridMap")

    @property
    def homogeneous(self) -> bool:
        return True

    @property
    def numbers(self) -> Hashable:
        return ("levels", self.levels, self.below, self.beyond)

    @property
    def known_levels(self) -> int:
        """The number of levels above zero; raises InputError if it is Any."""
        if isinstance(self.levels, Unknown):
            raise InputError("bits=Any", "a number where a layer is quantized", "GridMap.levels")
        return self.levels

    @property
    def reach(self) -> int | Fraction:
        """The context in steps; raises InputError if the number of levels is Any."""
        return self.known_levels + self.beyond if self.beyond else self.known_levels

    def step(self, context: Term, choices: Choices) -> Term:
        return Div(context, self.reach)

    def rounded(self, weight: Term, step: Term, choices: Choices) -> Term:
        return nearest(weight, step, self.known_levels, self.rounding, choices, self.below)

    def grid(self, step: Any, scales: int) -> Grid:

        return Grid(step=step, levels=self.known_levels, scales=scales, below=self.below)


SCALES = ("absmax", "power_of_two")
"""The ways to compute a codebook's step from the largest magnitude of a group."""


@dataclass(frozen=True)
class CodebookMap(ScaledMap):
    """Round every weight to the nearest of ``step * c``, c out of ``codes``, with one step for each group.

    Args:
        measure: maps a weight to a number >= 0. The context of a group is its largest measure.
        codes: the codes, in ascending order.
        rounding: one of :data:`compcomp.terms.ROUNDINGS`, for midpoints as in :func:`compcomp.terms.nearest_code`.
        partition: the groups.
        scale: "absmax": the step is context / max|c|. "power_of_two": the step is p / e, where p and e are the largest
            powers of two up to the context and up to max|c| [rouhani2023]. A weight beyond the last value is rounded to
            that value.

    Raises:
        InputError: the codes, the rounding or the scale are not allowed.
    """

    measure: Callable[[Term], Term]
    codes: tuple[Fraction, ...]
    rounding: str
    partition: Partition
    scale: str = "absmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", Codes(self.codes))
        _check_choice("rounding", self.rounding, ROUNDINGS, "CodebookMap")
        _check_choice("scale", self.scale, SCALES, "CodebookMap")

    @property
    def homogeneous(self) -> bool:
        return self.scale == "absmax"

    @property
    def numbers(self) -> Hashable:
        return ("codes", self.codes, self.scale)

    @property
    def largest(self) -> Fraction:
        """The largest magnitude of a code."""
        return max(-self.codes[0], self.codes[-1])

    @property
    def largest_power(self) -> Fraction:
        """The largest power of two that is at most :attr:`largest`."""
        return Fraction(power_of_two(self.largest, Choices()))

    def step(self, context: Term, choices: Choices) -> Term:
        if self.scale == "absmax":
            return Div(context, self.largest)
        return Div(power_of_two(context, choices), self.largest_power)

    def rounded(self, weight: Term, step: Term, choices: Choices) -> Term:
        return nearest_code(weight, step, self.codes, self.rounding, choices)

    def grid(self, step: Any, scales: int) -> Grid:

        bits = 16 if self.scale == "absmax" else 8  # an exponent, E8M0
        last, zero = len(self.codes) - 1, Fraction(0) in self.codes
        return Grid(step, last, scales, zero=zero, codes=self.codes, scale_bits=bits)


@dataclass(frozen=True)
class RangeMap(_Closed):
    """Round every weight to the nearest of ``levels + 1`` values from the least to the largest weight of its group.

    The step is (high - low) / levels for the group's ``bounds`` low and high. A group whose weights are all equal does
    not change.

    Args:
        levels: the number of values above the least one, or Any.
        rounding: one of :data:`compcomp.terms.ROUNDINGS`.
        partition: the groups.
        zero: if True, the bounds are widened to include 0, and the values are multiples of the step, so that 0 is one
            of them. The least value is the multiple nearest to low, and a weight beyond the values is rounded to the
            last one. If False, the values are low + k * step.

    Raises:
        InputError: the levels or the rounding are not allowed.
    """

    levels: int | Unknown
    rounding: str
    partition: Partition
    zero: bool

    def __post_init__(self) -> None:
        _check_levels(self.levels, "RangeMap")
        _check_choice("rounding", self.rounding, ROUNDINGS, "RangeMap")

    @property
    def sees(self) -> Partition:
        """The partition into groups that are rounded independently of each other."""
        return self.partition

    @property
    def known_levels(self) -> int:
        """The number of values above the least one; raises InputError if it is Any."""
        if isinstance(self.levels, Unknown):
            raise InputError("bits=Any", "a number where a layer is quantized", "RangeMap.levels")
        return self.levels

    def bounds(self, weights: Iterable[Term]) -> tuple[Term, Term]:
        """Return the bounds of a group: low and high."""
        terms = list(weights)
        zero = [0] if self.zero else []
        return Min([*terms, *zero]), Max([*terms, *zero])

    def offset(self, low: Term, step: Term, levels: Term, choices: Choices) -> Term:
        """Return the least value of a group's grid, given its lower bound and step."""
        return nearest(low, step, levels, self.rounding, choices) if self.zero else low

    def value(self, weight: Term, offset: Term, step: Term, levels: Term, choices: Choices) -> Term:
        """Return the grid value that is nearest to a weight within the bounds.

        Args:
            weight: the weight.
            offset: the least value of the group's grid.
            step: the step of the group's grid.
            levels: the number of values above the least one.
            choices: makes the free choices of "any", and records the margin.
        """
        if not self.zero:
            return offset + nearest(weight - offset, step, levels, self.rounding, choices)
        value = nearest(weight, step, levels, self.rounding, choices)
        return Min([Max([value, offset]), offset + levels * step])

    def apply(self, layer: LayerState) -> LayerState:
        """Return the layer with every weight rounded, and with its grid recorded."""
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
    """Define the set of weights from which a joint step chooses the best: zeros in every group, and a grid.

    For weights w (out x in) the set contains every v with two properties. (i) In each group of n weights of
    ``partition`` at least ``int(n * share)`` weights of v are 0. (ii) For each group of ``grid.partition`` there is a
    ratio r out of ``ratios`` such that every weight of v in the group is one of ``k * r * s`` for the levels k of
    ``grid``. Here s is its step for the context of w in the group. The optimum is a v of least ``loss`` with w as the
    reference.
    """

    loss: str
    partition: Partition
    share: Fraction | Unknown
    grid: GridMap
    ratios: tuple[Fraction, ...]


Step = Selection | GridMap | CodebookMap | RangeMap
