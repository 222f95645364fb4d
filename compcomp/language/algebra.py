"""Optima of linear algebra in every reading: the values that some techniques are defined by.

Exact numbers get the exact optimum, batches a float64 one, z3 terms a *contract*: fresh variables with the
inequalities the optimum is known to satisfy. A contract admits more than the optimum, so what is proved
through it holds, and what is refuted through it is only a suspicion until exact numbers confirm it.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import combinations
from math import gcd, lcm

import numpy as np

from compcomp.errors import NotExactError as NotExactError
from compcomp.language.layer import Factors, Grid, LayerState
from compcomp.terms import (
    And,
    Array,
    Batch,
    Choices,
    Div,
    Equal,
    If,
    Or,
    Sum,
    SymbolicChoices,
    Term,
    each,
    reading,
)


def squared_error(error: Array, gram: Array | None) -> Term:
    """``trace(error @ gram @ error.T)``; the squared Frobenius norm when ``gram`` is None."""
    return Sum(((error if gram is None else error @ gram) * error).ravel())


def dense_products(layer: LayerState) -> Array:
    """``W X X'^T`` (out x in): the dense outputs times the current inputs X', of a layer with a Gram matrix."""
    if layer.reference_inputs is None or layer.inputs is None:
        found: Array = layer.reference @ layer.gram
        return found
    return np.asarray(layer.reference @ (layer.reference_inputs @ layer.inputs.T))


# ---------------------------------------------------------------------------------------- least squares


def output_target(layer: LayerState) -> Array:
    """The weight T (out x in) whose outputs on the current inputs X' come closest to the dense ones W X.

    The reference while the inputs are the dense ones. W X - T X' is orthogonal to the rows of X', so for every
    weight V |W X - V X'|_F^2 = |W X - T X'|_F^2 + |(T - V) X'|_F^2: what is best against T is best against W X.
    Of several such weights the nearest to the reference. It has inputs and their Gram matrix.
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


def _target_contract(right: Array, gram: Array, choices: Choices) -> Array:
    if not isinstance(choices, SymbolicChoices):
        raise NotExactError("least squares is symbolic only as a contract for the prover")
    change = each(lambda _: choices.real(), right)
    for one, other in zip((change @ gram).ravel(), right.ravel(), strict=True):
        choices.assume(Equal(one, other))
    return change


