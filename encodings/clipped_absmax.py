"""Absmax quantization with clipping: of a list of scales, the one that loses least in each group [nagel2021]."""

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

    r is the one of 1, 1 - d, 1 - 2d, ..., ``smallest``, with d = (1 - smallest) / ratios, for which the sum of
    (w - rounded w)^2 over the group's weights, as they are found, is least; of equals the largest. So it loses no more
    than absmax (r = 1) of the weights that it finds. A weight beyond L * s goes to it.
    bits: 2 to 16. group: how many consecutive weights of a row share a scale; None for one scale for the tensor.
    smallest: in (0, 1]. ratios: how many of them are tried beside 1, 1 to 1000.
    rounding: where midpoints go, "half_even", "half_up", "half_away" or "any".
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
        """L: how many grid values lie on each side of zero."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def tried_ratios(self) -> list[Fraction]:
        """The ratios, from 1 down, each once."""
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
        """The values and the step of the ratio that loses least."""
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
    """How far floats are from choosing another ratio."""
    if reading(loss, least) == "number" and loss + least:
        choices.near(float(abs(loss - least) / (loss + least)))
