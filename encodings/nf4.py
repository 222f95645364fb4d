"""4-bit NormalFloat: round to nearest among normal quantiles, scaled by the largest magnitude [dettmers2023]."""

from __future__ import annotations

from dataclasses import dataclass

from compcomp.language import codebooks
from compcomp.language.parameters import one_of, whole
from compcomp.language.partition import Partition
from compcomp.language.steps import CodebookMap
from compcomp.language.technique import Declared, Technique
from compcomp.terms import ROUNDINGS, Abs


@dataclass(frozen=True)
class NF4(Technique):
    """Round every weight to the nearest of ``s * c``, s = max|w|, c one of the 16 values of 4-bit NormalFloat.

    The table (:data:`compcomp.language.codebooks.NF4`) holds -1, 0 and 1; its other negative values are not those of
    its positive ones.
    group: how many consecutive weights of a row share a scale; None for one scale for the tensor.
    rounding: where midpoints go, "half_even" (an even number of values from 0), "half_up", "half_away" or "any".
    An all-zero group stays zero. Source: [dettmers2023].
    """

    group: int | None = 64
    rounding: str = "half_even"

    def __post_init__(self) -> None:
        if self.group is not None:
            whole(self.group, 1, 2**20, "NF4.group")
        one_of(self.rounding, ROUNDINGS, "NF4.rounding")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            deterministic=self.rounding != "any",
            landmarks=(1000,),
        )

    def steps(self) -> tuple[CodebookMap]:
        partition = Partition.tensor() if self.group is None else Partition.blocks(self.group)
        return (CodebookMap(Abs, codebooks.NF4, self.rounding, partition),)
