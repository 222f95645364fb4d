"""RIA: relative importance of a weight in its row and column, times input activation [zhang2024]."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.language.parameters import (
    Exact,
    ExactOrAny,
    default,
    number,
    one_of,
    parametrized,
    selection_partition,
    shown,
    sparsity,
)
from compcomp.language.steps import Selection
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.state import Array, LayerState
from compcomp.terms import TIES, Abs, Div, Sum, Term

POWERS = "a number from 0 to 2 with a denominator of at most 4, such as 1/2"


@dataclass(frozen=True)
class Score:
    """Compute (|w_ij| / sum_k |w_kj| + |w_ij| / sum_k |w_ik|) |x_j|_2^power, out x in; 0 in a row or column of zeros.

    For power a / b the score is raised to its (2 b)-th power. This keeps the order, and |x_j|_2^(2 a) needs no root.
    """

    power: Fraction

    @property
    def root(self) -> int:
        """The power that the score is raised to: 2 b if |x_j|_2^2 would need a root, else 1."""
        return 2 * self.power.denominator if self.power else 1

    def __call__(self, layer: LayerState) -> Array:
        sizes = np.frompyfunc(Abs, 1, 1)(layer.weight)
        rows, columns = [Sum(row) for row in sizes], [Sum(column) for column in sizes.T]
        norms2 = layer.input_norms2() if self.power else []
        scores = np.empty(layer.weight.shape, dtype=object)
        for i, j in np.ndindex(*scores.shape):
            score = _power(Div(sizes[i, j], columns[j]) + Div(sizes[i, j], rows[i]), self.root)
            scores[i, j] = score * _power(norms2[j], self.power.numerator) if self.power else score
        return scores


def _power(x: Term, exponent: int) -> Term:
    result = x
    for _ in range(exponent - 1):
        result = result * x
    return result


@parametrized
class RIA(Technique):
    """Set the ``int(n * sparsity)`` weights of least relative importance and activation in every group of n to zero.

    The score of a current weight w_ij is (|w_ij| / sum_k |w_kj| + |w_ij| / sum_k |w_ik|) |x_j|_2^power.
    sparsity: The share of weights to drop, in [0, 1), or Any in claims.
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row.
    per: The group of an unstructured selection, "tensor" or "row".
    power: The power of the input's norm, an exact number in [0, 2] with a denominator of at most 4; published 1/2.
    ties: The weights dropped among equal scores at the threshold: "first" (lowest index), "all" or "any".
    Needs calibration inputs unless power is 0. The channel permutation that the paper combines with N:M is not part of
    it. Source: [zhang2024].
    """

    sparsity: ExactOrAny
    pattern: str = "unstructured"
    per: str = "tensor"
    power: Exact = default(Fraction(1, 2))
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.ria"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"sparsity": ("1/2", "1/4", "3/4", "1/3")}
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "sparsity": (Fraction(1, 2), Fraction(7, 10)),
            "pattern": ("unstructured", "2:4"),
            "per": ("tensor", "row"),
            "power": (Fraction(0), Fraction(1, 2)),
        }
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", sparsity(self.sparsity, "RIA.sparsity"))
        one_of(self.per, ("tensor", "row"), "RIA.per")
        power = number(self.power, "RIA.power", POWERS)
        if not 0 <= power <= 2 or power.denominator > 4:
            raise InputError(shown(self.power), POWERS, "RIA.power")
        object.__setattr__(self, "power", power)
        one_of(self.ties, TIES, "RIA.ties")
        selection_partition(self.pattern, self.per, self.sparsity, "RIA")

    def promises(self) -> Declared:
        fixed = self.ties != "any"
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "grid", "factors"}), deterministic=fixed, idempotent=fixed
        )

    def steps(self) -> tuple[Selection]:
        partition = selection_partition(self.pattern, self.per, self.sparsity, "RIA")
        needs_inputs = self.power != 0
        return (Selection.by_layer(Score(self.power), partition, self.sparsity, self.ties, needs_inputs),)
