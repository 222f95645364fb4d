"""Compute the closest matrix of a rank in every reading, and decide if a matrix exceeds a rank.

Exact numbers lead to the exact optimum, batches to a float64 optimum, and z3 terms to a *contract* (see
:mod:`compcomp.algebra.least_squares`).
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import lcm

import numpy as np

from compcomp.algebra.exact import nullspace, row_echelon, solve
from compcomp.errors import NotExactError
from compcomp.layers.batches import batch_size, stack, unstack
from compcomp.layers.gram import squared_error
from compcomp.layers.state import Factors
from compcomp.terms import Array, Batch, Choices, Equal, Or, Sum, SymbolicChoices, Term, each, reading


def best_rank(matrix: Array, rank: int, choices: Choices, gram: Array | None = None) -> Factors:
    """Return factors (out x rank, rank x in) whose product is the closest matrix of that rank, in Frobenius norm.

    With a Gram matrix G = X X^T, the product is the matrix M' of closest outputs, which minimises |(M - M') X|_F. It is
    M' = U U^T M for the leading eigenvectors U (out x rank) of M G M^T. Eigenvectors of eigenvalue 0 are left out, so
    that directions which no input reaches become zero, unless the rank is no constraint (rank >= min(out, in)).

    Args:
        matrix: M (out x in).
        rank: the rank.
        choices: collects the premises of the contract, for z3.
        gram: G (in x in), or None for the Frobenius norm of M - M'.

    Raises:
        NotExactError: for exact numbers, the subspace is not rational or not unique.
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
"""The smallest singular value of M S that counts as nonzero in floats, as a share of |M| |S|, for S S^T = G."""


def _root_batch(gram: Array, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return S (in x in) with S S^T = G, for each candidate."""
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
    """Return the closest matrix of this rank, exactly: the matrix projected on its leading left singular subspace."""
    if matrix.shape[0] > matrix.shape[1]:
        transposed: Array = _project(matrix.T, rank).T
        return transposed
    exact = each(Fraction, matrix)
    if len(row_echelon(exact.tolist())[1]) <= rank:
        return exact
    whole = _whole(exact)
    return _leading_part(exact, whole @ whole.T, rank)


def _project_outputs(matrix: Array, rank: int, gram: Array) -> Array:
    """Return U U^T M, exactly, for the leading eigenvectors U of M G M^T with eigenvalues above 0."""
    exact = each(Fraction, matrix)
    if rank >= min(matrix.shape):
        return exact
    whole = _whole(exact)
    square = whole @ _whole(each(Fraction, gram)) @ whole.T
    pivots = row_echelon(square.tolist())[1]
    if len(pivots) <= rank:
        closest: Array = _span_projector(square[:, pivots].T.tolist()) @ exact if pivots else exact * 0
        return closest
    return _leading_part(exact, square, rank)


def _whole(matrix: Array) -> Array:
    """Return the matrix times the least common multiple of its denominators."""
    unit = lcm(*(x.denominator for x in matrix.ravel()))
    return each(lambda x: x * unit, matrix)


def _leading_part(exact: Array, square: Array, rank: int) -> Array:
    """Return the matrix projected on the ``rank`` leading eigenvectors of ``square``.

    ``square`` (out x out) is an integer matrix of higher rank. Rational eigenvalues of an integer matrix are integers.

    Raises:
        NotExactError: the subspace is not rational or not unique.
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
    """Return a basis of the eigenvectors for these eigenvalues (floats, with multiplicity).

    Returns None if some eigenvalue is not an integer.
    """
    if any(abs(v - round(v)) > 1e-9 * (1 + abs(v)) for v in values.tolist()):  # not to mistake a neighbour
        return None
    basis: list[list[Fraction]] = []
    for value in sorted({round(float(v)) for v in values}):
        basis += nullspace([[x - value * (i == j) for j, x in enumerate(row)] for i, row in enumerate(square.tolist())])
    return basis if len(basis) == len(values) else None


def _span_projector(basis: list[list[Fraction]]) -> Array:
    """Return the orthogonal projector on the span of independent vectors."""
    b = np.array(basis, dtype=object)  # vectors x n
    inner = (b @ b.T).tolist()
    columns = [solve(inner, list(column)) for column in b.T]  # n x vectors
    projector: Array = np.array(columns, dtype=object) @ b
    return projector


def _factorise(matrix: Array, rank: int) -> Factors:
    """Return exact factors of a matrix of at most this rank, padded with zeros."""
    reduced, pivots = row_echelon(matrix.tolist())
    left = np.full((matrix.shape[0], rank), Fraction(0), dtype=object)
    right = np.full((rank, matrix.shape[1]), Fraction(0), dtype=object)
    for k, column in enumerate(pivots):
        left[:, k] = matrix[:, column]
        right[k, :] = reduced[k]
    return Factors(left, right)


def rank_exceeds(matrix: Array, rank: int) -> Term:
    """Return a term that is true if the rank of the matrix is larger than ``rank``.

    It is exact for numbers and z3 terms. For batches, singular values above 1e-9 (1 + the largest) count as nonzero.
    """
    if rank >= min(matrix.shape):
        return False
    kind = reading(*matrix.ravel())
    if kind == "batch":
        values = np.linalg.svd(stack(matrix, batch_size(matrix)), compute_uv=False)
        return Batch(values[:, rank] > 1e-9 * (1 + values[:, 0]))
    if kind == "number":
        return len(row_echelon(each(Fraction, matrix).tolist())[1]) > rank
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
