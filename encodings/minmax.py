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

    bits: 2 to 16, or Any in claims.
    group: how many consecutive weights of a row share range and scale; None for what ``per`` says.
    zero: "exact", the range is [min(w, 0), max(w, 0)], s = (high - low) / (2^bits - 1), the zero point is
        z = -round(low / s), and the values are (k - z) s, k = 0 ... 2^bits - 1: 0 is one of them. "none", the range is
        [min(w), max(w)] and the values are low + k s: 0 is in general none of them.
    rounding: where midpoints go, "half_even", "half_up", "half_away" or "any": of w / s and low / s (zero="exact") or
        of (w - low) / s (zero="none").
    per: "tensor" or "channel" (an output row), what shares range and scale where there is no group.
    A weight beyond the last value goes to it. Where the range is a point (all weights 0; with zero="none", all equal)
    the weights stay as they are. Source: [jacob2018].
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
        """How many values of the grid lie above the least."""
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
