"""Truncated SVD: the closest matrix of a given rank, or a low-rank correction [eckart1936, yao2023, wang2025]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compcomp.algebra.least_squares import output_target
from compcomp.algebra.low_rank import best_rank
from compcomp.errors import InputError
from compcomp.language.parameters import one_of, shown, whole
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.state import Factors, Format, LayerState

METRICS = ("weight", "output")


@dataclass(frozen=True)
class TruncatedSVD(Technique):
    """Keep the ``rank`` leading singular triples.

    rank: The rank, at least 1. A rank above min(out, in) changes nothing.
    residual: True factors the error so far, reference minus effective weight, and keeps the factors (out x rank, rank x
        in) in the low-rank branch, next to any that are there. False replaces the weight, and with it any mask, grid
        and factors, by its closest matrix of that rank.
    metric: The distance that is minimised: "weight" (|M - M'|_F) or "output" (|(M - M') X'|_F for the current inputs
        X'). The second is the data-aware truncation SVD_r(M S) S^-1 with S S^T = X' X'^T. It is written as U U^T M,
        which needs no inverse, with U the leading eigenvectors of M X' X'^T M^T. Eigenvectors of eigenvalue 0 are left
        out: if the inputs see less than ``rank`` directions of M, the rest of M goes to zero. It needs calibration
        inputs. Once a technique has changed the inputs, its residual form corrects towards W X, as distillation does.
    The residual form leaves (I - U U^T) E of an error E, U its leading left singular vectors. This is a projection from
    the left. So |E X|_F does not grow for any inputs X, as long as no technique changes them; by metric="output" not
    even then. Source: [eckart1936]; metric="output" [wang2025]; the residual form is LoRC [yao2023].
    """

    rank: int
    residual: bool = False
    metric: str = "weight"

    kernel_module: ClassVar[str] = "compcomp.kernels.truncated_svd"
    fixtures: ClassVar[Fixtures] = Fixtures(values={"metric": METRICS})

    def __post_init__(self) -> None:
        whole(self.rank, 1, 2**16, "TruncatedSVD.rank")
        if not isinstance(self.residual, bool):
            raise InputError(shown(self.residual), "True or False", "TruncatedSVD.residual")
        one_of(self.metric, METRICS, "TruncatedSVD.metric")

    @property
    def needs_inputs(self) -> bool:
        return self.metric == "output"

    def promises(self) -> Declared:
        if not self.residual:
            return Declared(zeros=frozenset({"rows", "columns"}), idempotent=True)
        # Towards W X on changed inputs, the weight may move away from the dense one.
        lessens = {"output_l2"} if self.needs_inputs else {"weight_l2", "output_l2"}
        return Declared(
            keeps=frozenset({"mask", "grid", "rank", "n:m"}),
            never_increases=frozenset(lessens),
            any_inputs=self.needs_inputs,
            no_op_on_dense=True,
            holds_reference=True,
            leaves_weight=True,
        )

    def hints(self) -> Hints:
        return Hints(trivial_side=self.rank)

    def encode(self, layer: LayerState) -> LayerState:
        gram = None
        if self.needs_inputs:
            gram = layer.gram
            if gram is None:
                raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        if not self.residual:
            closest = best_rank(layer.effective(), self.rank, layer.choices, gram)
            return replace(layer, weight=closest.left @ closest.right, format=Format(rank=self.rank))
        target = layer.reference if gram is None else output_target(layer)
        factors = best_rank(target - layer.effective(), self.rank, layer.choices, gram)
        return replace(layer, format=replace(layer.format, factors=joined_factors(layer.format.factors, factors)))


def joined_factors(first: Factors | None, more: Factors) -> Factors:
    """Return the factors of both low-rank terms together."""
    if first is None:
        return more
    return Factors(np.concatenate([first.left, more.left], axis=1), np.concatenate([first.right, more.right], axis=0))
