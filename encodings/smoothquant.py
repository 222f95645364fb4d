"""SmoothQuant: scale input features and weight columns against each other; the outputs do not change [xiao2023]."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from fractions import Fraction
from math import gcd
from typing import ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.language.loss import LOSSES
from compcomp.language.parameters import Exact, default, number, one_of, parametrized, shown
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.basis import Scaling
from compcomp.layers.state import LayerState
from compcomp.terms import Abs, Choices, Div, Equal, If, Max, Or, PowerOfTwo, Repeated, Root, Term, each

SCALES = ("exact", "power_of_two")


def unless_dead(x: Term, dead: Term) -> Term:
    """Return 1 if ``dead`` holds, as there is no scale then, else x."""
    return If(dead, Fraction(1), x)


def rooted(ratio: Term, degree: int, scales: str, choices: Choices) -> Term:
    """Return the root of a ratio > 0, or the power of two nearest to it in log2."""
    return Root(ratio, degree) if scales == "exact" else PowerOfTwo(ratio, degree, choices)


def exact_layer(technique: SmoothQuant, layer: LayerState, numbers: Items[int]) -> LayerState:
    """Scale the inputs so that max|X_j|^p = max|W_:j|^(q - p) t^q for some t, which gives s_j = t with alpha = p/q."""
    p, q = technique.alpha.as_integer_ratio()
    if layer.inputs is None or technique.scales != "exact" or p == 0:
        return layer
    assert gcd(p, q) == 1
    times = next(k for k in range(p) if (q - p + k * q) % p == 0)
    inputs = layer.inputs.copy()
    for j, t in enumerate(numbers):
        largest, column = max(map(abs, inputs[j])), max(map(abs, layer.weight[:, j]))
        if largest and column:  # a power t^p of the number, so that t^q has a root of degree p
            inputs[j] *= Fraction(column) ** ((q - p + times * q) // p) * t**q / largest
    gram = None if layer.gram is None else inputs @ inputs.T
    return replace(layer, inputs=inputs, gram=gram)


@parametrized
class SmoothQuant(Technique):
    """Scale W' = W diag(s) on the inputs X' = diag(1/s) X, with s_j = max|X_j|^alpha / max|W_:j|^(1 - alpha).

    alpha: The share of the inputs' range that moves to the weight, in [0, 1].
    scales: "exact" for s itself, or "power_of_two" for the power of two nearest to s in log2 (midpoints go to the
        larger). Floats multiply by a power of two without rounding.
    W (out x in) is the current weight without the low-rank branch, X (in x tokens) the current inputs. A feature whose
    inputs or weights are all 0 has s_j = 1. The layer's outputs do not change; later techniques act on W' and X'.
    Scales belong to this layer alone: layers that read the same inputs do not share them. Exact arithmetic raises
    NotExactError if scales="exact" gives a scale that is not rational. The inputs or their magnitudes are needed, as a
    Gram matrix does not determine them. Source: [xiao2023].
    """

    alpha: Exact = default(Fraction(1, 2))
    scales: str = "exact"

    kernel_module: ClassVar[str] = "compcomp.kernels.smoothquant"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={"alpha": ("1/2", "3/4", 0, 1), "scales": SCALES}, exact_layer=exact_layer
    )

    def __post_init__(self) -> None:
        allowed = "a number in [0, 1] such as 1/2 or 0.5, of at most 3 decimals"
        alpha = number(self.alpha, "SmoothQuant.alpha", allowed)
        one_of(self.scales, SCALES, "SmoothQuant.scales")
        if not 0 <= alpha <= 1 or alpha.denominator > 1000:
            raise InputError(shown(self.alpha), allowed, "SmoothQuant.alpha")
        object.__setattr__(self, "alpha", alpha)

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "grid", "rank", "shape"}),
            zeros=frozenset({"weights", "rows", "columns"}),
            never_increases=frozenset(LOSSES),
            any_inputs=True,
            holds_reference=True,
            homogeneous=False,
            changes_basis=True,
            scales_inputs=True,
        )

    @property
    def needs_inputs(self) -> bool:
        return True

    @property
    def needs_magnitudes(self) -> bool:
        return True

    def encode(self, layer: LayerState) -> LayerState:
        inputs = layer.input_magnitudes().largest
        columns = [Max(map(Abs, column)) for column in layer.weight.T]
        above, degree = self.alpha.as_integer_ratio()

        def scale(x: Term, w: Term) -> Term:
            dead = Or(Equal(x, 0), Equal(w, 0))
            ratio = Div(Repeated(unless_dead(x, dead), above), Repeated(unless_dead(w, dead), degree - above))
            return rooted(ratio, degree, self.scales, layer.choices)

        return layer.rebased(Scaling(each(scale, inputs, np.array(columns, dtype=object))))
