"""Absmax quantization: round to nearest on a grid scaled by the largest magnitude [dettmers2022]."""

from __future__ import annotations

from typing import ClassVar

from compcomp.language.parameters import ANY, BitsOrAny, Unknown, bit_width, grid_partition, one_of, parametrized
from compcomp.language.steps import GridMap
from compcomp.language.technique import Declared, Hints, Technique
from compcomp.layers.grids import GRIDS
from compcomp.terms import ROUNDINGS, Abs


@parametrized
class AbsMax(Technique):
    """Round every weight to the nearest value of a grid around 0, with one step s for each group.

    With L = 2^(bits-1) - 1 and m = max|w| of the group, the values are ``-L * s ... L * s`` and s = m / L (grid
    "narrow"), or ``-(L + 1) * s ... L * s`` and s = m / (L + 1/2) ("full_range"), m / L ("narrow_step") or m / (L + 1)
    ("clipped"). A weight beyond the last value goes to it.

    bits: The bit width, 2 to 16, or Any in claims.
    group: The number of consecutive weights of a row that share a scale. If None, ``per`` decides.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    per: The weights that share a scale if there is no group: "tensor" or "channel" (an output row).
    grid: The levels and the step: "narrow" (GGUF Q8_0), "full_range" (compressed-tensors), "narrow_step" (AutoAWQ) or
        "clipped" (ZeroQuant [yao2022]).
    An all-zero group stays zero. Source: [dettmers2022].
    """

    bits: BitsOrAny
    group: int | None = None
    rounding: str = "half_even"
    per: str = "tensor"
    grid: str = "narrow"

    kernel_module: ClassVar[str] = "compcomp.kernels.absmax"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (4, 3, 2, 8)}

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bit_width(self.bits, "AbsMax.bits"))
        grid_partition(self.group, self.per, "AbsMax")
        one_of(self.rounding, ROUNDINGS, "AbsMax.rounding")
        one_of(self.grid, [name for name, of in GRIDS.items() if not of.signed], "AbsMax.grid")

    @property
    def levels(self) -> int | Unknown:
        """L, the number of grid values above zero."""
        return ANY if isinstance(self.bits, Unknown) else int(2 ** (self.bits - 1) - 1)

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return Hints() if isinstance(self.levels, Unknown) else Hints(landmarks=(int(2 * self.steps()[0].reach),))

    def steps(self) -> tuple[GridMap]:
        partition, of = grid_partition(self.group, self.per, "AbsMax"), GRIDS[self.grid]
        return (GridMap(Abs, self.levels, self.rounding, partition, of.below, of.beyond),)
