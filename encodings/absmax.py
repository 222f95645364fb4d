"""Absmax quantization: round to nearest on a grid scaled by the largest magnitude [dettmers2022]."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from compcomp.language.parameters import (
    ANY,
    BitsOrAny,
    Unknown,
    bit_width,
    grid_partition,
    known,
    one_of,
    parametrized,
)
from compcomp.language.steps import GridMap
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.grids import GRIDS, step_of
from compcomp.layers.partition import Partition
from compcomp.layers.scales import SCALES, scale_bits
from compcomp.layers.state import Grid, LayerState
from compcomp.terms import ROUNDINGS, Abs, nearest, nearest_mirrored


@parametrized
class AbsMax(Technique):
    """Round every weight to the nearest value of a grid around 0, with one step s for each group.

    Let L = 2^(bits-1) - 1, and m = max|w| of the group. On the grid "narrow" the values are ``-L * s ... L * s``, and s
    = m / L. On the others they are ``-(L + 1) * s ... L * s``. There s is m / (L + 1/2) for "full_range", m / L for
    "narrow_step", and m / (L + 1) for "clipped". For "signed" it is -e / (L + 1), where e is the first weight of
    magnitude m. So s may be negative, and e is a value. A weight beyond the last value goes to it.

    bits: The bit width, 2 to 16, or Any in claims.
    group: The number of consecutive weights of a row that share a scale. If None, ``per`` decides.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any". On the grid
        "signed" it applies to w / s.
    per: The weights that share a scale if there is no group: "tensor" or "channel" (an output row).
    grid: The levels and the step: "narrow" (GGUF Q8_0), "full_range" (compressed-tensors), "narrow_step" (AutoAWQ),
        "clipped" (ZeroQuant [yao2022]) or "signed" (GGUF Q4_0, AutoRound).
    scales: The format in which s is stored: "exact", "float32", "float16", "bfloat16" or "power_of_two" (E8M0). Any but
        "exact" takes the number nearest to s, midpoints to even, and at most the largest one in magnitude. Weights then
        go to the nearest of the values with that s. The largest weight may be beyond the last of them.
    An all-zero group stays zero. Source: [dettmers2022].
    """

    bits: BitsOrAny
    group: int | None = None
    rounding: str = "half_even"
    per: str = "tensor"
    grid: str = "narrow"
    scales: str = "exact"

    kernel_module: ClassVar[str] = "compcomp.kernels.absmax"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (4, 3, 2, 8)}
    # In float32 a full-range grid has its largest weights so close to a midpoint that layers count as undecided.
    fixtures: ClassVar[Fixtures] = Fixtures(values={"scales": ("exact", "float16", "bfloat16", "power_of_two")})

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bit_width(self.bits, "AbsMax.bits"))
        grid_partition(self.group, self.per, "AbsMax")
        one_of(self.rounding, ROUNDINGS, "AbsMax.rounding")
        one_of(self.grid, tuple(GRIDS), "AbsMax.grid")
        one_of(self.scales, tuple(SCALES), "AbsMax.scales")

    @property
    def levels(self) -> int | Unknown:
        """L, the number of grid values above zero."""
        return ANY if isinstance(self.bits, Unknown) else int(2 ** (self.bits - 1) - 1)

    @property
    def partition(self) -> Partition:
        return grid_partition(self.group, self.per, "AbsMax")

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.partition,)

    def promises(self) -> Declared:
        signed, exact = GRIDS[self.grid].signed, self.scales == "exact"
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            zeros=frozenset({"weights", "rows", "columns"} if signed or not exact else ()),
            idempotent=signed and exact,
            homogeneous=exact,
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        levels, of = self.levels, GRIDS[self.grid]
        return Hints() if isinstance(levels, Unknown) else Hints(landmarks=(int(2 * of.reach(levels)),))

    def steps(self) -> tuple[GridMap, ...]:
        of = GRIDS[self.grid]
        if of.signed or self.scales != "exact":  # no map with a measure sees a sign, or has a step of some format
            return ()
        return (GridMap(Abs, self.levels, self.rounding, self.partition, of.below, of.beyond),)

    def encode_as_a_whole(self, layer: LayerState) -> LayerState:
        of, levels = GRIDS[self.grid], known(self.levels, "AbsMax.bits")
        to = nearest_mirrored if of.signed else nearest
        weight, step = (np.empty(layer.weight.shape, dtype=object) for _ in range(2))
        groups = self.partition.groups(layer.weight.shape)
        for group in groups:
            unit = step_of([layer.weight[index] for index in group], of, levels, self.scales, layer.choices)
            for index in group:
                weight[index] = to(layer.weight[index], unit, levels, self.rounding, layer.choices, of.below)
                step[index] = unit
        grid = Grid(step, levels, len(groups), scale_bits=scale_bits(self.scales), below=of.below)
        return replace(layer, weight=weight, format=replace(layer.format, grid=grid, rank=None))
