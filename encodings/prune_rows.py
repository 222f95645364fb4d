"""Pruning of whole rows: output neurons, or heads as groups of rows [li2017, ma2023]."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

from compcomp.algebra.cuts import SCORES, check_size, least, remove, row_scores, trivial_side
from compcomp.language.parameters import Exact, one_of, parametrized, share, whole
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import TIES


@parametrized
class PruneRows(Technique):
    """Set the ``int(n * sparsity)`` of n groups of consecutive rows that score least to zero.

    sparsity: The share of groups to drop, in [0, 1), a number.
    size: The number of rows in a group, which divides out. Use 1 for neurons, and the head dimension for heads.
    score: The score of a group. "l1" (sum |w|) and "l2" (sum w^2, which orders as the norm) are over the effective
        weight's rows. With "activation" it is |W_group X|_F^2, the energy of the group's outputs; this needs
        calibration inputs.
    ties: The groups dropped among equal scores at the threshold: "first" (lowest index), "all" or "any".
    A row is dropped from the low-rank branch as well. The layer keeps its shape; the cut records which rows may be left
    out. Source: filter norms [li2017]; groups of language models [ma2023].
    """

    sparsity: Exact
    size: int = 1
    score: str = "l1"
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.prune_rows"
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
        object.__setattr__(self, "sparsity", share(self.sparsity, "PruneRows.sparsity"))
        whole(self.size, 1, 2**20, "PruneRows.size")
        one_of(self.score, SCORES, "PruneRows.score")
        one_of(self.ties, TIES, "PruneRows.ties")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "grid", "rank", "shape"}),
            deterministic=self.ties != "any",
            idempotent=self.ties != "any",
            removes_rows=True,
        )

    def hints(self) -> Hints:
        return Hints(trivial_side=trivial_side(self.sparsity, self.size))

    @property
    def needs_inputs(self) -> bool:
        return self.score == "activation"

    @property
    def row_unit(self) -> int:
        return self.size

    def check(self, shape: tuple[int, ...]) -> None:
        check_size(shape[0], self.size, "rows", str(self))

    def dropped(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        groups = shape[0] // self.size
        return (int(groups * self.sparsity), groups) if self.sparsity else None

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        scores = row_scores(layer.effective(), self.size, self.score, layer.gram)
        return remove(layer, least(scores, self.sparsity, self.size, self.ties, layer.choices), axis=0)
