"""Microscaling formats: small blocks that share a power of two as their scale [rouhani2023]."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from compcomp.language.parameters import one_of, whole
from compcomp.language.steps import CodebookMap
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers import codebooks
from compcomp.layers.partition import Partition
from compcomp.terms import ROUNDINGS, Abs

FORMATS = {
    "mxfp4": codebooks.E2M1,
    "mxfp6_e2m3": codebooks.E2M3,
    "mxfp6_e3m2": codebooks.E3M2,
    "mxfp8_e4m3": codebooks.E4M3,
    "mxfp8_e5m2": codebooks.E5M2,
    "mxint8": codebooks.whole_codes(127, Fraction(1, 64)),
}


@dataclass(frozen=True)
class MX(Technique):
    """Round every weight to the nearest of ``s * c``, s = 2^(floor(log2 max|w|) - e), c a value of the element format.

    e is the exponent of the format's largest value: 2 for E2M1 and E2M3, 4 for E3M2, 8 for E4M3, 15 for E5M2, 0 for
    int8 (k / 64, |k| <= 127; the optional -2 is left out). A weight beyond the last value goes to it.
    format: "mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2" or "mxint8".
    group: The number of consecutive weights of a row that share a scale; 32 in the specification.
    rounding: The rule for midpoints: "half_even" (to the even mantissa), "half_up", "half_away" or "any".
    The scale is not limited to the specification's range, 2^-127 to 2^127. An all-zero group stays zero. Source:
    [rouhani2023].
    """

    format: str = "mxfp4"
    group: int = 32
    rounding: str = "half_even"

    kernel_module: ClassVar[str] = "compcomp.kernels.mx"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "format": tuple(FORMATS),
            "group": (2, 4),
            "rounding": ("half_even", "half_away", "any"),
        }
    )

    def __post_init__(self) -> None:
        one_of(self.format, tuple(FORMATS), "MX.format")
        whole(self.group, 1, 2**20, "MX.group")
        one_of(self.rounding, ROUNDINGS, "MX.rounding")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            homogeneous=False,
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return Hints(landmarks=(28,))

    def steps(self) -> tuple[CodebookMap]:
        return (CodebookMap(Abs, FORMATS[self.format], self.rounding, Partition.blocks(self.group), "power_of_two"),)
