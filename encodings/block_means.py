"""A low-rank branch of block means: the error so far, averaged over runs of columns [huang2024]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.encodings.truncated_svd import joined_factors
from compcomp.errors import InputError
from compcomp.language.parameters import whole
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.state import Factors, LayerState
from compcomp.terms import Div, Sum


@dataclass(frozen=True)
class BlockMeans(Technique):
    """Add M C in the low-rank branch: M (out x rank) has each row's mean errors over ``rank`` equal runs of columns.

    The error is reference minus effective weight; after pruning, these are the pruned weights. C (rank x in) is 1 where
    a column belongs to a run. The error that remains has mean 0 over each run of a row. As this is a projection, |W -
    W'|_F does not grow.
    rank: At least 1; it divides the number of columns.
    Source: the low-rank branch of AST before its training [huang2024], as a step after AdaptiveSparseTraining or any
    other pruning.
    """

    rank: int

    kernel_module: ClassVar[str] = "compcomp.kernels.block_means"
    fixtures: ClassVar[Fixtures] = Fixtures(values={"rank": (1, 2, 4)})
    declared: ClassVar[Declared] = Declared(
        keeps=frozenset({"mask", "n:m", "grid", "rank"}),
        never_increases=frozenset({"weight_l2"}),
        any_inputs=True,
        no_op_on_dense=True,
        holds_reference=True,
        leaves_weight=True,
    )

    def __post_init__(self) -> None:
        whole(self.rank, 1, 2**16, "BlockMeans.rank")

    @property
    def unit(self) -> int:
        return self.rank

    def check(self, shape: tuple[int, ...]) -> None:
        if shape[1] % self.rank:
            raise InputError(f"rows of {shape[1]} weights", f"rows that divide into {self.rank} runs", str(self))

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        error = layer.reference - layer.effective()
        rows, columns = error.shape
        size = columns // self.rank
        means, member = np.empty((rows, self.rank), dtype=object), np.empty((self.rank, columns), dtype=object)
        for row, run in np.ndindex(rows, self.rank):
            means[row, run] = Div(Sum(error[row, run * size : (run + 1) * size]), size)
        for run, column in np.ndindex(self.rank, columns):
            member[run, column] = Fraction(int(column // size == run))
        factors = joined_factors(layer.format.factors, Factors(means, member))
        return replace(layer, format=replace(layer.format, factors=factors))
