"""Optimal brain quantization: round one weight after the other, compensated by the rest of its row [frantar2022]."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.algebra import second_order
from compcomp.language.parameters import (
    ANY,
    BitsOrAny,
    Exact,
    Unknown,
    bit_width,
    damping,
    default,
    known,
    one_of,
    parametrized,
)
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.state import Grid, LayerState
from compcomp.terms import ROUNDINGS, If, Term, nearest

TIES = ("first", "any")


@parametrized
class OBQ(Technique):
    """Round, in every row, the weight whose rounding error the others can best compensate, until all are rounded.

    Let H = X X^T + damping * mean(diag(X X^T)) * I over the columns that are left, and q(w) be the nearest value of the
    grid. The weight w_p of least ``(q(w_p) - w_p)^2 / [H^-1]_pp`` becomes q(w_p), and the row changes by ``-(w_p -
    q(w_p)) / [H^-1]_pp * [H^-1]_p,:``. It starts from the current weight, not the dense one. The low-rank branch does
    not change and is not accounted for.

    bits: The bit width, 2 to 16, or Any in claims. The grid is that of absmax, ``-L * s ... L * s``, L = 2^(bits-1) -
        1, s = max|w| / L, with one scale for each row, from the weights at the start.
    damping: The share of the mean diagonal entry that is added to the diagonal, above 0.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    ties: The weight rounded among equal scores: "first" (lowest column) or "any".

    The weights of an input that is always zero go to 0, and its diagonal entry to 1, after the scales are computed.
    Weights on the grid are rounded before any other weight changes, so zeros stay zero. For the error e_p of w_p, an
    update of w_k is at most ``|e_p| sqrt([H^-1]_kk / [H^-1]_pp)``. As w_p was chosen, this is at most |q(w_k) - w_k|.
    So no weight moves past its neighbours on the grid, and none leaves the row's range. There are thus no outliers
    beyond the grid, which [frantar2022] would round first. Needs calibration inputs. Source: [frantar2022].
    """

    bits: BitsOrAny
    damping: Exact = default(Fraction(1, 100))
    rounding: str = "half_even"
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.obq"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (4, 3, 2, 8)}
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "bits": (3,),
            "rounding": ("half_even", "any"),
        }
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bit_width(self.bits, "OBQ.bits"))
        object.__setattr__(self, "damping", damping(self.damping, "OBQ.damping"))
        one_of(self.rounding, ROUNDINGS, "OBQ.rounding")
        one_of(self.ties, TIES, "OBQ.ties")

    @property
    def levels(self) -> int | Unknown:
        """L, the number of grid values on each side of zero."""
        return ANY if isinstance(self.bits, Unknown) else int(2 ** (self.bits - 1) - 1)

    @property
    def needs_inputs(self) -> bool:
        return True

    def promises(self) -> Declared:
        return Declared(
            # Zeros lie on the grid and score 0: they are rounded first, and change nothing.
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            zeros=frozenset({"weights", "rows"}),
            deterministic=self.rounding != "any" and self.ties != "any",
        )

    def hints(self) -> Hints:
        return Hints() if isinstance(self.levels, Unknown) else Hints(landmarks=(2 * self.levels,))

    def encode(self, layer: LayerState) -> LayerState:
        levels, choices = known(self.levels, "OBQ.bits"), layer.choices
        gram, dead = second_order.damped(layer, self.damping, str(self))
        step = second_order.row_steps(layer.weight, second_order.kept_weights(layer, "ignored"), levels, choices)
        inverse = second_order.inverse(gram, choices)
        weight = second_order.without_dead(layer.weight, dead, choices)
        for i, row in enumerate(weight):
            greedy = second_order.Greedy(row, inverse, choices)
            for _ in row:
                self._round_one(greedy, step[i, 0], levels)
            weight[i] = greedy.weights
        grid = Grid(step, levels, len(weight))
        return replace(layer, weight=np.asarray(weight), format=replace(layer.format, grid=grid, rank=None))

    def _round_one(self, row: second_order.Greedy, step: Term, levels: int) -> None:
        choices, targets, scores = row.choices, list[Term](), list[Term]()
        for k, (w, fixed) in enumerate(zip(row.weights, row.fixed, strict=True)):
            if fixed is True:
                target = w
            else:
                target = second_order.named(If(fixed, w, nearest(w, step, levels, self.rounding, choices)), choices)
            targets.append(target)
            scores.append(row.score(k, w - target))
        # Weights on the grid are rounded before all others and change none, so their order does not matter.
        row.fix(targets, row.least(scores, row.fixed, self.ties, exact_zeros=True))
