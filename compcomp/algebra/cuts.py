"""Define structured pruning on terms: scores of whole rows and columns, and their removal."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from compcomp.errors import InputError
from compcomp.layers.gram import squared_error
from compcomp.layers.state import Array, Cut, Factors, LayerState
from compcomp.terms import Abs, And, Choices, If, Not, Sum, Term, each, smallest

SCORES = ("l1", "l2", "activation")
"""The scores of a group of rows or columns: sum of magnitudes, sum of squares, squared norm of its activations."""


def check_size(count: int, size: int, what: str, where: str) -> None:
    """Raise InputError if ``count`` rows or columns do not divide into groups of ``size``."""
    if count % size:
        raise InputError(f"{count} {what}", f"{what} that divide into groups of {size}", where)


def row_scores(weight: Array, size: int, score: str, gram: Array | None = None) -> list[Term]:
    """Return a score for each group of ``size`` consecutive rows of a weight.

    "l1" is sum |w|. "l2" is sum w^2, which ranks groups as the norm does. "activation" is |W_group X|_F^2, the squared
    norm of the outputs on the calibration inputs.

    Args:
        weight: the weight (out x in).
        size: the number of rows of a group.
        score: one of :data:`SCORES`.
        gram: the Gram matrix (in x in), for "activation".

    Raises:
        InputError: the Gram matrix is needed and missing.
    """
    groups = [weight[start : start + size] for start in range(0, len(weight), size)]
    if score == "activation":
        if gram is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", "layer")
        return [squared_error(group, gram) for group in groups]
    return [_norm(group, score) for group in groups]


def column_scores(weight: Array, size: int, score: str, norms2: list[Term] | None = None) -> list[Term]:
    """Return a score for each group of ``size`` consecutive columns of a weight.

    "l1" is sum |w|. "l2" is sum w^2, which ranks groups as the norm does. "activation" is the sum of |x_j|_2^2 over the
    input features of the group, independent of the weights.

    Args:
        weight: the weight (out x in).
        size: the number of columns of a group.
        score: one of :data:`SCORES`.
        norms2: |x_j|_2^2 for each input feature, for "activation".

    Raises:
        InputError: the norms are needed and missing.
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
    """Return a term for each row or column, true if it is in one of the ``int(n * share)`` groups of least score.

    Args:
        scores: the scores of the n groups.
        share: the share of groups to drop.
        size: the number of rows or columns of a group.
        ties: one of :data:`compcomp.terms.TIES`.
        choices: makes the free choices of "any".
    """
    taken = smallest(scores, int(len(scores) * share), ties, choices)
    dropped = np.empty(len(scores) * size, dtype=object)
    for k, drop in enumerate(taken):
        dropped[k * size : (k + 1) * size] = drop
    return dropped


def remove(layer: LayerState, dropped: Array, axis: int) -> LayerState:
    """Return the layer with whole rows or columns set to zero, in the weight and in the low-rank term.

    Mask and cut drop them as well. The grid does not change.

    Args:
        layer: the layer.
        dropped: a truth value for each row or column.
        axis: 0 for rows, 1 for columns.
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
    """Return the largest number of rows or columns of which no group is dropped, as a hint for the search.

    Returns 0 if that number is of no use.
    """
    groups = -(-share.denominator // share.numerator) if share else 0  # the fewest of which one is dropped
    return groups * size - 1 if 0 < groups * size <= 16 else 0
