"""Solve least squares problems in every reading: weights of least output error.

Exact numbers lead to the exact optimum, batches to a float64 optimum. z3 terms lead to a *contract*: fresh variables
with the inequalities that the optimum is known to satisfy. A contract admits more values than the optimum. A statement
proved with it therefore holds, but a refutation is only a suspicion until exact numbers confirm it.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from compcomp.algebra.exact import require_short, solve
from compcomp.errors import NotExactError
from compcomp.layers.batches import batch_size, stack, unstack
from compcomp.layers.gram import squared_error
from compcomp.layers.state import LayerState
from compcomp.terms import Array, Choices, Equal, If, SymbolicChoices, each, reading


def output_target(layer: LayerState) -> Array:
    """Return the weight T (out x in) whose outputs on the current inputs X' are closest to the dense outputs W X.

    T is the reference if the inputs are the dense ones. W X - T X' is orthogonal to the rows of X'. So for every weight
    V: |W X - V X'|_F^2 = |W X - T X'|_F^2 + |(T - V) X'|_F^2, and the best weight against T is best against W X. Of
    several such weights T is the nearest to the reference.

    Args:
        layer: a layer with inputs and their Gram matrix.
    """
    target: Array = layer.reference
    if layer.reference_inputs is None:
        return target
    inputs, gram, choices = layer.inputs, layer.gram, layer.choices
    assert inputs is not None and gram is not None
    free, kind = each(lambda _: True, target), reading(*target.ravel(), *gram.ravel())
    if kind == "batch":
        size = batch_size(target, gram)
        reference, dense, now = (stack(array, size) for array in (target, layer.reference_inputs, inputs))
        change = _change_batch(reference @ (dense - now) @ now.transpose(0, 2, 1), gram, free)
    else:
        right = target @ (layer.reference_inputs - inputs) @ inputs.T
        change = _change_exact(right, gram, free) if kind == "number" else _target_contract(right, gram, choices)
    target = target + change
    return target


def least_squares_change(error: Array, gram: Array, free: Array | None, choices: Choices) -> Array:
    """Return the change of the weight that minimises the output error, least in norm if it is not unique.

    Args:
        error: the reference minus the current weight (out x in).
        gram: the Gram matrix (in x in).
        free: truth values (out x in), true for weights that may change. None: all of them.
        choices: collects the premises of the contract, for z3.

    Returns:
        The change (out x in), which is 0 where weights may not change.

    Raises:
        NotExactError: an exact number has become too long, or terms are symbolic and ``choices`` collects no premises.
    """
    if free is None:
        free = each(lambda _: True, error)
    kind = reading(*error.ravel(), *gram.ravel())
    if kind == "batch":
        size = batch_size(error, gram)
        return _change_batch(stack(error, size) @ stack(gram, size), gram, free)
    if kind in ("z3", "sympy"):
        return _change_contract(error, gram, free, choices)
    return _change_exact(error @ gram, gram, free)


def least_solution(right: Array, gram: Array, choices: Choices) -> Array:
    """Return Y of least norm with ``Y @ gram`` equal to ``right``.

    Args:
        right: a matrix (out x in) for which there is such a Y.
        gram: a positive semidefinite matrix (in x in).
        choices: collects the premises of the contract, for z3.
    """
    kind, free = reading(*right.ravel(), *gram.ravel()), each(lambda _: True, right)
    if kind == "number":
        return _change_exact(right, gram, free)
    if kind == "batch":
        return _change_batch(stack(right, batch_size(right, gram)), gram, free)
    return _target_contract(right, gram, choices)


def right_factor(left: Array, target: Array, choices: Choices) -> Array:
    """Return R (rank x in) that minimises |T - L R|_F, namely pinv(L) T, which is least in norm.

    It also minimises |(T - L R) X|_F for every X.

    Args:
        left: L (out x rank).
        target: T (out x in).
        choices: collects the premises of the contract, for z3.
    """
    kind = reading(*left.ravel(), *target.ravel())
    if kind == "batch":
        size = batch_size(left, target)
        return unstack(np.linalg.pinv(stack(left, size), rcond=1e-10) @ stack(target, size))
    square, outputs = left.T @ left, target.T @ left  # in x rank
    if kind == "number":
        fitted: Array = _change_exact(outputs, square, each(lambda _: True, outputs)).T
    else:
        fitted = _target_contract(outputs, square, choices).T
    return fitted


def _change_exact(right: Array, gram: Array, free: Array) -> Array:
    """Return the change of least norm for which ``change @ gram`` equals ``right`` where free. It is 0 elsewhere."""
    rows = [_row_change(row, gram, mask) for row, mask in zip(right, free, strict=True)]
    return np.array(rows, dtype=object).reshape(right.shape)


def _row_change(outputs: Array, gram: Array, free: Array) -> list[Fraction]:
    kept = [j for j in range(len(outputs)) if free[j]]
    change = [Fraction(0)] * len(outputs)
    if not kept:
        return change
    part = [[Fraction(gram[i, j]) for j in kept] for i in kept]
    right = [Fraction(outputs[i]) for i in kept]
    require_short((*right, *(x for row in part for x in row)))
    squared = [[sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0)) for column in part] for row in part]
    weights = solve(squared, right)  # part is symmetric: part @ weights is the solution of least norm
    for i, row in zip(kept, part, strict=True):
        change[i] = sum((a * b for a, b in zip(row, weights, strict=True)), Fraction(0))
    return change


def _change_batch(right: np.ndarray[tuple[int, ...], np.dtype[np.float64]], gram: Array, free: Array) -> Array:
    size = len(right)  # candidates, out, in
    grams, kept = stack(gram, size), stack(free, size)
    right = kept * right
    part = kept[..., :, None] * grams[:, None] * kept[..., None, :]  # (size, out, in, in)
    return unstack((np.linalg.pinv(part, rcond=1e-11, hermitian=True) @ right[..., None])[..., 0])


def _change_contract(error: Array, gram: Array, free: Array, choices: Choices) -> Array:
    if not isinstance(choices, SymbolicChoices):
        raise NotExactError("least squares is symbolic only as a contract for the prover")
    change = each(lambda keep: If(keep, choices.real(), 0), free)
    choices.assume(squared_error(error - change, gram) <= squared_error(error, gram))
    gradient = (error - change) @ gram  # it vanishes on the free weights at every minimiser
    for index in np.ndindex(*error.shape):
        choices.assume(If(free[index], Equal(gradient[index], 0), True))
    return change


def _target_contract(right: Array, gram: Array, choices: Choices) -> Array:
    if not isinstance(choices, SymbolicChoices):
        raise NotExactError("least squares is symbolic only as a contract for the prover")
    change = each(lambda _: choices.real(), right)
    for one, other in zip((change @ gram).ravel(), right.ravel(), strict=True):
        choices.assume(Equal(one, other))
    return change
