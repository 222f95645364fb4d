"""Pruning of whole columns: input channels [he2017]."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

from compcomp.algebra.cuts import SCORES, check_size, column_scores, least, remove, trivial_side
from compcomp.language.parameters import Exact, one_of, parametrized, share, whole
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import TIES


@parametrized
class PruneColumns(Technique):
    """Set the ``int(n * sparsity)`` of n groups of consecutive columns that score least to zero.

    sparsity: The share of groups to drop, in [0, 1), a number.
    size: The number of columns in a group, which divides in. Use 1 for channels, and the head dimension for the inputs
        of an output projection.
    score: The score of a group. "l1" (sum |w|) and "l2" (sum w^2, which orders as the norm) are over the effective
        weight's columns. With "activation" it is the sum of |x_j|_2^2 over the group's input features, whatever the
        weights; this needs calibration inputs.
    ties: The groups dropped among equal scores at the threshold: "first" (lowest index), "all" or "any".
    A column is dropped from the low-rank branch as well. The layer keeps its shape; the cut records which columns may
    be left out. Source: channel pruning [he2017]; norms as in [li2017]; by activations [muralidharan2024].
    """

    sparsity: Exact
    size: int = 1
    score: str = "l1"
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.prune_columns"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "sparsity": (Fraction(1, 2), Fraction(7, 10)),
            "size": (1, 2),
            "score": SCORES,
            "ties": TIES,
        },
        exact_scores=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", share(self.sparsity, "PruneColumns.sparsity"))
        whole(self.size, 1, 2**20, "PruneColumns.size")
        one_of(self.score, SCORES, "PruneColumns.score")
        one_of(self.ties, TIES, "PruneColumns.ties")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "grid", "rank", "shape"}),
            deterministic=self.ties != "any",
            idempotent=self.ties != "any",
            removes_columns=True,
        )

    def hints(self) -> Hints:
        return Hints(trivial_side=trivial_side(self.sparsity, self.size))

    @property
    def needs_inputs(self) -> bool:
        return self.score == "activation"

    @property
    def unit(self) -> int:
        return self.size

    def check(self, shape: tuple[int, ...]) -> None:
        check_size(shape[1], self.size, "columns", str(self))

    def dropped(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        groups = shape[1] // self.size
        return (int(groups * self.sparsity), groups) if self.sparsity else None

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        norms2 = layer.input_norms2() if self.needs_inputs else None
        scores = column_scores(layer.effective(), self.size, self.score, norms2)
        return remove(layer, least(scores, self.sparsity, self.size, self.ties, layer.choices), axis=1)
