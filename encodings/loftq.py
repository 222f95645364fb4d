"""LoftQ: quantized weights and a low-rank branch that are fitted to each other in turn [li2023]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from compcomp.algebra.low_rank import best_rank
from compcomp.language.parameters import bit_width, grid_partition, one_of, whole
from compcomp.language.steps import GridMap
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.partition import Partition
from compcomp.layers.state import Format, LayerState
from compcomp.terms import ROUNDINGS, Abs


@dataclass(frozen=True)
class LoftQ(Technique):
    """Repeat Q = quant(W - L), L = SVD_r(W - Q), starting from L = 0; Q becomes the weight, L the low-rank branch.

    W (out x in) is the current effective weight. Its mask, grid and factors are replaced, as L is dense. quant rounds
    to the nearest of ``-K * s ... K * s``, K = 2^(bits-1) - 1, s = max|w| / K of its group.
    bits: The bit width, 2 to 16.
    rank: The rank of L, at least 1.
    rounds: The number of rounds, at least 1. More need not be better, as the scale changes too (with 2 bits they often
        are worse).
    group: The number of consecutive weights of a row that share a scale. None stands for one scale for the tensor.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    Differs from the published code in the grid, which is uniform here; the published code has NF4 as well. Source:
    [li2023].
    """

    bits: int
    rank: int
    rounds: int = 5
    group: int | None = None
    rounding: str = "half_even"

    kernel_module: ClassVar[str] = "compcomp.kernels.loftq"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "bits": (2, 3),
            "rank": (1, 2),
            "rounds": (1, 3),
            "group": (None, 2),
            "rounding": ("half_even",),
        }
    )

    def __post_init__(self) -> None:
        whole(bit_width(self.bits, "LoftQ.bits"), 2, 16, "LoftQ.bits")
        whole(self.rank, 1, 2**16, "LoftQ.rank")
        whole(self.rounds, 1, 1000, "LoftQ.rounds")
        grid_partition(self.group, "tensor", "LoftQ")
        one_of(self.rounding, ROUNDINGS, "LoftQ.rounding")

    @property
    def grid_map(self) -> GridMap:
        """The quantizer."""
        partition = grid_partition(self.group, "tensor", "LoftQ")
        return GridMap(Abs, 2 ** (self.bits - 1) - 1, self.rounding, partition)

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.grid_map.partition,)

    def promises(self) -> Declared:
        return Declared(
            zeros=frozenset({"rows", "columns"}),
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return Hints(landmarks=(2 * self.grid_map.known_levels,), trivial_side=self.rank)

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        target = layer.effective()
        low = target * 0
        for _ in range(self.rounds):
            quantized = self.grid_map.apply(replace(layer, weight=target - low, format=Format()))
            factors = best_rank(target - quantized.weight, self.rank, layer.choices)
            low = factors.left @ factors.right
        return replace(quantized, format=replace(quantized.format, factors=factors))
