"""Block floating point: whole mantissas in blocks that share an exponent [drumond2018]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compcomp.language.parameters import grid_partition, one_of, whole
from compcomp.language.steps import CodebookMap
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers import codebooks
from compcomp.terms import ROUNDINGS, Abs


@dataclass(frozen=True)
class BlockFloatingPoint(Technique):
    """Round every weight to the nearest of ``s * k``, ``|k| <= 2^(bits-1) - 1``, s = 2^(floor(log2 max|w|) - bits + 2).

    The largest magnitude of a block uses all bits of its mantissa; if it rounds to 2^(bits-1), it goes to the last
    value.
    bits: The bits of a mantissa with its sign, 2 to 8.
    group: The number of consecutive weights of a row that share an exponent. None stands for one exponent for the
        tensor.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    The exponent has no limits. An all-zero group stays zero. Source: [drumond2018].
    """

    bits: int
    group: int | None = 16
    rounding: str = "half_even"

    kernel_module: ClassVar[str] = "compcomp.kernels.block_floating_point"
    fixtures: ClassVar[Fixtures] = Fixtures(values={"bits": (2, 3, 4, 8), "rounding": ("half_even", "half_up", "any")})

    def __post_init__(self) -> None:
        whole(self.bits, 2, 8, "BlockFloatingPoint.bits")
        grid_partition(self.group, "tensor", "BlockFloatingPoint")
        one_of(self.rounding, ROUNDINGS, "BlockFloatingPoint.rounding")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            homogeneous=False,
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return Hints(landmarks=(2 ** (self.bits - 1) - 1, 2 ** (self.bits + 1) - 1))

    def steps(self) -> tuple[CodebookMap]:
        partition = grid_partition(self.group, "tensor", "BlockFloatingPoint")
        codes = codebooks.whole_codes(2 ** (self.bits - 1) - 1)
        return (CodebookMap(Abs, codes, self.rounding, partition, "power_of_two"),)
