"""Do coordinate descent on a grid, in every reading. For z3 terms only known properties of the result are used."""

from __future__ import annotations

import numpy as np

from compcomp.layers.gram import squared_error
from compcomp.layers.state import Grid
from compcomp.terms import And, Array, Choices, Div, If, Or, SymbolicChoices, Term, each, reading


def descend_on_grid(
    weight: Array, error: Array, gram: Array, grid: Grid, free: Array | None, sweeps: int, choices: Choices
) -> Array:
    """Move each free weight in turn to the grid value of least output error, if that strictly decreases the error.

    The output error never increases.

    Args:
        weight: the weight (out x in), on the grid.
        error: the effective weight minus the reference (out x in).
        gram: the Gram matrix (in x in).
        grid: the grid.
        free: truth values (out x in), true for weights that may move. None: all of them.
        sweeps: the number of passes over the columns.
        choices: records the margin, and collects premises for z3.

    Returns:
        The new weight (out x in).
    """
    rows, columns = weight.shape
    if free is None:
        free = each(lambda _: True, weight)
    if reading(*weight.ravel(), *gram.ravel()) == "z3":
        return _descent_contract(weight, error, gram, grid, free, choices)
    weight, gradient = weight.copy(), error @ gram
    for _ in range(sweeps):
        for j in range(columns):
            curvature = gram[j, j]
            for i in range(rows):
                target = weight[i, j] - Div(gradient[i, j], curvature)
                value = grid.nearest(target, (i, j), choices)
                change = value - weight[i, j]
                gain = change * (2 * gradient[i, j] + curvature * change)
                _note_gain(gain, change, gradient[i, j], choices)
                moves = And(free[i, j], gain < 0)
                weight[i, j] = If(moves, value, weight[i, j])
                gradient[i, :] = gradient[i, :] + If(moves, change, 0) * gram[j, :]
    return weight


def _note_gain(gain: Term, change: Term, slope: Term, choices: Choices) -> None:
    if reading(gain, slope) == "number" and change:
        scale = abs(float(change)) * abs(float(slope)) * 2
        choices.near(abs(float(gain)) / scale if scale else float("inf"))


def _descent_contract(weight: Array, error: Array, gram: Array, grid: Grid, free: Array, choices: Choices) -> Array:
    assert isinstance(choices, SymbolicChoices)
    import z3

    def move(w: Term, keep: Term, step: Term, offset: Term | None) -> Term:
        value = choices.real()
        if grid.codes is not None:
            choices.assume(Or(*(value == z3.RealVal(code) * step for code in grid.codes)))
            return If(keep, value, w)
        level = choices.integer()
        above = value if offset is None else value - offset
        choices.assume(And(level >= grid.lowest, level <= grid.levels, above == z3.ToReal(level) * step))
        return If(keep, value, w)

    moved = each(move, weight, free, grid.step, np.full(weight.shape, None) if grid.offset is None else grid.offset)
    choices.assume(squared_error(error + moved - weight, gram) <= squared_error(error, gram))
    return moved
