"""LoSparse: a low-rank branch and the remainder, of which whole rows are pruned [li2023b]."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.algebra.low_rank import best_rank
from compcomp.errors import InputError
from compcomp.language.parameters import Exact, number, one_of, parametrized, whole
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.state import Format, LayerState
from compcomp.terms import TIES, If, Not, Sum, each, smallest


@parametrized
class LoSparse(Technique):
    """Split the effective weight W into L = SVD_r(W) and S = W - L, and set whole rows of S to zero.

    L becomes the factors (out x rank, rank x in), S the weight under its mask. Any mask, grid and factors from before
    are replaced. Of the out / size runs of ``size`` consecutive rows, the ``int(out / size * sparsity)`` of least
    squared norm are dropped. Their outputs are those of L, so that no row is cut from the layer.
    rank: The rank of L, at least 1.
    sparsity: The share of rows to drop, in [0, 1).
    size: The number of rows that are dropped together, such as those of a head.
    ties: The runs dropped among equal norms at the threshold: "first" (lowest index), "all" or "any".
    Differs from the published code in the score, which there is the sensitivity of a training loss. It also does no
    training. Source: [li2023b].
    """

    rank: int
    sparsity: Exact
    size: int = 1
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.losparse"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "rank": (1, 2),
            "sparsity": (Fraction(1, 3), Fraction(1, 2)),
            "size": (1, 2),
            "ties": ("first",),
        }
    )

    def __post_init__(self) -> None:
        whole(self.rank, 1, 2**16, "LoSparse.rank")
        share = number(self.sparsity, "LoSparse.sparsity", "a number in [0, 1) such as 1/2 or 0.5")
        if not 0 <= share < 1:
            raise InputError(str(share), "a number in [0, 1) such as 1/2 or 0.5", "LoSparse.sparsity")
        object.__setattr__(self, "sparsity", share)
        whole(self.size, 1, 2**20, "LoSparse.size")
        one_of(self.ties, TIES, "LoSparse.ties")

    @property
    def row_unit(self) -> int:
        return self.size

    def check(self, shape: tuple[int, ...]) -> None:
        if shape[0] % self.size:
            raise InputError(f"{shape[0]} rows", f"rows that divide into runs of {self.size}", str(self))

    def promises(self) -> Declared:
        return Declared(deterministic=self.ties != "any")

    def hints(self) -> Hints:
        return Hints(trivial_side=self.rank)

    def count(self, rows: int) -> int:
        """Return how many runs of a weight with this many rows are dropped."""
        return int(rows // self.size * self.sparsity)

    def dropped(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        return (self.count(shape[0]), shape[0] // self.size) if self.sparsity else None

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        weight = layer.effective()
        factors = best_rank(weight, self.rank, layer.choices)
        rest = weight - factors.left @ factors.right
        runs = rest.reshape(len(rest) // self.size, -1)
        norms = [Sum(x * x for x in run) for run in runs]
        taken = smallest(norms, self.count(len(rest)), self.ties, layer.choices)
        dropped = np.empty(rest.shape, dtype=object)
        for index in np.ndindex(*rest.shape):
            dropped[index] = taken[index[0] // self.size]
        kept = each(lambda w, drop: If(drop, 0, w), rest, dropped)
        return replace(layer, weight=kept, format=Format(mask=each(Not, dropped), factors=factors))
