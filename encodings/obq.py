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
from compcomp.layers.grids import GRIDS, UNSIGNED
from compcomp.layers.scales import SCALES, scale_bits
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

    bits: The bit width, 2 to 16, or Any in claims. The grid is that of absmax, with one scale for each row, from the
        weights at the start.
    damping: The share of the mean diagonal entry that is added to the diagonal, above 0.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    ties: The weight rounded among equal scores: "first" (lowest column) or "any".
    grid: The levels and the step from the largest magnitude, as of AbsMax: "narrow", "full_range", "narrow_step" or
        "clipped".
    scales: The format in which steps are stored, as of AbsMax: "exact", "float32", "float16", "bfloat16" or
        "power_of_two".

    The weights of an input that is always zero go to 0, and its diagonal entry to 1, after the scales are computed.
    Weights on the grid are rounded before any other weight changes, so zeros stay zero. For the error e_p of w_p, an
    update of w_k is at most ``|e_p| sqrt([H^-1]_kk / [H^-1]_pp)``. As w_p was chosen, this is at most |q(w_k) - w_k|.
    So no weight moves past its neighbours on the grid. Thus none leaves the narrow grid with exact steps, and there are
    no outliers, which [frantar2022] would round first. On the other grids weights may be beyond the last value from the
    start. They wait for their turn, and go to that value. Needs calibration inputs. Source: [frantar2022].
    """

    bits: BitsOrAny
    damping: Exact = default(Fraction(1, 100))
    rounding: str = "half_even"
    ties: str = "first"
    grid: str = "narrow"
    scales: str = "exact"

    kernel_module: ClassVar[str] = "compcomp.kernels.obq"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (4, 3, 2, 8)}
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "bits": (3,),
            "rounding": ("half_even", "any"),
            "grid": ("narrow", "clipped"),
            "scales": ("exact", "float16"),
        }
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bit_width(self.bits, "OBQ.bits"))
        object.__setattr__(self, "damping", damping(self.damping, "OBQ.damping"))
        one_of(self.rounding, ROUNDINGS, "OBQ.rounding")
        one_of(self.ties, TIES, "OBQ.ties")
        one_of(self.grid, UNSIGNED, "OBQ.grid")
        one_of(self.scales, tuple(SCALES), "OBQ.scales")

    @property
    def levels(self) -> int | Unknown:
        """L, the number of grid values above zero."""
        return ANY if isinstance(self.bits, Unknown) else int(2 ** (self.bits - 1) - 1)

    @property
    def needs_inputs(self) -> bool:
        return True

    def promises(self) -> Declared:
        return Declared(
            # Zeros lie on the grid and score 0: they are rounded first, and change nothing.
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            zeros=frozenset({"weights", "rows"}),
            homogeneous=self.scales == "exact",
            deterministic=self.rounding != "any" and self.ties != "any",
        )

    def hints(self) -> Hints:
        levels, of = self.levels, GRIDS[self.grid]
        return Hints() if isinstance(levels, Unknown) else Hints(landmarks=(int(2 * of.reach(levels)),))

    def encode(self, layer: LayerState) -> LayerState:
        levels, choices = known(self.levels, "OBQ.bits"), layer.choices
        gram, dead = second_order.damped(layer, self.damping, str(self))
        of, every = GRIDS[self.grid], second_order.kept_weights(layer, "ignored")
        step = second_order.row_steps(layer.weight, every, of.reach(levels), choices, self.scales)
        inverse = second_order.inverse(gram, choices)
        weight = second_order.without_dead(layer.weight, dead, choices)
        for i, row in enumerate(weight):
            greedy = second_order.Greedy(row, inverse, choices)
            for _ in row:
                self._round_one(greedy, step[i, 0], levels)
            weight[i] = greedy.weights
        grid = Grid(step, levels, len(weight), scale_bits=scale_bits(self.scales), below=of.below)
        return replace(layer, weight=np.asarray(weight), format=replace(layer.format, grid=grid, rank=None))

    def _round_one(self, row: second_order.Greedy, step: Term, levels: int) -> None:
        choices, targets, scores = row.choices, list[Term](), list[Term]()
        below = GRIDS[self.grid].below
        for k, (w, fixed) in enumerate(zip(row.weights, row.fixed, strict=True)):
            if fixed is True:
                target = w
            else:
                value = nearest(w, step, levels, self.rounding, choices, below)
                target = second_order.named(If(fixed, w, value), choices)
            targets.append(target)
            scores.append(row.score(k, w - target))
        # Weights on the grid are rounded before all others and change none, so their order does not matter.
        row.fix(targets, row.least(scores, row.fixed, self.ties, exact_zeros=True))
