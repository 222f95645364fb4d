"""Absmax quantization: round to nearest on a symmetric grid scaled by the largest magnitude [dettmers2022]."""

from __future__ import annotations

from typing import ClassVar

from compcomp.language.parameters import ANY, BitsOrAny, Unknown, bit_width, grid_partition, one_of, parametrized
from compcomp.language.steps import GridMap
from compcomp.language.technique import Declared, Hints, Technique
from compcomp.terms import ROUNDINGS, Abs


@parametrized
class AbsMax(Technique):
    """Round every weight to the nearest of ``-L * s ... L * s``, L = 2^(bits-1) - 1, s = max|w| / L.

    bits: The bit width, 2 to 16, or Any in claims.
    group: The number of consecutive weights of a row that share a scale. If None, ``per`` decides.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    per: The weights that share a scale if there is no group: "tensor" or "channel" (an output row).
    An all-zero group stays zero. Source: [dettmers2022].
    """

    bits: BitsOrAny
    group: int | None = None
    rounding: str = "half_even"
    per: str = "tensor"

    kernel_module: ClassVar[str] = "compcomp.kernels.absmax"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (4, 3, 2, 8)}

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bit_width(self.bits, "AbsMax.bits"))
        grid_partition(self.group, self.per, "AbsMax")
        one_of(self.rounding, ROUNDINGS, "AbsMax.rounding")

    @property
    def levels(self) -> int | Unknown:
        """L, the number of grid values on each side of zero."""
        return ANY if isinstance(self.bits, Unknown) else int(2 ** (self.bits - 1) - 1)

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return Hints() if isinstance(self.levels, Unknown) else Hints(landmarks=(2 * self.levels,))

    def steps(self) -> tuple[GridMap]:
        partition = grid_partition(self.group, self.per, "AbsMax")
        return (GridMap(Abs, self.levels, self.rounding, partition),)
