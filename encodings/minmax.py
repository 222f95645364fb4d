"""Min-max quantization: round to nearest on an asymmetric grid between the least and the largest weight [jacob2018]."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from compcomp.language.parameters import (
    ANY,
    BitsOrAny,
    Unknown,
    grid_partition,
    is_unknown,
    one_of,
    parametrized,
    whole,
)
from compcomp.language.steps import RangeMap
from compcomp.language.technique import Declared, Hints, Technique
from compcomp.layers.partition import Partition
from compcomp.layers.scales import SCALES, scale_bits, stored
from compcomp.layers.state import Grid, LayerState
from compcomp.terms import ROUNDINGS, Div, Max

ZEROS = ("exact", "none")


@parametrized
class MinMax(Technique):
    """Round every weight to the nearest of 2^bits values, evenly spaced over the range of its group.

    bits: The bit width, 2 to 16, or Any in claims.
    group: The number of consecutive weights of a row that share range and scale. If None, ``per`` decides.
    zero: "exact": the range is [min(w, 0), max(w, 0)], s = (high - low) / (2^bits - 1), the zero point is z =
        -round(low / s), and the values are (k - z) s, k = 0 ... 2^bits - 1. One of them is 0. "none": the range is
        [min(w), max(w)] and the values are low + k s. In general none of them is 0.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any". It applies to w / s and low / s
        (zero="exact") or to (w - low) / s (zero="none").
    per: The weights that share range and scale if there is no group: "tensor" or "channel" (an output row).
    scales: The format in which s is stored, and low with zero="none" (GGUF Q4_1 has "float16"): "exact", "float32",
        "float16", "bfloat16" or, with zero="exact", "power_of_two" (E8M0). Any but "exact" takes the nearest number,
        midpoints to even, and at most the largest one in magnitude. Zero point and values follow from what is stored.
        The zero point is at most 2^bits - 1.
    A weight beyond the last value goes to it. If the range is a point, the weights do not change (all weights are 0,
    or, with zero="none", all are equal) but for the rounding of low. Source: [jacob2018].
    """

    bits: BitsOrAny
    group: int | None = None
    zero: str = "exact"
    rounding: str = "half_even"
    per: str = "tensor"
    scales: str = "exact"

    kernel_module: ClassVar[str] = "compcomp.kernels.minmax"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (4, 3, 2, 8)}

    def __post_init__(self) -> None:
        if is_unknown(self.bits):
            object.__setattr__(self, "bits", ANY)
        else:
            whole(self.bits, 2, 16, "MinMax.bits")
        grid_partition(self.group, self.per, "MinMax")
        one_of(self.zero, ZEROS, "MinMax.zero")
        one_of(self.rounding, ROUNDINGS, "MinMax.rounding")
        allowed = [scales for scales in SCALES if self.zero == "exact" or scales != "power_of_two"]
        one_of(self.scales, allowed, "MinMax.scales")

    @property
    def levels(self) -> int | Unknown:
        """The number of grid values above the least one."""
        return ANY if isinstance(self.bits, Unknown) else int(2**self.bits - 1)

    def promises(self) -> Declared:
        zero, exact = self.zero == "exact", self.scales == "exact"
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"} if zero else {"factors"}),
            zeros=frozenset({"weights", "rows", "columns"} if zero and not exact else ()),
            homogeneous=exact,
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return Hints() if isinstance(self.levels, Unknown) else Hints(landmarks=(self.levels, self.levels + 2))

    @property
    def step_map(self) -> RangeMap:
        """The map with an exact step."""
        partition = grid_partition(self.group, self.per, "MinMax")
        return RangeMap(self.levels, self.rounding, partition, self.zero == "exact")

    def steps(self) -> tuple[RangeMap, ...]:
        return (self.step_map,) if self.scales == "exact" else ()

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.step_map.partition,)

    def encode_as_a_whole(self, layer: LayerState) -> LayerState:
        weight, step, offset = (np.empty(layer.weight.shape, dtype=object) for _ in range(3))
        of, choices = self.step_map, layer.choices
        levels, groups = of.known_levels, of.partition.groups(layer.weight.shape)
        for group in groups:
            low, high = of.bounds([layer.weight[index] for index in group])
            unit = stored(Div(high - low, levels), self.scales, choices)
            least = of.offset(low, unit, levels, choices) if of.zero else stored(low, self.scales, choices)
            for index in group:
                value = of.value(layer.weight[index], least, unit, levels, choices)
                weight[index] = value if of.zero else Max([value, least])  # a stored minimum may be above the least
                step[index], offset[index] = unit, least
        grid = Grid(step, levels, len(groups), offset, of.zero, scale_bits=scale_bits(self.scales))
        return replace(layer, weight=weight, format=replace(layer.format, grid=grid, rank=None))
