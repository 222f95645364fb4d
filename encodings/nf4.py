"""4-bit NormalFloat: round to nearest among normal quantiles, scaled by the largest magnitude [dettmers2023]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

from compcomp.language.parameters import grid_partition, one_of
from compcomp.language.steps import CodebookMap
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers import codebooks
from compcomp.layers.partition import Partition
from compcomp.layers.state import Grid, LayerState
from compcomp.terms import ROUNDINGS, Abs, Choices, Div, Max, Sum, Term, each, nearest_code

SCALES = ("exact", "double")
BLOCK = 256
"""The number of scales that are rounded together."""


@dataclass(frozen=True)
class NF4(Technique):
    """Round every weight to the nearest of ``s * c``, s = max|w|, c one of the 16 values of 4-bit NormalFloat.

    The table (:data:`compcomp.layers.codebooks.NF4`) contains -1, 0 and 1. Its other negative values are not the
    negatives of its positive ones.
    group: The number of consecutive weights of a row that share a scale. None stands for one scale for the tensor.
    scales: "exact", or "double", which chooses codes with the exact scales and then rounds the scales. Their mean is
        subtracted. In each run of 256 scales (row-major) the difference is rounded to the nearest of d * c, d its
        largest magnitude in the run and c an 8-bit dynamic value (midpoints half_even). The mean is then added, and
        negative results become 0.
    rounding: The rule for midpoints: "half_even" (an even number of values from 0), "half_up", "half_away" or "any".
    An all-zero group stays zero. Source: [dettmers2023].
    """

    group: int | None = 64
    rounding: str = "half_even"
    scales: str = "exact"

    kernel_module: ClassVar[str] = "compcomp.kernels.nf4"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "group": (None, 2),
            "rounding": ("half_even", "half_away", "any"),
            "scales": SCALES,
        }
    )

    def __post_init__(self) -> None:
        grid_partition(self.group, "tensor", "NF4")
        one_of(self.rounding, ROUNDINGS, "NF4.rounding")
        one_of(self.scales, SCALES, "NF4.scales")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return Hints(landmarks=(1000,))

    @property
    def step_map(self) -> CodebookMap:
        """The map that chooses the codes."""
        partition = grid_partition(self.group, "tensor", "NF4")
        return CodebookMap(Abs, codebooks.NF4, self.rounding, partition)

    def steps(self) -> tuple[CodebookMap, ...]:
        return (self.step_map,) if self.scales == "exact" else ()

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.step_map.partition,)

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        layer = self.step_map.apply(layer)
        if self.scales == "exact":
            return layer
        assert layer.format.grid is not None
        exact, stored = layer.format.grid.step, layer.format.grid.step.copy()
        groups = self.step_map.partition.groups(layer.weight.shape)
        for group, scale in zip(groups, rounded_scales([exact[g[0]] for g in groups], layer.choices), strict=True):
            for index in group:
                stored[index] = scale
        weight = each(lambda w, s, t: Div(w, s) * t, layer.weight, exact, stored)
        grid = self.stored_grid(replace(layer.format.grid, step=stored))
        return replace(layer, weight=weight, format=replace(layer.format, grid=grid))

    def stored_grid(self, grid: Grid) -> Grid:
        """Return the grid of rounded scales: 8 bits for each, and 32 for each run of 256 of them and for their mean."""
        return replace(grid, scale_bits=8, shared_bits=32 * (-(-grid.scales // BLOCK) + 1))


def rounded_scales(scales: list[Term], choices: Choices) -> list[Term]:
    """Return the scales of all groups after their second quantization."""
    mean = Sum(scales) * Fraction(1, len(scales))
    found = []
    for start in range(0, len(scales), BLOCK):
        apart = [scale - mean for scale in scales[start : start + BLOCK]]
        largest = Max(map(Abs, apart))
        found += [Max([0, mean + nearest_code(x, largest, codebooks.DYNAMIC8, "half_even", choices)]) for x in apart]
    return found
