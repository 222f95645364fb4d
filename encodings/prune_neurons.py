"""Structured pruning of feed-forward neurons: all weights of the neurons of least score go [ma2023]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.language.layer import Cut, Factors, LayerState
from compcomp.language.parameters import number, one_of, shown
from compcomp.language.technique import Declared, Technique
from compcomp.terms import TIES, Abs, And, Array, If, Not, Sum, Term, each, smallest

SCORES = ("l1", "l2")

UNITS = frozenset({"mask", "n:m", "grid", "rank", "shape"})
"""What dropping whole rows keeps: rows of zeros fit every pattern, grid of which zero is a value, and rank."""


@dataclass(frozen=True)
class PruneNeurons(Technique):
    """Drop the ``int(n * sparsity)`` neurons of least score of every feed-forward network, n neurons, whole.

    sparsity: share of neurons, in [0, 1). score: "l1", sum |w|, or "l2", sum w^2, over all weights of a neuron, the
    low-rank terms beside them included. ties: which of equal scores at the threshold go, "first" (lowest index), "all"
    or "any".
    The weights of a neuron are its row in the layers that feed it (gate_proj, up_proj) and its column in the layer that
    reads it (down_proj): neurons are scored by all of them, and go from all of them.
    Acts on the whole model. In claims and encodings the layer is the *stacked* matrix, neurons x all their weights, of
    one network: a neuron is a row of it. The rows that go are zero, dropped by the mask and the cut, in the low-rank
    term too. What a claim says of groups, scales or inputs, it says of this matrix, not of the layers apart.
    Source: groups of coupled weights [ma2023, fang2023].
    """

    sparsity: Fraction
    score: str = "l2"
    ties: str = "first"

    whole_model: ClassVar[bool] = True
    exact_scores: ClassVar[bool] = True
    tried: ClassVar[dict[str, Sequence[object]]] = {"score": SCORES, "sparsity": ("1/3", "1/2")}

    def __post_init__(self) -> None:
        check_units(self)

    def promises(self) -> Declared:
        return Declared(keeps=UNITS, removes_rows=True, deterministic=self.ties != "any")

    def encode(self, layer: LayerState) -> LayerState:
        return drop_rows(layer, self.sparsity, self.score, self.ties)


def check_units(technique: Technique) -> None:
    """Check the parameters of techniques that drop the units of least score, and make the sparsity a Fraction."""
    name, given = type(technique).__name__, vars(technique)
    allowed = "a number in [0, 1) such as 1/2 or 0.5"
    share = number(given["sparsity"], f"{name}.sparsity", allowed)
    if not 0 <= share < 1:
        raise InputError(shown(given["sparsity"]), allowed, f"{name}.sparsity")
    object.__setattr__(technique, "sparsity", share)
    one_of(given["score"], SCORES, f"{name}.score")
    one_of(given["ties"], TIES, f"{name}.ties")


def drop_rows(layer: LayerState, share: Fraction, score: str, ties: str) -> LayerState:
    """The layer without the ``int(out * share)`` rows of least score."""
    size: list[Term] = [Sum(Abs(w) if score == "l1" else w * w for w in row) for row in layer.effective()]
    taken = smallest(size, int(len(size) * share), ties, layer.choices)
    return without_rows(layer, np.array([Not(t) for t in taken], dtype=object))


def without_rows(layer: LayerState, kept: Array) -> LayerState:
    """The layer with the rows (out truth values) that are not kept zero in weight and low-rank term, and cut."""
    form, mask = layer.format, np.repeat(kept[:, None], layer.weight.shape[1], axis=1)
    weight = each(lambda w, keep: If(keep, w, 0), layer.weight, mask)
    cut = Cut(kept, np.full(layer.weight.shape[1], True, dtype=object))
    if form.cut is not None:
        cut = Cut(each(And, form.cut.rows, kept), form.cut.columns)
    factors = form.factors
    if factors is not None:
        sides = np.repeat(kept[:, None], factors.rank, axis=1)
        factors = Factors(each(lambda w, keep: If(keep, w, 0), factors.left, sides), factors.right)
    if form.mask is not None:
        mask = each(And, form.mask, mask)
    return replace(layer, weight=weight, format=replace(form, mask=mask, cut=cut, factors=factors))
