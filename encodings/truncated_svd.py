"""Truncated SVD: the closest matrix of a given rank, or a low-rank correction [eckart1936, yao2023]."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from compcomp.errors import InputError
from compcomp.language.algebra import best_rank
from compcomp.language.layer import Factors, Format, LayerState
from compcomp.language.parameters import shown, whole
from compcomp.language.technique import Declared, Technique


@dataclass(frozen=True)
class TruncatedSVD(Technique):
    """Keep the ``rank`` leading singular triples.

    rank: at least 1; a rank above min(out, in) changes nothing.
    residual: True factors what is lost so far, reference minus effective weight, and keeps the factors
    (out x rank, rank x in) beside the weight, next to any that are there. False replaces the weight, and
    with it any mask, grid and factors, by its closest matrix of that rank.
    The residual form leaves (I - U U^T) E of an error E, U its leading left singular vectors: a projection
    from the left, so |E X|_F does not grow for any inputs X, as long as no technique changes them.
    Source: [eckart1936]; the residual form is LoRC [yao2023].
    """

    rank: int
    residual: bool = False

    def __post_init__(self) -> None:
        whole(self.rank, 1, 2**16, "TruncatedSVD.rank")
        if not isinstance(self.residual, bool):
            raise InputError(shown(self.residual), "True or False", "TruncatedSVD.residual")

    def promises(self) -> Declared:
        if self.residual:
            return Declared(
                keeps=frozenset({"mask", "grid", "rank"}),
                never_increases=frozenset({"weight_l2", "output_l2"}),
                rests=True,
                holds_reference=True,
                leaves_weight=True,
                trivial_side=self.rank,
            )
        return Declared(keeps=frozenset({"rank"}), trivial_side=self.rank)

    def encode(self, layer: LayerState) -> LayerState:
        if not self.residual:
            closest = best_rank(layer.effective(), self.rank, layer.choices)
            return replace(layer, weight=closest.left @ closest.right, format=Format(rank=self.rank))
        factors = best_rank(layer.reference - layer.effective(), self.rank, layer.choices)
        if (beside := layer.format.factors) is not None:
            factors = Factors(
                np.concatenate([beside.left, factors.left], axis=1),
                np.concatenate([beside.right, factors.right], axis=0),
            )
        return replace(layer, format=replace(layer.format, factors=factors))
