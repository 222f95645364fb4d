"""8-bit floating point: round to nearest, scaled by the largest magnitude [micikevicius2022]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compcomp.errors import InputError
from compcomp.language.parameters import one_of, shown, whole
from compcomp.language.steps import CodebookMap
from compcomp.language.technique import Declared, Hints, Technique
from compcomp.layers import codebooks
from compcomp.layers.partition import Partition
from compcomp.terms import ROUNDINGS, Abs

FORMATS = {"e4m3": codebooks.E4M3, "e5m2": codebooks.E5M2}


@dataclass(frozen=True)
class FP8(Technique):
    """Round every weight to the nearest of ``s * c``, s = max|w| / max|c|, c a finite value of the format.

    format: "e4m3" (up to 448, no infinities) or "e5m2" (up to 57344).
    per: The weights that share a scale: "tensor" for all of them, "row" for those of an output channel.
    group: The number of consecutive weights of a row that share a scale. If None, ``per`` decides.
    rounding: The rule for midpoints: "half_even" (to the even mantissa), "half_up", "half_away" or "any".
    The scale is not rounded. An all-zero group stays zero. Source: [micikevicius2022].
    """

    format: str = "e4m3"
    per: str = "tensor"
    group: int | None = None
    rounding: str = "half_even"

    kernel_module: ClassVar[str] = "compcomp.kernels.fp8"

    def __post_init__(self) -> None:
        one_of(self.format, tuple(FORMATS), "FP8.format")
        one_of(self.per, ("tensor", "row"), "FP8.per")
        if self.group is not None:
            whole(self.group, 1, 2**20, "FP8.group")
            if self.per != "tensor":
                raise InputError(f"group={self.group} with per={shown(self.per)}", "per='tensor' or group=None", "FP8")
        one_of(self.rounding, ROUNDINGS, "FP8.rounding")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return Hints(landmarks=(896,))

    def steps(self) -> tuple[CodebookMap]:
        whole_rows = Partition.rows() if self.per == "row" else Partition.tensor()
        partition = whole_rows if self.group is None else Partition.blocks(self.group)
        return (CodebookMap(Abs, FORMATS[self.format], self.rounding, partition),)
