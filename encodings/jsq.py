"""JSQ: pruning by a score that looks at the range of what the other weights give, then quantization [guo2024]."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from compcomp.encodings.absmax import AbsMax
from compcomp.errors import InputError
from compcomp.language.parameters import (
    BitsOrAny,
    Exact,
    ExactOrAny,
    bit_width,
    default,
    number,
    one_of,
    parametrized,
    selection_partition,
    shown,
    sparsity,
    whole,
)
from compcomp.language.samples import unlike
from compcomp.language.steps import GridMap, Selection
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.state import Array, Format, LayerState
from compcomp.terms import ROUNDINGS, TIES, Abs, Max, Min, Root, Sum, Term

NORMS = ("l1", "max", "l2")
"""Norms of an input feature over the tokens."""


@dataclass(frozen=True)
class Score:
    """|w_ij| |x_j| + lam * (max_t r - min_t r), r = y_it - w_ij x_jt for y = W X without a low-rank term: out x in.

    The inputs x are in x tokens. ``norm``: that of x_j, out of :data:`NORMS`.
    """

    lam: Fraction
    norm: str

    def __call__(self, layer: LayerState) -> Array:
        weight, inputs = layer.weight, inputs_of(layer, "JSQ")
        norms = [self.size(row) for row in inputs]
        scores = np.empty(weight.shape, dtype=object)
        for i, row in enumerate(weight):
            outputs = [Sum(w * x for w, x in zip(row, token, strict=True)) for token in inputs.T]
            for j, w in enumerate(row):
                rest = [y - w * x for y, x in zip(outputs, inputs[j], strict=True)]
                scores[i, j] = Abs(w) * norms[j] + self.lam * (Max(rest) - Min(rest))
        return scores

    def size(self, tokens: Items[Term]) -> Term:
        """The norm of a feature's values, one a token; NotExactError where it is no rational number."""
        if self.norm == "l2":
            return Root(Sum(x * x for x in tokens), 2)
        sizes = [Abs(x) for x in tokens]
        return Max(sizes) if self.norm == "max" else Sum(sizes)


def inputs_of(layer: LayerState, where: str) -> Array:
    """The inputs (in x tokens); InputError where the layer has none, or no token of them."""
    if layer.inputs is None or not layer.inputs.shape[1]:
        given = "no inputs" if layer.gram is None or layer.inputs is not None else "a Gram matrix alone"
        raise InputError(given, "a layer with calibration inputs (in x tokens)", where)
    return layer.inputs


def exact_layer(technique: JSQ, layer: LayerState, numbers: Items[int]) -> LayerState:
    """One more token for the 2-norm: (S / t - t) / 2 for a feature whose squares sum to S makes it (S / t + t) / 2.

    Unless the first number is 2 no two weights are alike, which then fit no format: of whole numbers most tie.
    """
    if numbers[0] != 2:
        layer = replace(layer, weight=unlike(layer.weight, numbers), format=Format(factors=layer.format.factors))
    if layer.inputs is None or technique.norm != "l2":
        return layer
    squares: list[Any] = [sum(x * x for x in row) for row in layer.inputs]
    token = [(Fraction(s) / t - t) / 2 if s else Fraction(0) for s, t in zip(squares, numbers, strict=True)]
    added = np.array(token, dtype=object)[:, None]
    inputs = np.hstack([layer.inputs, added])
    dense = None if layer.reference_inputs is None else np.hstack([layer.reference_inputs, added])
    gram = None if layer.gram is None else np.asarray(inputs @ inputs.T)
    return replace(layer, inputs=inputs, gram=gram, reference_inputs=dense)


