"""Structured pruning on terms: scores of whole rows and columns, and their removal."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from compcomp.errors import InputError
from compcomp.layers.gram import squared_error
from compcomp.layers.state import Array, Cut, Factors, LayerState
from compcomp.terms import Abs, And, Choices, If, Not, Sum, Term, each, smallest

SCORES = ("l1", "l2", "activation")
"""Of a group of rows or columns: the sum of magnitudes, the sum of squares, the squared norm of what it sends on."""


def check_size(count: int, size: int, what: str, where: str) -> None:
    """Raise InputError when so many rows or columns do not divide into groups."""
    if count % size:
        raise InputError(f"{count} {what}", f"{what} that divide into groups of {size}", where)


def row_scores(weight: Array, size: int, score: str, gram: Array | None = None) -> list[Term]:
    """A score for each ``size`` consecutive rows of a weight (out x in). ``gram``: in x in, for "activation".

    "l1": sum |w|. "l2": sum w^2, which orders groups as the norm does. "activation": |W_group X|_F^2, the squared norm
    of the outputs on the calibration inputs.
    """
    groups = [weight[start : start + size] for start in range(0, len(weight), size)]
    if score == "activation":
        if gram is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", "layer")
        return [squared_error(group, gram) for group in groups]
    return [_norm(group, score) for group in groups]


def column_scores(weight: Array, size: int, score: str, norms2: list[Term] | None = None) -> list[Term]:
    """A score for each ``size`` consecutive columns of a weight (out x in). ``norms2``: |x_j|_2^2, for "activation".

    "l1": sum |w|. "l2": sum w^2, which orders groups as the norm does. "activation": sum |x_j|_2^2 over the input
    features, whatever the weights.
    """
    starts = range(0, weight.shape[1], size)
    if score == "activation":
        if norms2 is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", "layer")
        return [Sum(norms2[start : start + size]) for start in starts]
    return [_norm(weight[:, start : start + size], score) for start in starts]


def _norm(group: Array, score: str) -> Term:
    return Sum(Abs(w) if score == "l1" else w * w for w in group.ravel())


def least(scores: list[Term], share: Fraction, size: int, ties: str, choices: Choices) -> Array:
    """For each row or column, whether it is in one of the ``int(n * share)`` groups of least score, of n."""
    taken = smallest(scores, int(len(scores) * share), ties, choices)
    dropped = np.empty(len(scores) * size, dtype=object)
    for k, drop in enumerate(taken):
        dropped[k * size : (k + 1) * size] = drop
    return dropped


def remove(layer: LayerState, dropped: Array, axis: int) -> LayerState:
    """The layer with whole rows (axis 0) or columns (axis 1) set to zero, in the weight and in the low-rank term.

    dropped: a truth value for each row or column. Mask and cut drop them from now on; the grid stays.
    """

    def zeroed(array: Array) -> Array:
        result = np.empty(array.shape, dtype=object)
        for index in np.ndindex(*array.shape):
            result[index] = If(dropped[index[axis]], 0, array[index])
        return result

    form, shape = layer.format, layer.weight.shape
    mask = np.full(shape, True, dtype=object) if form.mask is None else form.mask
    kept = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        kept[index] = And(mask[index], Not(dropped[index[axis]]))
    cut = form.cut or Cut(*(np.full(n, True, dtype=object) for n in shape))
    left = each(lambda keep, drop: And(keep, Not(drop)), (cut.rows, cut.columns)[axis], dropped)
    cut = replace(cut, rows=left) if axis == 0 else replace(cut, columns=left)
    factors = form.factors
    if factors is not None:
        left, right = factors.left, factors.right
        factors = Factors(zeroed(left), right) if axis == 0 else Factors(left, zeroed(right))
    return replace(layer, weight=zeroed(layer.weight), format=replace(form, mask=kept, cut=cut, factors=factors))


def trivial_side(share: Fraction, size: int) -> int:
    """The most rows or columns of which no group goes; 0 where that says nothing (a hint for the search)."""
    groups = -(-share.denominator // share.numerator) if share else 0  # the fewest of which one goes
    return groups * size - 1 if 0 < groups * size <= 16 else 0
