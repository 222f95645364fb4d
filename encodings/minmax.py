"""Min-max quantization: round to nearest on an asymmetric grid between the least and the largest weight [jacob2018]."""

from __future__ import annotations

from typing import ClassVar

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
from compcomp.terms import ROUNDINGS

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
    A weight beyond the last value goes to it. If the range is a point, the weights do not change (all weights are 0,
    or, with zero="none", all are equal). Source: [jacob2018].
    """

    bits: BitsOrAny
    group: int | None = None
    zero: str = "exact"
    rounding: str = "half_even"
    per: str = "tensor"

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

    @property
    def levels(self) -> int | Unknown:
        """The number of grid values above the least one."""
        return ANY if isinstance(self.bits, Unknown) else int(2**self.bits - 1)

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"} if self.zero == "exact" else {"factors"}),
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return Hints() if isinstance(self.levels, Unknown) else Hints(landmarks=(self.levels, self.levels + 2))

    def steps(self) -> tuple[RangeMap]:
        partition = grid_partition(self.group, self.per, "MinMax")
        return (RangeMap(self.levels, self.rounding, partition, self.zero == "exact"),)