@parametrized
class JSQ(Technique):
    """Drop ``int(n * sparsity)`` weights of every group of n by a score for both steps; round the others as AbsMax.

    Dropped are the weights of least ``|w_ij| |x_j| + lam * (max_t r - min_t r)``, where r is what the other weights of
    the row give for token t: the output of row i without column j. W (out x in) is the weight it finds, without a
    low-rank term beside it; X (in x tokens) the current inputs. What is left is rounded to the nearest of
    ``-L * s ... L * s``, L = 2^(bits-1) - 1, s = max|w| / L of a scale group; an all-zero group stays zero. Between the
    two the published method smooths inputs and weights, and afterwards it rounds inputs as well: neither is part of
    this technique, which has both steps in one. SmoothQuant and AbsMaxInputs stand before or after it.
    sparsity: share of weights to drop, in [0, 1), or Any in claims.
    bits: 2 to 16, or Any in claims.
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row.
    per: "row" or "tensor", the group of an unstructured selection.
    group: how many consecutive weights of a row share a scale; None for one scale for the tensor.
    lam: the weight of the range, an exact number from 0 to 1000; published 2.1.
    norm: of an input feature over the tokens, "l1" (the sum of magnitudes), "max" or "l2". Which one the published
        score takes is not known here: "l1" is the default because it is a rational number. Exact arithmetic raises
        NotExactError where an "l2" is not.
    ties: which of equal scores at the threshold go, "first" (lowest index), "all" or "any".
    rounding: where midpoints go, "half_even", "half_up", "half_away" or "any".
    Needs the inputs themselves: their Gram matrix does not tell the range. Source: [guo2024].
    """

    sparsity: ExactOrAny
    bits: BitsOrAny
    pattern: str = "unstructured"
    per: str = "row"
    group: int | None = None
    lam: Exact = default(Fraction(21, 10))
    norm: str = "l1"
    ties: str = "first"
    rounding: str = "half_even"

    kernel_module: ClassVar[str] = "compcomp.kernels.jsq"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {
        "sparsity": ("1/2", "1/4", "3/4", "1/3"),
        "bits": (4, 3, 2, 8),
    }
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "sparsity": (Fraction(1, 2),),
            "bits": (3,),
            "pattern": ("unstructured", "1:2"),
            "per": ("row", "tensor"),
            "group": (None, 2),
            "norm": NORMS,
            "lam": (Fraction(21, 10),),
            "ties": ("first",),
            "rounding": ("half_even",),
        },
        exact_layer=exact_layer,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", sparsity(self.sparsity, "JSQ.sparsity"))
        object.__setattr__(self, "bits", bit_width(self.bits, "JSQ.bits"))
        one_of(self.per, ("row", "tensor"), "JSQ.per")
        if self.group is not None:
            whole(self.group, 1, 2**20, "JSQ.group")
        allowed = "a number from 0 to 1000 such as 21/10 or 2.1"
        lam = number(self.lam, "JSQ.lam", allowed)
        if not 0 <= lam <= 1000:
            raise InputError(shown(self.lam), allowed, "JSQ.lam")
        object.__setattr__(self, "lam", lam)
        one_of(self.norm, NORMS, "JSQ.norm")
        one_of(self.ties, TIES, "JSQ.ties")
        one_of(self.rounding, ROUNDINGS, "JSQ.rounding")
        selection_partition(self.pattern, self.per, self.sparsity, "JSQ")

    @property
    def rounded(self) -> AbsMax:
        """The quantizer that comes second."""
        return AbsMax(self.bits, self.group, self.rounding)

    @property
    def selection(self) -> Selection:
        """The pruning that comes first."""
        partition = selection_partition(self.pattern, self.per, self.sparsity, "JSQ")
        return Selection.by_layer(Score(self.lam, self.norm), partition, self.sparsity, self.ties, needs_inputs=True)

    @property
    def needs_tokens(self) -> bool:
        return True

    def promises(self) -> Declared:
        rounded = self.rounded.promises()
        return replace(rounded, deterministic=rounded.deterministic and self.ties != "any")

    def steps(self) -> tuple[Selection, GridMap]:
        return (self.selection, *self.rounded.steps())
