"""4-bit floating point (E2M1): round to nearest, scaled by the largest magnitude [rouhani2023]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compcomp.language.parameters import grid_partition, one_of
from compcomp.language.steps import CodebookMap
from compcomp.language.technique import Declared, Hints, Technique
from compcomp.layers import codebooks
from compcomp.terms import ROUNDINGS, Abs


@dataclass(frozen=True)
class FP4(Technique):
    """Round every weight to the nearest of ``s * c``, s = max|w| / 6, c in 0, +-1/2, 1, 3/2, 2, 3, 4, 6 (E2M1).

    group: The number of consecutive weights of a row that share a scale. None stands for one scale for the tensor.
    rounding: The rule for midpoints: "half_even" (to the even mantissa), "half_up", "half_away" or "any".
    The scale is not rounded; MX has scales that are powers of two. An all-zero group stays zero.
    Source: [rouhani2023] (the format).
    """

    group: int | None = 32
    rounding: str = "half_even"

    kernel_module: ClassVar[str] = "compcomp.kernels.fp4"

    def __post_init__(self) -> None:
        grid_partition(self.group, "tensor", "FP4")
        one_of(self.rounding, ROUNDINGS, "FP4.rounding")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return Hints(landmarks=(24,))

    def steps(self) -> tuple[CodebookMap]:
        partition = grid_partition(self.group, "tensor", "FP4")
        return (CodebookMap(Abs, codebooks.E2M1, self.rounding, partition),)
