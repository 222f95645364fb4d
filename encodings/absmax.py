"""Absmax quantization: round to nearest on a symmetric grid scaled by the largest magnitude [dettmers2022]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compcomp.language.parameters import ANY, Unknown, bit_width, one_of, whole
from compcomp.language.partition import Partition
from compcomp.language.steps import GridMap
from compcomp.language.technique import Declared, Technique
from compcomp.terms import ROUNDINGS, Abs


@dataclass(frozen=True)
class AbsMax(Technique):
    """Round every weight to the nearest of ``-L * s ... L * s``, L = 2^(bits-1) - 1, s = max|w| / L.

    bits: 2 to 16, or Any in claims.
    group: how many consecutive weights of a row share a scale; None for one scale for the tensor.
    rounding: where midpoints go, "half_even", "half_up", "half_away" or "any".
    An all-zero group stays zero. Source: [dettmers2022].
    """

    bits: int | Unknown
    group: int | None = None
    rounding: str = "half_even"

    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (4, 3, 2, 8)}

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bit_width(self.bits, "AbsMax.bits"))
        if self.group is not None:
            whole(self.group, 1, 2**20, "AbsMax.group")
        one_of(self.rounding, ROUNDINGS, "AbsMax.rounding")

    @property
    def levels(self) -> int | Unknown:
        """L: how many grid values lie on each side of zero."""
        return ANY if isinstance(self.bits, Unknown) else int(2 ** (self.bits - 1) - 1)

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            deterministic=self.rounding != "any",
            landmarks=() if isinstance(self.levels, Unknown) else (2 * self.levels,),
        )

    def steps(self) -> tuple[GridMap]:
        partition = Partition.tensor() if self.group is None else Partition.blocks(self.group)
        return (GridMap(Abs, self.levels, self.rounding, partition),)
