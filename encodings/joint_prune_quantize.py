"""Pruning and quantization in one step: the mask and clip ratios of least weight error."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.language.parameters import (
    ANY,
    BitsOrAny,
    ExactOrAny,
    Unknown,
    bit_width,
    grid_partition,
    number,
    one_of,
    parametrized,
    selection_partition,
    shown,
    sparsity,
)
from compcomp.language.steps import GridMap, Optimum, Selection
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.grids import GRIDS, UNSIGNED
from compcomp.layers.partition import Index, Partition
from compcomp.layers.state import LayerState
from compcomp.terms import ROUNDINGS, Abs, And, Array, Choices, If, Not, Sum, Term, each, reading, smallest

TIES = ("first", "any")


@parametrized
class JointPruneQuantize(Technique):
    """Drop ``int(n * sparsity)`` weights of every group of n and round the others, at the least sum of (w - w')^2.

    Every other weight goes to the nearest value of the grid of AbsMax, with the step times r, the clip ratio of its
    scale group. The step follows from the largest weight of the group, dropped or not. Keeping w instead of dropping it
    gains w^2 - (w - q(w))^2 = q(w)(2w - q(w)). For each ratio the weights of least gain are dropped. The ratio of least
    error is taken, the first among equals. So no other mask with as many zeros, ratio and levels has a smaller error.
    Nor does any order of two steps that ends in such a weight. At one scale of the narrow grid the gain grows with |w|.
    So the result differs from pruning by magnitude and then rounding if a selection covers several scale groups, by its
    clip ratios, and on other grids.
    sparsity: The share of weights to drop, in [0, 1), or Any in claims.
    bits: The bit width, 2 to 16, or Any in claims.
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row.
    per: The group of an unstructured selection, "tensor" or "row".
    group: The number of consecutive weights of a row that share a scale. None stands for one scale for the tensor.
    ratios: The clip ratios to choose from, each in (0, 1], as a text such as "1, 3/4" or a tuple. Several ratios need
        selections inside a scale group, so that every scale group can choose on its own.
    ties: The weights dropped among equal gains at the threshold: "first" (lowest index) or "any".
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    grid: The levels and the step from the largest magnitude, as of AbsMax: "narrow", "full_range", "narrow_step" or
        "clipped".
    The low-rank branch does not change and is not accounted for. Joint instead of sequential: [hu2026].
    """

    sparsity: ExactOrAny
    bits: BitsOrAny
    pattern: str = "unstructured"
    per: str = "tensor"
    group: int | None = None
    ratios: str = "1"
    ties: str = "first"
    rounding: str = "half_even"
    grid: str = "narrow"

    kernel_module: ClassVar[str] = "compcomp.kernels.joint_prune_quantize"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {
        "sparsity": ("1/2", "1/4", "3/4", "1/3"),
        "bits": (4, 3, 2, 8),
    }
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "sparsity": (Fraction(1, 4), Fraction(1, 2)),
            "bits": (3,),
            "pattern": ("unstructured", "1:2"),
            "per": ("tensor", "row"),
            "group": (None, 2),
            "ratios": ("1", "1, 1/2"),
            "ties": ("first",),
            "rounding": ("half_even",),
            "grid": ("narrow", "full_range", "clipped"),
        }
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", sparsity(self.sparsity, "JointPruneQuantize.sparsity"))
        object.__setattr__(self, "bits", bit_width(self.bits, "JointPruneQuantize.bits"))
        one_of(self.per, ("tensor", "row"), "JointPruneQuantize.per")
        grid_partition(self.group, "tensor", "JointPruneQuantize")
        object.__setattr__(self, "ratios", ", ".join(map(str, _ratios(self.ratios))))
        one_of(self.ties, TIES, "JointPruneQuantize.ties")
        one_of(self.rounding, ROUNDINGS, "JointPruneQuantize.rounding")
        one_of(self.grid, UNSIGNED, "JointPruneQuantize.grid")
        selected = self.selection.partition
        if len(self.clip_ratios) > 1 and not selected.refines(self.grid_map.partition):
            raise InputError(
                f"ratios={self.ratios!r} with a selection over {selected}",
                f"one ratio, or a selection inside {self.grid_map.partition}",
                "JointPruneQuantize",
            )

    @property
    def clip_ratios(self) -> tuple[Fraction, ...]:
        """The ratios to choose from, in their order."""
        return tuple(Fraction(text) for text in self.ratios.split(", "))

    @property
    def selection(self) -> Selection:
        """The groups and the number of weights to drop in each; the score of this selection is not used."""
        partition = selection_partition(self.pattern, self.per, self.sparsity, "JointPruneQuantize")
        return Selection(_magnitude, partition, self.sparsity, self.ties)

    @property
    def grid_map(self) -> GridMap:
        """The quantizer at ratio 1."""
        partition = grid_partition(self.group, "tensor", "JointPruneQuantize")
        levels = ANY if isinstance(self.bits, Unknown) else 2 ** (self.bits - 1) - 1
        of = GRIDS[self.grid]
        return GridMap(Abs, levels, self.rounding, partition, of.below, of.beyond)

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.selection.partition, self.grid_map.partition)

    def promises(self) -> Declared:
        selection, grid = self.selection, self.grid_map
        # A weight of largest magnitude of each group is kept then, is a value, and finds the same grid again.
        again = self.ties == "first" and selection.partition.refines(grid.partition) and max(self.clip_ratios) == 1
        again = again and not grid.beyond
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            deterministic="any" not in (self.ties, self.rounding),
            idempotent=again,
            optimum=Optimum("weight_l2", selection.partition, selection.share, grid, self.clip_ratios),
        )

    def hints(self) -> Hints:
        return Hints() if isinstance(self.bits, Unknown) else Hints(landmarks=(int(2 * self.grid_map.reach),))

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        weight, of, shape = layer.weight, self.grid_map, layer.weight.shape
        groups = self.grid_map.partition.groups(shape)
        context = np.empty(shape, dtype=object)
        for group in groups:
            shared = layer.choices.context(self.grid_map.context([weight[index] for index in group]))
            for index in group:
                context[index] = shared
        best: Outcome | None = None
        for ratio in self.clip_ratios:
            step = each(lambda c, unit=Fraction(ratio) / of.reach: c * unit, context)
            dropped, value = self._at_step(layer, step)
            best = (dropped, value, step) if best is None else _better(best, (dropped, value, step), layer, groups)
        assert best is not None
        dropped, value, step = best
        mask = each(Not, dropped)
        if layer.format.mask is not None:
            mask = each(And, layer.format.mask, mask)
        form = replace(self.selection.format_after(layer.format, mask), grid=of.grid(step, len(groups)))
        return replace(layer, weight=value, format=form)

    def _at_step(self, layer: LayerState, step: Array) -> tuple[Array, Array]:
        """Return which weights are dropped and the weights that remain (each out x in), given the grids' steps.

        The weights of least gain are dropped.
        """
        of, choices = self.grid_map, layer.choices
        value = each(lambda w, s: of.rounded(w, s, choices), layer.weight, step)
        gain = each(lambda w, q: q * (2 * w - q), layer.weight, value)
        dropped = np.empty(value.shape, dtype=object)
        for group in self.selection.partition.groups(value.shape):
            taken = smallest([gain[index] for index in group], self.selection.count(len(group)), self.ties, choices)
            for index, drop in zip(group, taken, strict=True):
                dropped[index] = drop
        return dropped, each(lambda q, drop: If(drop, 0, q), value, dropped)


def _magnitude(element: Any) -> Term:
    return Abs(element.weight)


def _ratios(given: Any) -> tuple[Fraction, ...]:
    where, allowed = "JointPruneQuantize.ratios", "numbers in (0, 1], each once, such as '1, 3/4'"
    parts = given.split(",") if isinstance(given, str) else given
    if not isinstance(parts, list | tuple) or not 0 < len(parts) <= 64:
        raise InputError(shown(given), allowed, where)
    values = tuple(number(part.strip() if isinstance(part, str) else part, where, allowed) for part in parts)
    if not all(0 < value <= 1 for value in values) or len(set(values)) < len(values):
        raise InputError(shown(given), allowed, where)
    return values


Outcome = tuple[Array, Array, Array]
"""The dropped weights (as a mask), the weight that remains, and the grid's step, each out x in."""


def _better(one: Outcome, other: Outcome, layer: LayerState, groups: list[list[Index]]) -> Outcome:
    """Return the outcome of less error in each group of weights, the first if both errors are equal."""
    dropped, value, step = (np.empty(layer.weight.shape, dtype=object) for _ in range(3))
    for group in groups:
        first, second = (_error(layer.weight, outcome[1], group) for outcome in (one, other))
        _note(first, second, _error(layer.weight, layer.weight * 0, group), layer.choices)
        for index in group:
            for field, left, right in zip((dropped, value, step), one, other, strict=True):
                field[index] = If(second < first, right[index], left[index])
    return dropped, value, step


def _error(weight: Array, value: Array, group: list[Index]) -> Term:
    return Sum((weight[index] - value[index]) * (weight[index] - value[index]) for index in group)


def _note(one: Term, other: Term, size: Term, choices: Choices) -> None:
    if reading(one, other, size) == "number" and size:
        choices.near(float(abs(one - other) / size))