def least_squares_change(error: Array, gram: Array, free: Array | None, choices: Choices) -> Array:
    """The change of the weight that minimises the output error, least in norm where it is not unique.

    ``error``: reference minus current weight, out x in. ``gram``: in x in. ``free``: out x in truth values
    of the weights that may change, None for all of them. Returns an out x in change that is 0 elsewhere.
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


LONGEST = 8192
"""Bits of the numbers that exact arithmetic goes on with: beyond them one replay may take hours."""


def require_short(values: Iterable[Term]) -> None:
    """Raise NotExactError where an exact number has grown too long to go on with."""
    for x in values:
        if isinstance(x, Fraction) and max(x.numerator.bit_length(), x.denominator.bit_length()) > LONGEST:
            raise NotExactError(f"a number of more than {LONGEST} bits")


def _change_exact(right: Array, gram: Array, free: Array) -> Array:
    """The change of least norm for which ``change @ gram`` equals ``right`` where free; it is 0 elsewhere."""
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
    weights = _solve(squared, right)  # part is symmetric: part @ weights is the solution of least norm
    for i, row in zip(kept, part, strict=True):
        change[i] = sum((a * b for a, b in zip(row, weights, strict=True)), Fraction(0))
    return change


def _reduce(rows: list[list[Fraction]]) -> tuple[list[list[Fraction]], list[int]]:
    """Reduced row echelon form (Gauss and Jordan) and the pivot columns. Zero rows come last."""
    rows, pivots = [list(row) for row in rows], list[int]()
    for column in range(len(rows[0]) if rows else 0):
        top = len(pivots)
        pivot = next((i for i in range(top, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[top], rows[pivot] = rows[pivot], rows[top]
        lead = rows[top][column]
        rows[top] = [x / lead for x in rows[top]]
        for i in range(len(rows)):
            if i != top and (factor := rows[i][column]):
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[top], strict=True)]
        pivots.append(column)
    return rows, pivots


def _solve(matrix: list[list[Fraction]], right: list[Fraction]) -> list[Fraction]:
    """One solution of a consistent linear system."""
    rows, pivots = _reduce([[*row, b] for row, b in zip(matrix, right, strict=True)])
    solution = [Fraction(0)] * len(right)
    for row, column in zip(rows, pivots, strict=False):
        solution[column] = row[-1]
    return solution


def _nullspace(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """A basis of the vectors that the matrix maps to zero."""
    rows, pivots = _reduce(matrix)
    basis = []
    for free in (j for j in range(len(matrix[0])) if j not in pivots):
        vector = [Fraction(int(j == free)) for j in range(len(matrix[0]))]
        for row, column in zip(rows, pivots, strict=False):
            vector[column] = -row[free]
        basis.append(vector)
    return basis


def stack(terms: Array, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """An object array of batches as one float array, candidates first: (size, *shape)."""
    columns = [
        np.broadcast_to(np.asarray(x.values if isinstance(x, Batch) else float(x), dtype=float), (size,))
        for x in terms.ravel()
    ]
    return np.stack(columns, axis=1).reshape(size, *terms.shape)


def unstack(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Array:
    """The inverse of :func:`stack`."""
    result = np.empty(values.shape[1:], dtype=object)
    for index in np.ndindex(*result.shape):
        result[index] = Batch(values[(slice(None), *index)])
    return result


def gram_of(inputs: Array) -> Array:
    """The Gram matrix (in x in) of inputs (in x tokens)."""
    if reading(*inputs.ravel()) == "batch":
        values = stack(inputs, batch_size(inputs))
        return unstack(values @ values.transpose(0, 2, 1))
    gram: Array = inputs @ inputs.T
    return gram


def batch_size(*arrays: Array) -> int:
    """How many candidates the batches among these terms stand for."""
    return next(len(x.values) for array in arrays for x in array.ravel() if isinstance(x, Batch))


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


def least_solution(right: Array, gram: Array, choices: Choices) -> Array:
    """Y of least norm with ``Y @ gram`` equal to ``right``, for a positive semidefinite gram for which there is one."""
    kind, free = reading(*right.ravel(), *gram.ravel()), each(lambda _: True, right)
    if kind == "number":
        return _change_exact(right, gram, free)
    if kind == "batch":
        return _change_batch(stack(right, batch_size(right, gram)), gram, free)
    return _target_contract(right, gram, choices)


def right_factor(left: Array, target: Array, choices: Choices) -> Array:
    """R (rank x in) that minimises |T - L R|_F for L (out x rank) and T (out x in): pinv(L) T, least in norm.

    It minimises |(T - L R) X|_F for every X as well.
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


# -------------------------------------------------------------------------------- coordinate descent


