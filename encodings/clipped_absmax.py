"""Absmax quantization with clipping: each group takes the scale of least error from a list [nagel2021]."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.language.parameters import Exact, default, grid_partition, number, one_of, parametrized, shown, whole
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.partition import Partition
from compcomp.layers.state import Grid, LayerState
from compcomp.terms import ROUNDINGS, Abs, Choices, Div, If, Max, Sum, Term, nearest, reading


@parametrized
class ClippedAbsMax(Technique):
    """Round every weight to the nearest of ``-L * s ... L * s``, L = 2^(bits-1) - 1, s = r max|w| / L, r by group.

    The ratio r is one of 1, 1 - d, 1 - 2d, ..., ``smallest``, with d = (1 - smallest) / ratios. It minimises the sum of
    (w - rounded w)^2 over the group's current weights; among equal sums the largest r is taken. So the error against
    the current weights is at most that of absmax (r = 1). A weight beyond L * s goes to it.
    bits: The bit width, 2 to 16.
    group: The number of consecutive weights of a row that share a scale. None stands for one scale for the tensor.
    smallest: The smallest ratio, in (0, 1].
    ratios: The number of ratios that are tried besides 1, 1 to 1000.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    An all-zero group stays zero. Source: [nagel2021] (range setting by mean squared error).
    """

    bits: int
    group: int | None = None
    smallest: Exact = default(Fraction(1, 2))
    ratios: int = 10
    rounding: str = "half_even"

    kernel_module: ClassVar[str] = "compcomp.kernels.clipped_absmax"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "bits": (3,),
            "group": (None, 2),
            "ratios": (4,),
            "rounding": ("half_even", "half_up", "any"),
        }
    )

    def __post_init__(self) -> None:
        whole(self.bits, 2, 16, "ClippedAbsMax.bits")
        grid_partition(self.group, "tensor", "ClippedAbsMax")
        allowed = "a number in (0, 1] such as 1/2"
        smallest = number(self.smallest, "ClippedAbsMax.smallest", allowed)
        if not 0 < smallest <= 1:
            raise InputError(shown(self.smallest), allowed, "ClippedAbsMax.smallest")
        object.__setattr__(self, "smallest", smallest)
        whole(self.ratios, 1, 1000, "ClippedAbsMax.ratios")
        one_of(self.rounding, ROUNDINGS, "ClippedAbsMax.rounding")

    @property
    def levels(self) -> int:
        """L, the number of grid values on each side of zero."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def tried_ratios(self) -> list[Fraction]:
        """The distinct ratios, from 1 downwards."""
        found = [1 - (1 - self.smallest) * Fraction(k, self.ratios) for k in range(self.ratios + 1)]
        return list(dict.fromkeys(found))

    @property
    def partition(self) -> Partition:
        return grid_partition(self.group, "tensor", "ClippedAbsMax")

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.partition,)

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            deterministic=self.rounding != "any",
            idempotent=True,
        )

    def hints(self) -> Hints:
        return Hints(landmarks=(2 * self.levels,))

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        weight, step = (np.empty(layer.weight.shape, dtype=object) for _ in range(2))
        groups = self.partition.groups(layer.weight.shape)
        for group in groups:
            values, unit = self._best([layer.weight[index] for index in group], layer.choices)
            for index, value in zip(group, values, strict=True):
                weight[index], step[index] = value, unit
        form = replace(layer.format, grid=Grid(step, self.levels, len(groups)), rank=None)
        return replace(layer, weight=weight, format=form)

    def _best(self, weights: list[Term], choices: Choices) -> tuple[list[Term], Term]:
        """Return the values and the step of the ratio of least error."""
        largest = Max(map(Abs, weights))
        best: tuple[Term, list[Term], Term] | None = None
        for ratio in self.tried_ratios:
            step = Div(largest * ratio, self.levels)
            values = [nearest(w, step, self.levels, self.rounding, choices) for w in weights]
            loss = Sum((w - v) * (w - v) for w, v in zip(weights, values, strict=True))
            if best is None:
                best = loss, values, step
                continue
            least, kept, unit = best
            _note(loss, least, choices)
            better = loss < least
            chosen = [If(better, v, u) for v, u in zip(values, kept, strict=True)]
            best = If(better, loss, least), chosen, If(better, step, unit)
        assert best is not None
        return best[1], best[2]


def _note(loss: Term, least: Term, choices: Choices) -> None:
    """Record how close floats are to choosing another ratio."""
    if reading(loss, least) == "number" and loss + least:
        choices.near(float(abs(loss - least) / (loss + least)))
