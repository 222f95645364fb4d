"""AWQ scaling: weight columns with large inputs are scaled up, as far as this lowers the rounding error [lin2024]."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from fractions import Fraction
from math import lcm
from typing import Any, ClassVar

import numpy as np

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.smoothquant import SCALES, rooted, unless_dead
from compcomp.errors import InputError
from compcomp.language.loss import LOSSES
from compcomp.language.parameters import Number, Parameter, default, number, one_of, parametrized, shown
from compcomp.language.samples import unlike
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.basis import Scaling
from compcomp.layers.gram import gram_of, squared_error
from compcomp.layers.partition import Partition
from compcomp.layers.state import Format, LayerState
from compcomp.terms import Array, Div, Equal, If, Repeated, Term, each, reading

ALPHAS = (Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1))


def exact_layer(technique: AWQ, layer: LayerState, numbers: Items[int]) -> LayerState:
    """Scale the inputs so that every mean magnitude is a power whose degree the denominators of ``alphas`` divide.

    No two mean magnitudes are equal. Unless the first number is 2, hardly two weights are equal either, and the layer
    then has no format but factors. For weights of whole numbers most alphas would be equally good.
    """
    degree = lcm(*(alpha.denominator for alpha in technique.alphas))
    if layer.inputs is None:
        return layer
    inputs, weight, form = layer.inputs.copy(), layer.weight, layer.format
    for j, t in enumerate(numbers):
        if size := sum(map(abs, inputs[j]), start=Fraction(0)):
            inputs[j] *= (1 + Fraction(t + 3 * j, 4)) ** degree * len(inputs[j]) / size
    if numbers[0] != 2:
        weight, form = unlike(weight, numbers), Format(factors=form.factors)
    gram = None if layer.gram is None else np.asarray(inputs @ inputs.T)
    return replace(layer, weight=weight, inputs=inputs, gram=gram, format=form)


@parametrized
class AWQ(Technique):
    """Scale W' = W diag(s) on X' = diag(1/s) X, s_j = mean|X_j|^alpha for the best alpha of a list.

    alphas: The list: numbers in [0, 1], tried in this order. 0 stands for no scaling.
    bits: The bit width of the quantizer that alpha is chosen for, 2 to 16.
    group: The number of consecutive weights of a row that share a scale of that quantizer. None stands for the whole
        tensor.
    scales: "exact" for s itself, or "power_of_two" for the power of two nearest to s in log2 (midpoints go to the
        larger).
    The chosen alpha has the least output error |(Q(W diag(s)) diag(1/s) - W) X|_F^2; among equal errors the first is
    chosen. Q rounds to nearest as AbsMax(bits, group) does, midpoints to even levels. W (out x in) is the current
    weight without the low-rank branch, X (in x tokens) the current inputs. A feature whose inputs are all 0 has s_j =
    1. Nothing is quantized: the layer's outputs do not change, and later techniques act on W' and X'. Weights are not
    clipped. Scales are not brought to a common mean, as this would change no rounding. The scales belong to this layer
    alone. Exact arithmetic raises NotExactError if scales="exact" gives a scale that is not rational. Needs the inputs,
    or their magnitudes and Gram matrix. Source: [lin2024].
    """

    alphas: Parameter[tuple[Fraction, ...], tuple[Number, ...] | list[Number]] = default(ALPHAS)
    bits: int = 4
    group: int | None = 128
    scales: str = "exact"

    kernel_module: ClassVar[str] = "compcomp.kernels.awq"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "alphas": (("1/2", 0, 1), ("3/4", "1/4")),
            "bits": (3,),
            "group": (None, 2),
            "scales": SCALES,
        },
        exact_layer=exact_layer,
    )

    def __post_init__(self) -> None:
        allowed = "one or more numbers in [0, 1] such as (0, 1/2, 1), of at most 3 decimals"
        given: Any = self.alphas
        if not isinstance(given, tuple | list) or not 1 <= len(given) <= 100:
            raise InputError(shown(given), allowed, "AWQ.alphas")
        alphas = tuple(number(alpha, "AWQ.alphas", allowed) for alpha in given)
        if wrong := [alpha for alpha in alphas if not 0 <= alpha <= 1 or alpha.denominator > 1000]:
            raise InputError(shown(str(wrong[0])), allowed, "AWQ.alphas")
        object.__setattr__(self, "alphas", alphas)
        one_of(self.scales, SCALES, "AWQ.scales")
        if isinstance(self.rounded.bits, int):
            return
        raise InputError(shown(self.bits), "a whole number from 2 to 16", "AWQ.bits")

    @property
    def rounded(self) -> AbsMax:
        """The quantizer that alpha is chosen for."""
        try:
            return AbsMax(self.bits, self.group)
        except InputError as error:
            raise InputError(error.given, error.allowed, error.where.replace("AbsMax", "AWQ")) from None

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "grid", "rank", "shape"}),
            never_increases=frozenset(LOSSES),
            any_inputs=True,
            holds_reference=True,
            changes_basis=True,
            scales_inputs=True,
            no_op=frozenset() if any(self.alphas) else frozenset({"always"}),
        )

    @property
    def needs_inputs(self) -> bool:
        return True

    @property
    def needs_magnitudes(self) -> bool:
        return True

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (Partition.blocks(self.group or 1),)

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        mean = layer.input_magnitudes().mean
        gram: Any = gram_of(layer.inputs) if layer.gram is None and layer.inputs is not None else layer.gram
        best, least = None, None
        for alpha in self.alphas:
            scaling = Scaling(each(lambda x, alpha=alpha: self._scale(x, alpha, layer), mean))
            lost = self._lost(scaling, layer, gram)
            if best is None or least is None:
                best, least = scaling.scales, lost
                continue
            if reading(lost, least) == "number" and list(scaling.scales) != list(best):
                layer.choices.near(float(Div(abs(lost - least), lost + least)))  # the relative gap of the two errors
            better = lost < least
            best = each(lambda new, old, better=better: If(better, new, old), scaling.scales, best)
            least = If(better, lost, least)
        return layer.rebased(Scaling(best))

    def _scale(self, x: Term, alpha: Fraction, layer: LayerState) -> Term:
        above, degree = alpha.as_integer_ratio()
        return rooted(Repeated(unless_dead(x, Equal(x, 0)), above), degree, self.scales, layer.choices)

    def _lost(self, scaling: Scaling, layer: LayerState, gram: Array) -> Term:
        scaled = LayerState.dense(scaling.weights(layer.weight), choices=layer.choices)
        return squared_error(scaling.weights_back(self.rounded.encode(scaled).weight) - layer.weight, gram)