def descend_on_grid(
    weight: Array, error: Array, gram: Array, grid: Grid, free: Array | None, sweeps: int, choices: Choices
) -> Array:
    """Move each free weight in turn to the grid value of least output error; never increases it.

    ``weight``: on the grid, out x in. ``error``: effective weight minus reference, out x in. A weight stays
    where it is unless the move strictly decreases the error. Returns the new weight.
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
        lowest, above = (-grid.levels, value) if offset is None else (0, value - offset)
        choices.assume(And(level >= lowest, level <= grid.levels, above == z3.ToReal(level) * step))
        return If(keep, value, w)

    moved = each(move, weight, free, grid.step, np.full(weight.shape, None) if grid.offset is None else grid.offset)
    choices.assume(squared_error(error + moved - weight, gram) <= squared_error(error, gram))
    return moved


# ----------------------------------------------------------------------------------------- grids of inputs


def off_grid(values: Iterable[Term], bits: int, tolerance: float = 0) -> Term:
    """Whether these numbers are not among 2^bits neighbouring multiples of any one step, 0 one of them.

    Exact numbers: the largest step of which all are multiples is their greatest common divisor. Floats, for which
    ``tolerance`` is more than 0: the step is the width from the least to the largest divided by a whole number.
    """
    terms = list(values)
    kind = reading(*terms)
    if kind == "batch" or (kind == "number" and tolerance):
        return _off_grid_floats(terms, bits, tolerance)
    if kind != "number":
        raise NotExactError("whether inputs lie on some grid is asked of numbers alone")
    exact = [Fraction(x) for x in terms]
    unit = lcm(*(x.denominator for x in exact))
    whole = [int(x * unit) for x in exact]
    return max(0, *whole) - min(0, *whole) > (2**bits - 1) * gcd(*whole)


def _off_grid_floats(terms: list[Term], bits: int, tolerance: float) -> Term:
    size = next((len(x.values) for x in terms if isinstance(x, Batch)), 1)
    table = stack(np.array(terms, dtype=object), size)  # candidates, values
    width = table.max(axis=1, initial=0) - table.min(axis=1, initial=0)
    table = table / np.where(width == 0, 1, width)[:, None]
    found = width == 0
    for steps in range(1, 2**bits):
        apart = np.abs(table * steps - np.rint(table * steps)).max(axis=1)
        found |= apart <= tolerance * steps
    return Batch(~found) if any(isinstance(x, Batch) for x in terms) else not bool(found[0])


# ------------------------------------------------------------------------------------------ low rank


def best_rank(matrix: Array, rank: int, choices: Choices, gram: Array | None = None) -> Factors:
    """Factors (out x rank, rank x in) whose product is the closest matrix of that rank, in Frobenius norm.

    With a Gram matrix G = X X^T (in x in), the one of closest outputs: it minimises |(M - M') X|_F. M' = U U^T M for
    the leading eigenvectors U (out x rank) of M G M^T. Eigenvectors of eigenvalue 0 are left out: what no input sees
    goes to zero, unless the rank is no constraint (rank >= min(out, in)). Raises NotExactError on exact numbers when
    the subspace is not rational or not unique.
    """
    kind = reading(*matrix.ravel(), *([] if gram is None else gram.ravel()))
    if kind == "batch":
        return _best_rank_batch(matrix, rank, gram)
    if kind == "number":
        return _factorise(_project(matrix, rank) if gram is None else _project_outputs(matrix, rank, gram), rank)
    return _rank_contract(matrix, rank, choices, gram)


def _best_rank_batch(matrix: Array, rank: int, gram: Array | None) -> Factors:
    size = batch_size(matrix) if gram is None else batch_size(matrix, gram)
    values = stack(matrix, size)
    if gram is None or rank >= min(matrix.shape):
        u, s, _ = np.linalg.svd(values, full_matrices=False)
    else:
        root = _root_batch(gram, size)
        u, s, _ = np.linalg.svd(values @ root, full_matrices=False)
        largest = np.linalg.norm(values, axis=(1, 2)) * np.linalg.norm(root, axis=(1, 2))
        u = u * (s > SEEN * largest[:, None])[:, None, :]
    keep = min(rank, s.shape[1])
    left, right = np.zeros((size, matrix.shape[0], rank)), np.zeros((size, rank, matrix.shape[1]))
    left[..., :keep] = u[..., :keep]
    right[:, :keep] = u[..., :keep].transpose(0, 2, 1) @ values
    return Factors(unstack(left), unstack(right))


SEEN = 1e-10
"""The least share of |M| |S|, S S^T = G, that counts as more than zero among singular values of M S in floats."""


def _root_batch(gram: Array, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """S (in x in) with S S^T = G for each candidate."""
    values, vectors = np.linalg.eigh(stack(gram, size))
    values = np.where(values > 1e-12 * np.abs(values[:, -1:]), values, 0)
    root: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = vectors * np.sqrt(values)[:, None, :]
    return root


def _rank_contract(matrix: Array, rank: int, choices: Choices, gram: Array | None) -> Factors:
    identity = np.array([[int(i == j) for j in range(matrix.shape[1])] for i in range(matrix.shape[1])], dtype=object)
    if rank >= min(matrix.shape):
        return Factors(matrix, identity)
    if not isinstance(choices, SymbolicChoices):
        raise NotExactError("a truncated SVD is symbolic only as a contract for the prover")
    closest = each(lambda _: choices.real(), matrix)
    for metric in (None,) if gram is None else (None, gram):  # a projection of the matrix, from the left
        rest = matrix - closest
        choices.assume(Equal(Sum(((rest if metric is None else rest @ metric) * closest).ravel()), 0))
        choices.assume(squared_error(rest, metric) <= squared_error(matrix, metric))
    return Factors(closest, identity)


def _project(matrix: Array, rank: int) -> Array:
    """The closest matrix of this rank: the matrix projected on its leading left singular subspace, exactly."""
    if matrix.shape[0] > matrix.shape[1]:
        transposed: Array = _project(matrix.T, rank).T
        return transposed
    exact = each(Fraction, matrix)
    if len(_reduce(exact.tolist())[1]) <= rank:
        return exact
    whole = _whole(exact)
    return _leading_part(exact, whole @ whole.T, rank)


def _project_outputs(matrix: Array, rank: int, gram: Array) -> Array:
    """U U^T M for the leading eigenvectors U of M G M^T of eigenvalues above 0, exactly."""
    exact = each(Fraction, matrix)
    if rank >= min(matrix.shape):
        return exact
    whole = _whole(exact)
    square = whole @ _whole(each(Fraction, gram)) @ whole.T
    pivots = _reduce(square.tolist())[1]
    if len(pivots) <= rank:
        closest: Array = _span_projector(square[:, pivots].T.tolist()) @ exact if pivots else exact * 0
        return closest
    return _leading_part(exact, square, rank)


def _whole(matrix: Array) -> Array:
    """The matrix times the least common multiple of its denominators."""
    unit = lcm(*(x.denominator for x in matrix.ravel()))
    return each(lambda x: x * unit, matrix)


def _leading_part(exact: Array, square: Array, rank: int) -> Array:
    """The matrix projected on the ``rank`` leading eigenvectors of ``square``, integers of higher rank (out x out).

    Rational eigenvalues of integers are integers.
    """
    values = np.linalg.eigvalsh(square.astype(float))[::-1]
    if values[rank - 1] - values[rank] > 1e-9 * values[0]:  # far above the error of eigvalsh
        leading = _eigenspace(square, values[:rank])
        if leading is not None:
            closest: Array = _span_projector(leading) @ exact
            return closest
        if (rest := _eigenspace(square, values[rank:])) is not None:
            closest = exact - _span_projector(rest) @ exact
            return closest
    raise NotExactError(f"the leading singular subspace of rank {rank} is not rational or not unique")


def _eigenspace(square: Array, values: Array) -> list[list[Fraction]] | None:
    """A basis of the eigenvectors of these eigenvalues (floats, with multiplicity); None unless all are integers."""
    if any(abs(v - round(v)) > 1e-9 * (1 + abs(v)) for v in values.tolist()):  # not to mistake a neighbour
        return None
    basis: list[list[Fraction]] = []
    for value in sorted({round(float(v)) for v in values}):
        basis += _nullspace(
            [[x - value * (i == j) for j, x in enumerate(row)] for i, row in enumerate(square.tolist())]
        )
    return basis if len(basis) == len(values) else None


def _span_projector(basis: list[list[Fraction]]) -> Array:
    """The orthogonal projector on the span of independent vectors."""
    b = np.array(basis, dtype=object)  # vectors x n
    inner = (b @ b.T).tolist()
    columns = [_solve(inner, list(column)) for column in b.T]  # n x vectors
    projector: Array = np.array(columns, dtype=object) @ b
    return projector


def _factorise(matrix: Array, rank: int) -> Factors:
    """Any exact factors of a matrix of at most this rank, padded with zeros."""
    reduced, pivots = _reduce(matrix.tolist())
    left = np.full((matrix.shape[0], rank), Fraction(0), dtype=object)
    right = np.full((rank, matrix.shape[1]), Fraction(0), dtype=object)
    for k, column in enumerate(pivots):
        left[:, k] = matrix[:, column]
        right[k, :] = reduced[k]
    return Factors(left, right)


def rank_exceeds(matrix: Array, rank: int) -> Term:
    """Whether the matrix has more than this rank: exactly for numbers and z3, above 1e-9 for batches."""
    if rank >= min(matrix.shape):
        return False
    kind = reading(*matrix.ravel())
    if kind == "batch":
        values = np.linalg.svd(stack(matrix, batch_size(matrix)), compute_uv=False)
        return Batch(values[:, rank] > 1e-9 * (1 + values[:, 0]))
    if kind == "number":
        return len(_reduce(each(Fraction, matrix).tolist())[1]) > rank
    minors = [
        _determinant(matrix[np.ix_(rows, columns)])
        for rows in combinations(range(matrix.shape[0]), rank + 1)
        for columns in combinations(range(matrix.shape[1]), rank + 1)
    ]
    return Or(*(minor != 0 for minor in minors))


def _determinant(matrix: Array) -> Term:
    if len(matrix) == 1:
        return matrix[0, 0]
    rest = range(1, len(matrix))
    return Sum(
        (-1) ** j * matrix[0, j] * _determinant(matrix[np.ix_(rest, [k for k in range(len(matrix)) if k != j])])
        for j in range(len(matrix))
    )
