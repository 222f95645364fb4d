"""Optimal brain surgeon: remove one weight after the other, compensated by the rest of its row [hassibi1993]."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.algebra import second_order
from compcomp.language.parameters import (
    Exact,
    ExactOrAny,
    Unknown,
    damping,
    default,
    known,
    one_of,
    parametrized,
    selection_partition,
    sparsity,
)
from compcomp.language.technique import Declared, Technique
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.terms import If, Or, Sum, Term

TIES = ("first", "any")


@parametrized
class OBS(Technique):
    """Remove, ``int(n * sparsity)`` times in every row, the weight whose loss the others can best compensate.

    Let H = X X^T + damping * mean(diag(X X^T)) * I over the columns that are left. The weight w_p of least ``w_p^2 /
    [H^-1]_pp`` is removed, and the row changes by ``-w_p / [H^-1]_pp * [H^-1]_p,:``. It starts from the current weight,
    not the dense one. The low-rank branch does not change and is not accounted for.

    sparsity: The share of weights to drop, in [0, 1), or Any in claims.
    pattern: "unstructured", or "n:m" to stop in every m consecutive weights of a row once n are left.
    damping: The share of the mean diagonal entry that is added to the diagonal, above 0.
    ties: The weight removed among equal scores: "first" (lowest column) or "any".

    Zeros score 0: if unstructured, they are removed first and stay zero. An update of w_k is at most ``|w_p|
    sqrt([H^-1]_kk / [H^-1]_pp)``. As w_p was chosen, this is at most |w_k|, so no weight changes its sign then. The
    weights of an input that is always zero go to 0, and its diagonal entry to 1, before everything else. Needs
    calibration inputs. Source: [hassibi1993]; row by row [frantar2022].
    """

    sparsity: ExactOrAny
    pattern: str = "unstructured"
    damping: Exact = default(Fraction(1, 100))
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.obs"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"sparsity": ("1/2", "1/4", "3/4", "1/3")}

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", sparsity(self.sparsity, "OBS.sparsity"))
        selection_partition(self.pattern, "row", self.sparsity, "OBS")
        object.__setattr__(self, "damping", damping(self.damping, "OBS.damping"))
        one_of(self.ties, TIES, "OBS.ties")

    @property
    def partition(self) -> Partition:
        """The groups that each lose the same share: rows, or those of an N:M pattern."""
        return selection_partition(self.pattern, "row", self.sparsity, "OBS")

    @property
    def needs_inputs(self) -> bool:
        return True

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.partition,)

    def promises(self) -> Declared:
        # While zeros are left, one of them is removed, which changes nothing. A pattern may forbid that.
        zeros_stay = self.pattern == "unstructured"
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"} if zeros_stay else {"factors"}),
            zeros=frozenset({"rows"}),
            deterministic=self.ties != "any",
        )

    def count(self, size: int) -> int:
        """Return how many weights of a group of this size are removed."""
        return int(size * known(self.sparsity, "OBS.sparsity"))

    def dropped(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        if isinstance(self.sparsity, Unknown) or not self.sparsity:
            return None
        size = self.partition.group_size(shape)
        return self.count(size), size

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        gram, dead = second_order.damped(layer, self.damping, str(self))
        inverse = second_order.inverse(gram, layer.choices)
        weight = second_order.without_dead(layer.weight, dead, layer.choices)
        dropped = np.empty(weight.shape, dtype=object)
        for i, row in enumerate(weight):
            greedy = second_order.Greedy(row, inverse, layer.choices)
            self._prune(greedy)
            weight[i], dropped[i] = greedy.weights, greedy.fixed
        form = replace(layer.format, grid=None, rank=None)
        if self.pattern != "unstructured":
            size = self.partition.size or 1
            form = replace(form, mask=None, pattern=((size - self.count(size), size),), cut=None)
        return replace(layer, weight=weight, format=replace(form, mask=second_order.all_of(form.mask, dropped)))

    def _prune(self, row: second_order.Greedy) -> None:
        columns = len(row.weights)
        size = self.partition.size or columns
        zeros: list[Term] = [0] * columns
        for _ in range(self.count(size) * (columns // size)):
            barred = list(row.fixed)
            for start in range(0, columns, size):
                gone = Sum(If(fixed, 1, 0) for fixed in row.fixed[start : start + size])
                for k in range(start, start + size):
                    barred[k] = Or(barred[k], gone >= self.count(size))
            scores = [row.score(k, w) for k, w in enumerate(row.weights)]
            row.fix(zeros, row.least(scores, barred, self.ties, exact_zeros=not row.moved))
