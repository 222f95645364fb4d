"""Compute what second-order techniques share, in every reading: the damped Gram matrix, its inverse, and updates.

H is the Gram matrix of the inputs with a damped diagonal. It is positive definite, and all results are rational. The
literature uses a Cholesky factor of H^-1; this module uses H^-1 = L D L^T, with L unit lower triangular. Row j of the
Cholesky factor is sqrt(D_j) times column j of L, and no technique needs the root by itself.

For the prover (z3 terms with :class:`SymbolicChoices`) every intermediate number is a fresh variable with the equation
that defines it, and there are no divisions. So formulas stay small, and proofs are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.layers.scales import stored
from compcomp.layers.state import LayerState
from compcomp.terms import (
    Abs,
    And,
    Array,
    Choices,
    Div,
    Equal,
    If,
    Max,
    Not,
    Or,
    Sum,
    SymbolicChoices,
    Term,
    each,
    nearest,
    reading,
    smallest,
)

MASKS = ("ignored", "kept")
"""The ways to treat an earlier mask. "ignored": updates may fill weights that were dropped before. "kept": they may
not."""


def named(term: Term, choices: Choices) -> Term:
    """Return a number or truth value as it is; for the prover, a fresh variable that equals it."""
    if isinstance(choices, SymbolicChoices) and reading(term) == "z3":
        variable = choices.flip() if term.sort().name() == "Bool" else choices.real()
        choices.assume(Equal(variable, term))
        return variable
    return term


def quotient(x: Term, y: Term, choices: Choices) -> Term:
    """Return ``x / y``, if ``y`` is known not to be 0; for the prover, a fresh variable that equals it."""
    if isinstance(choices, SymbolicChoices) and reading(x, y) == "z3":
        variable = choices.real()
        choices.assume(Equal(variable * y, x))
        return variable
    return Div(x, y)


def pick(chosen: Sequence[Term], values: Sequence[Term]) -> Term:
    """Return the value whose condition in ``chosen`` holds. One of the conditions must hold."""
    result = values[-1]
    for condition, value in zip(reversed(chosen[:-1]), reversed(values[:-1]), strict=True):
        result = If(condition, value, result)
    return result


# ------------------------------------------------------------------------------------------- the Gram matrix


def damped(layer: LayerState, damping: Fraction, where: str) -> tuple[Array, list[Term]]:
    """Return H (in x in), and for each input feature a term that is true if it is dead (always zero).

    The diagonal entry of a dead input becomes 1. Then ``damping`` times the mean of the diagonal is added to the
    diagonal.

    Args:
        layer: a layer with a Gram matrix.
        damping: a number > 0.
        where: the technique that an error names.

    Raises:
        InputError: the layer has no Gram matrix.
    """
    if layer.gram is None:
        raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", where)
    gram, side = layer.gram.copy(), len(layer.gram)
    for i in range(side):
        for j in range(i + 1):
            gram[i, j] = gram[j, i] = named(gram[i, j], layer.choices)
    dead = [Equal(gram[j, j], 0) for j in range(side)]
    for j in range(side):
        gram[j, j] = If(dead[j], 1, gram[j, j])
    added = named(Sum(gram[j, j] for j in range(side)) * damping * Fraction(1, side), layer.choices)
    for j in range(side):
        gram[j, j] = named(gram[j, j] + added, layer.choices)
    return gram, dead


def without_dead(weight: Array, dead: Sequence[Term], choices: Choices) -> Array:
    """Return the weight with the columns of dead inputs set to zero."""
    everywhere = np.broadcast_to(np.array(dead, dtype=object), weight.shape)
    return each(lambda w, gone: named(If(gone, 0, w), choices), weight, everywhere)


def inverse_factor(matrix: Array, choices: Choices) -> tuple[Array, list[Term]]:
    """Return L (unit lower triangular) and D with ``matrix^-1 = L diag(D) L^T``, for a positive definite matrix.

    They follow from ``matrix = M diag(E) M^T`` with M unit upper triangular: L is the transpose of M^-1, and D is
    1 / E.
    """
    side = len(matrix)
    upper, pivots = _identity(side), list[Term]([0] * side)
    for j in reversed(range(side)):
        scaled = {k: upper[j, k] * pivots[k] for k in range(j + 1, side)}
        pivots[j] = named(Sum([matrix[j, j], *(-upper[j, k] * scaled[k] for k in scaled)]), choices)
        if isinstance(choices, SymbolicChoices) and reading(pivots[j]) == "z3":
            choices.assume(pivots[j] > 0)  # true of a positive definite matrix
        for i in range(j):
            rest = Sum([matrix[i, j], *(-upper[i, k] * scaled[k] for k in scaled)])
            upper[i, j] = quotient(rest, pivots[j], choices)
    lower = _identity(side)
    for j in range(side):
        for k in range(j + 1, side):  # row j of the inverse of M
            lower[k, j] = named(Sum(-lower[i, j] * upper[i, k] for i in range(j, k)), choices)
    return lower, [quotient(1, pivot, choices) for pivot in pivots]


def inverse(matrix: Array, choices: Choices) -> Array:
    """Return the inverse of a positive definite matrix."""
    side = len(matrix)
    lower, values = inverse_factor(matrix, choices)
    result = np.empty((side, side), dtype=object)
    for i in range(side):
        for j in range(i + 1):
            entry = Sum(lower[i, k] * values[k] * lower[j, k] for k in range(j + 1))
            result[i, j] = result[j, i] = named(entry, choices)
    return result


def _identity(side: int) -> Array:
    return each(Fraction, np.eye(side, dtype=int).astype(object))


# ------------------------------------------------------------------------------------------------ selection


class _Quiet(Choices):
    """Make the choices of another object, without a record of the margin."""

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self._choices = choices

    def order(self, count: int) -> Any:
        return self._choices.order(count)


def least(scores: Sequence[Term], count: int, ties: str, choices: Choices, *, exact_zeros: bool) -> list[Term]:
    """Return a term for each score that is true if it is among the ``count`` smallest.

    Args:
        scores: the scores.
        count: how many are taken.
        ties: one of :data:`compcomp.terms.TIES`; see :func:`compcomp.terms.smallest`.
        choices: makes the free choices of "any", and records the margin.
        exact_zeros: True if floats compute scores of 0 exactly, so that such ties do not count for the margin. They
            always do so for negative scores.
    """
    if reading(*scores) == "number" and 0 < count < len(scores):
        last, following = sorted(scores)[count - 1 : count + 1]
        if last == following and (last < 0 or (last == 0 and exact_zeros)):
            choices = _Quiet(choices)
    return [named(taken, choices) for taken in smallest(scores, count, ties, choices)]


# ------------------------------------------------------------------------------------------------ the grid


def largest(weights: Iterable[Term], kept: Iterable[Term], choices: Choices) -> Term:
    """Return the largest magnitude of the kept weights, 0 if there is none. The scale of a group follows from it."""
    found = Max([0, *(If(keep, Abs(w), 0) for w, keep in zip(weights, kept, strict=True))])
    return named(found, choices)


def step_of(largest: Term, reach: int | Fraction, choices: Choices, scales: str = "exact") -> Term:
    """Return the step of a grid as it is stored, given the largest magnitude, and that magnitude in steps."""
    return stored(named(Div(largest, reach), choices), scales, choices)


def row_steps(weight: Array, kept: Array, reach: int | Fraction, choices: Choices, scales: str = "exact") -> Array:
    """Return the step of each row's absmax grid at every weight (out x in).

    Args:
        weight: the weight (out x in).
        kept: truth values (out x in), true for weights that count.
        reach: the largest magnitude in steps.
        choices: collects premises, for z3.
        scales: the format in which steps are stored.
    """
    largests = [largest(row, keep, choices) for row, keep in zip(weight, kept, strict=True)]
    steps = [step_of(found, reach, choices, scales) for found in largests]
    return np.repeat(np.array([steps], dtype=object).T, weight.shape[1], axis=1)


def rounded(x: Term, step: Term, levels: int, rounding: str, choices: Choices, below: int = 0) -> Term:
    """Return the nearest value of the grid (see :func:`compcomp.terms.nearest`), for the prover as a variable."""
    return named(nearest(x, step, levels, rounding, choices, below), choices)


def kept_weights(layer: LayerState, mask: str) -> Array:
    """Return truth values (out x in), true for weights that may be nonzero.

    Args:
        layer: the layer.
        mask: one of :data:`MASKS`. "kept": only weights that the layer's mask keeps.
    """
    if mask == "ignored" or layer.format.mask is None:
        return each(lambda _: True, layer.weight)
    return np.asarray(layer.format.mask)


# ----------------------------------------------------------------------------------------------- left to right


def spread(weight: Array, lower: Array, final_values: Callable[[int, Array], Array], choices: Choices) -> Array:
    """Fix the columns from left to right, and update later columns so that they best compensate for each error.

    The update of later columns is ``-(w_j - q_j) * L[k, j]``. In the literature it is ``-(w_j - q_j) / U_jj * U_jk``
    with the upper Cholesky factor U of H^-1.

    Args:
        weight: the weight (out x in).
        lower: L of :func:`inverse_factor`.
        final_values: ``final_values(j, work)`` returns those of column j, given the weight as updated so far.
        choices: collects premises, for z3.

    Returns:
        The new weight (out x in).
    """
    work, columns = weight.copy(), weight.shape[1]
    for j in range(columns):
        final = final_values(j, work)
        errors = [named(w - q, choices) for w, q in zip(work[:, j], final, strict=True)]
        work[:, j] = final
        for i, error in enumerate(errors):
            for k in range(j + 1, columns):
                work[i, k] = named(work[i, k] - error * lower[k, j], choices)
    return work


def descending(keys: Sequence[Term], choices: Choices) -> list[list[Term]]:
    """Return for each position in descending order a term for each key, true if the key is at that position.

    Equal keys are ordered by index.
    """
    count = len(keys)
    if reading(*keys) == "number":
        order = sorted(range(count), key=lambda j: (-keys[j], j))
        for a, b in pairwise(order):
            if keys[a] != keys[b]:  # equal ones are equal floats too
                choices.near(float((keys[a] - keys[b]) / (abs(keys[a]) + abs(keys[b]))))
        return [[j == chosen for j in range(count)] for chosen in order]
    places = [
        Sum(If(keys[i] >= keys[j] if i < j else keys[i] > keys[j], 1, 0) for i in range(count) if i != j)
        for j in range(count)
    ]
    return [[named(Equal(place, k), choices) for place in places] for k in range(count)]


def rearranged(matrix: Array, order: Sequence[Sequence[Term]], choices: Choices) -> Array:
    """Return the matrix with the columns in this order (of :func:`descending`)."""
    result = np.empty(matrix.shape, dtype=object)
    for i, row in enumerate(matrix):
        for k, chosen in enumerate(order):
            result[i, k] = named(pick(chosen, list(row)), choices)
    return result


def undone(order: Sequence[Sequence[Term]]) -> list[list[Term]]:
    """Return the inverse of an order."""
    return [list(chosen) for chosen in zip(*order, strict=True)]


# --------------------------------------------------------------------------------------------- one at a time


class Greedy:
    """Fix the weights of one row one at a time, and update the others so that they best compensate for each error.

    ``weights`` holds n terms, and ``fixed`` n truth values. ``inverse`` is H^-1 (n x n) with the rows and columns of
    fixed weights eliminated.
    """

    def __init__(self, weights: Sequence[Term], inverse: Array, choices: Choices) -> None:
        self.weights, self.inverse, self.choices = list(weights), inverse, choices
        self.fixed: list[Term] = [False] * len(self.weights)
        self.moved = False
        """True if a weight has been updated, for exact numbers."""

    def fix(self, targets: Sequence[Term], chosen: Sequence[Term]) -> None:
        """Set the chosen weight p to its target, and update the others.

        The update is w_k -= (w_p - target_p) / H^-1_pp * H^-1_pk.

        Args:
            targets: the target of each weight.
            chosen: a truth value for each weight, exactly one of which is true.
        """
        side, choices = len(self.weights), self.choices
        column = [named(pick(chosen, [self.inverse[p, k] for p in range(side)]), choices) for k in range(side)]
        corner = named(pick(chosen, [self.inverse[p, p] for p in range(side)]), choices)
        error = named(pick(chosen, [w - t for w, t in zip(self.weights, targets, strict=True)]), choices)
        share = quotient(error, corner, choices)
        if reading(error) == "number" and error != 0:
            self.moved = True
        done = [Or(f, c) for f, c in zip(self.fixed, chosen, strict=True)]
        updated = [
            If(chosen[k], targets[k], If(self.fixed[k], self.weights[k], self.weights[k] - share * column[k]))
            for k in range(side)
        ]
        self.weights = [named(weight, choices) for weight in updated]
        self.fixed = done
        ratio = [quotient(entry, corner, choices) for entry in column]
        reduced = np.empty((side, side), dtype=object)
        for i in range(side):
            for k in range(i + 1):
                out = Or(done[i], done[k])
                entry = 0 if out is True else If(out, 0, self.inverse[i, k] - ratio[i] * column[k])
                reduced[i, k] = reduced[k, i] = named(entry, choices)
        self.inverse = reduced

    def score(self, k: int, error: Term) -> Term:
        """Return ``error^2 / H^-1_kk``, the increase of the damped output error if weight k is fixed with this error.

        For a weight that is fixed already the result is any number.
        """
        corner = If(self.fixed[k], 1, self.inverse[k, k])
        return quotient(error * error, corner, self.choices)

    def least(self, scores: Sequence[Term], barred: Sequence[Term], ties: str, *, exact_zeros: bool) -> list[Term]:
        """Return a term for each score that is true if it is the least of those that are not barred.

        Args:
            scores: the scores.
            barred: a truth value for each score, true if it is not a candidate.
            ties: one of :data:`compcomp.terms.TIES`.
            exact_zeros: True if floats make the same choice among equal scores of 0, or if that choice does not matter.
        """
        if reading(*scores) != "number":
            bar = named(1 + 2 * Sum(Abs(score) for score in scores), self.choices)
            limited = [named(If(b, bar, s), self.choices) for b, s in zip(barred, scores, strict=True)]
            return smallest(limited, 1, ties, self.choices)
        order = self.choices.order(len(scores)) if ties == "any" else range(len(scores))
        ranked = sorted((s, order[k], k) for k, (s, b) in enumerate(zip(scores, barred, strict=True)) if not b)
        if len(ranked) > 1:
            (first, *_), (second, *_) = ranked[:2]
            if second > 0:
                self.choices.near(float((second - first) / (second + abs(first))))
            elif second == 0 == first and not exact_zeros:
                self.choices.near(0.0)
        return [k == ranked[0][2] for k in range(len(scores))]


def all_of(mask: Array | None, dropped: Array) -> Array:
    """Return the mask that drops these weights, and all weights that ``mask`` (None: no mask) drops."""
    kept = each(Not, dropped)
    return kept if mask is None else each(And, mask, kept)
