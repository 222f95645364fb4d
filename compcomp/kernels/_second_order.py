"""Shared parts of second-order kernels: the damped Gram matrix and the updates, in float64."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch

from compcomp.errors import InputError
from compcomp.kernels._shared import Tensor, rounded
from compcomp.language.technique import Technique
from compcomp.layers.grids import GRIDS, Levels
from compcomp.layers.state import LayerState

EMPTY = 1e-14
"""The share of the largest singular value below which a singular value belongs to columns of zeros."""

BLOCK = 128
"""The number of columns whose errors are applied to all later columns together, as one matrix product."""

SMALL = 16
"""The number of columns inside a block to which errors are applied one column at a time."""


class Spectrum:
    """Hold eigenvalues and eigenvectors of positive semidefinite matrices (... x n x n), scaled to a unit diagonal.

    Thanks to the scaling, a feature a million times larger than the others hides none of them: a value that is cut off
    as zero is small compared with the feature's own size.

    scale: The roots of the diagonal (... x n), 1 where it is zero.
    values, vectors: Those of the scaled matrix, ascending.
    real: True for values that count as more than zero, by a share of the largest.
    """

    def __init__(self, gram: Tensor, tolerance: float) -> None:
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        self.scale: Tensor = torch.where(diagonal > 0, diagonal, 1).sqrt()
        self.values, self.vectors = torch.linalg.eigh(gram / self.scale[..., None] / self.scale[..., None, :])
        self.real: Tensor = self.values > tolerance * self.values[..., -1:].abs()

    def root(self) -> Tensor:
        """Return S with S S^T equal to the matrix."""
        found: Tensor = (
            self.scale[..., None] * self.vectors * torch.where(self.real, self.values, 0).sqrt()[..., None, :]
        )
        return found

    def solve(self, right: Tensor) -> Tensor:
        """Return the x of least norm that minimises the error of ``matrix x = right`` (... x n x k)."""
        inverse = torch.where(self.real, 1 / self.values, 0)[..., None]
        found: Tensor = (self.vectors @ (inverse * (self.vectors.mT @ (right / self.scale[..., None])))) / self.scale[
            ..., None
        ]
        return found - self.unseen(found)

    def unseen(self, vectors: Tensor) -> Tensor:
        """Return the part of vectors (... x n x k) that the matrix maps to zero."""
        basis = torch.where(self.real[..., None, :], 0, self.vectors / self.scale[..., None])
        # Columns of zeros must not get into an orthonormal basis, as they do with a QR decomposition.
        left, sizes, _ = torch.linalg.svd(basis, full_matrices=False)
        left = torch.where((sizes > EMPTY * sizes[..., :1])[..., None, :], left, 0)
        found: Tensor = left @ (left.mT @ vectors)
        return found


def damped(technique: Technique, layer: LayerState, damping: Fraction) -> tuple[Tensor, Tensor]:
    """Return the Gram matrix (in x in, float64) with its diagonal damped, and which inputs are always zero (in).

    See :func:`compcomp.algebra.second_order.damped`.
    """
    diagonal, dead = _damped_diagonal(layer, damping)
    assert layer.gram is not None
    gram = layer.gram.to(torch.float64, copy=True)
    gram.diagonal().copy_(diagonal)
    return gram, dead


def _damped_diagonal(layer: LayerState, damping: Fraction) -> tuple[Tensor, Tensor]:
    """Return the damped diagonal of a layer's Gram matrix (in, float64), and which inputs are always zero (in)."""
    assert layer.gram is not None
    diagonal = layer.gram.diagonal().to(torch.float64, copy=True)
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1)
    return diagonal.add_(float(damping) * diagonal.mean()), dead


def inverse_root(technique: Technique, gram: Tensor) -> Tensor:
    """Return the upper triangular U with ``gram^-1 = U^T U``.

    Raises:
        InputError: The Gram matrix is not positive definite.
    """
    root = _root(technique, gram.flip(0, 1))
    upper = root.flip(0, 1)  # gram = upper @ upper.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverted: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return inverted


def _root(technique: Technique, gram: Tensor) -> Tensor:
    """Return the lower Cholesky factor, in the memory of ``gram``. Raises InputError if there is none."""
    info = torch.empty((), dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(gram, out=(gram, info))
    if bool(info != 0):
        raise InputError("a Gram matrix that is not positive definite", "one that is, or more damping", str(technique))
    return gram


@dataclass(frozen=True)
class Decomposition:
    """Hold the damped Gram matrix H as ``(I + C) D (I + C)^T`` with C strictly upper triangular and D diagonal.

    With U the upper Cholesky factor of H^-1, this is ``I + C = (diag(U)^-1 U)^-1`` and ``D = diag(U)^-2``.

    Args:
        coupling: I + C (in x in, float64).
        pivots: The squares of the diagonal of U (in).
        dead: True for inputs that are always zero (in).
        order: The columns in the order in which they are fixed (in), in which coupling and pivots are. None: as given.
    """

    coupling: Tensor
    pivots: Tensor
    dead: Tensor
    order: Tensor | None


def decomposed(technique: Technique, layer: LayerState, damping: Fraction, order: str) -> Decomposition:
    """Return the decomposition of a layer's damped Gram matrix, with the columns in an order of GPTQ.

    The last result is kept as long as its Gram matrix lives: layers that read the same inputs share one matrix.

    Raises:
        InputError: The damped matrix is not positive definite.
    """
    gram = layer.gram
    assert gram is not None
    version = -1 if gram.is_inference() else gram._version
    key = (version, float(gram.sum()), damping, order)
    for known, of, result in tuple(_LATEST):
        if of() is gram and known == key:
            return result
    _LATEST.clear()  # before the memory of another is needed
    result = _decomposed(technique, layer, damping, order)
    _LATEST[:] = [(key, weakref.ref(gram, _forget), result)]
    return result


_LATEST: list[tuple[tuple[object, ...], weakref.ref[Tensor], Decomposition]] = []


def _forget(gone: weakref.ref[Tensor]) -> None:
    _LATEST[:] = [entry for entry in _LATEST if entry[1] is not gone]


def _decomposed(technique: Technique, layer: LayerState, damping: Fraction, order: str) -> Decomposition:
    assert layer.gram is not None
    diagonal, dead = _damped_diagonal(layer, damping)
    if order == "activation":
        keys = layer.gram.diagonal().masked_fill(dead, 1)
        places = keys.sort(descending=True, stable=True).indices
        backwards = places.flip(0)
        gram = layer.gram[backwards].T.contiguous()[backwards].T  # rows are copied faster than columns
        diagonal = diagonal[backwards]
    else:
        places, gram, diagonal = None, layer.gram.flip(0, 1), diagonal.flip(0)
    gram = gram.to(torch.float64)
    gram.diagonal().copy_(diagonal)
    root = _root(technique, gram)
    diagonal = root.diagonal().clone()
    return Decomposition(root.div_(diagonal).flip(0, 1), diagonal.flip(0).reciprocal().square(), dead, places)


def spread(
    work: Tensor,
    coupling: Tensor,
    final_values: Callable[[int, Tensor], Tensor],
    size: int = BLOCK,
    enter: Callable[[slice, Tensor], None] | None = None,
) -> None:
    """Fix the columns left to right, with later columns compensating for the error of each.

    ``final_values(j, values)`` returns the final values (out) of column j; it may change ``values``. These are
    ``w_j + sum over i < j of C_ij (w_i - q_i)`` with w the values given and q the final ones. They equal the values
    after the updates of [frantar2023] one by one, and no inverse of the Gram matrix has to be computed.

    ``enter``, if given, is called before every ``size`` consecutive columns (or those that are left). Its second
    argument holds their values (columns x out) after the updates for all columns before them. With S the sums above
    over these columns alone, they are ``W + (I + C)^-T S``, where C is the part of the group's own columns.

    Args:
        work: The weight transposed, in x out, float64. It is changed.
        coupling: I + C of :class:`Decomposition`.
        final_values: The function that fixes a column.
        size: The number of columns in a group.
        enter: The function that looks at a group.
    """
    columns, errors = len(work), work.clone()

    def account(part: slice, since: int) -> None:
        """Add the terms of the columns from ``since`` on to those of ``part``."""
        if since < part.start:
            before = slice(since, part.start)
            work[part].addmm_(coupling[before, part].T, errors[before])

    for part in _parts(columns, size):
        for group in _pieces(part, size):
            account(group, part.start)
            if enter is not None and group.start % size == 0:
                whole = slice(group.start, min(group.start + size, columns))
                sums, own = (work[whole] - errors[whole]).T, coupling[whole, whole]
                found = torch.linalg.solve_triangular(own, sums, upper=True, left=False, unitriangular=True)
                enter(whole, found.T.add_(errors[whole]))
            for some in _pieces(group, SMALL):
                account(some, group.start)
                couplings, left = coupling[some, some].T.contiguous(), errors[some]
                for k, (value, error) in enumerate(zip(work[some].unbind(), left.unbind(), strict=True)):
                    if k:
                        value.addmv_(left[:k].T, couplings[k, :k])
                    error.sub_(final_values(some.start + k, value))
        work[part.stop :].addmm_(coupling[part, part.stop :].T, errors[part])


def _pieces(part: slice, size: int) -> Iterator[slice]:
    """Return consecutive slices of at most ``size`` columns."""
    for start in range(part.start, part.stop, size):
        yield slice(start, min(start + size, part.stop))


def _parts(columns: int, size: int) -> Iterator[slice]:
    """Return slices of at most :data:`BLOCK` columns: whole groups of ``size``, or pieces of one."""
    start = 0
    while start < columns:
        most = BLOCK // size * size if size <= BLOCK else min(BLOCK, size - start % size)
        stop = min(start + most, columns)
        yield slice(start, stop)
        start = stop


class Rounding:
    """Round values to the grids of rows."""

    def __init__(
        self,
        largest: Tensor,
        step: Tensor,
        levels: int,
        rounding: str,
        of: Levels = GRIDS["narrow"],
        scales: str = "exact",
    ) -> None:
        """Take the grids of values of shape (out) or (out x in).

        Args:
            largest: The largest magnitudes of the grids, (out) or (out x 1), float64.
            step: The steps, as stored.
            levels: The number of grid values above zero.
            rounding: The rule for midpoints.
            of: The kind of the grids, not a signed one.
            scales: The format of the steps. Levels are those of stored steps, or of exact ones.
        """
        self._step, self._dtype = step.to(torch.float64), step.dtype
        size, self._reach = (largest, float(of.reach(levels))) if scales == "exact" else (self._step, 1.0)
        self._size = torch.where(size == 0, 1, size)
        self._ends, self._rounding = (-levels - of.below, levels), rounding

    def into(self, target: Tensor, values: Tensor) -> Tensor:
        """Write the grid values nearest to ``values`` (float64, changed) to ``target``, in its dtype; return it."""
        level = rounded(values.mul_(self._reach).div_(self._size), self._rounding).clamp_(*self._ends)
        # A level has at most 16 bits: its product with a float32 step is exact, and rounded once.
        if target.dtype == self._dtype:
            return torch.mul(level, self._step, out=target)
        return target.copy_(level.mul_(self._step).to(self._dtype))


def row_largest(weight: Tensor, kept: Tensor | None) -> Tensor:
    """Return the largest magnitude of each row's kept weights (out), float64."""
    sizes = weight.abs() if kept is None else weight.abs().masked_fill(~kept, 0)
    return sizes.amax(dim=1).to(torch.float64)


class Greedy:
    """Fix the weights of rows one at a time, with the others compensating for each.

    H^-1 with the fixed weights of a row eliminated is ``inverse - V^T V``, with a row of V (n) for each of them. This
    is a Cholesky factorisation of H^-1 whose pivots are chosen on the way, for each row by itself.
    """

    def __init__(self, weights: Tensor, inverse: Tensor, steps: int) -> None:
        """Start with no weight fixed.

        Args:
            weights: rows x n, float64. It is changed.
            inverse: n x n.
            steps: The number of weights of a row that will be fixed.
        """
        self.weights, self._inverse = weights, inverse
        count, columns = weights.shape
        self.fixed = torch.zeros_like(weights, dtype=torch.bool)
        self.diagonal = inverse.diagonal().expand(count, columns).clone()
        self._factor = weights.new_empty(count, steps, columns)
        self._rows = torch.arange(count, device=weights.device)
        self._step = 0

    @staticmethod
    def memory(columns: int, steps: int) -> int:
        """Return the bytes that a row takes."""
        return 8 * columns * (steps + 8)

    def scores(self, errors: Tensor) -> Tensor:
        """Return ``error^2 / [H^-1]_kk`` (rows x n), infinite for fixed weights."""
        return (errors * errors).div_(self.diagonal).masked_fill_(self.fixed, torch.inf)

    def fix(self, chosen: Tensor, targets: Tensor) -> None:
        """Set one weight in each row (its column, rows) to its target (rows), and update the others."""
        step, rows = self._step, self._rows
        before = self._factor[:, :step]
        column = self._inverse[chosen] - torch.bmm(before[rows, :, chosen][:, None], before)[:, 0]
        corner = self.diagonal[rows, chosen].sqrt()
        column.div_(corner[:, None])
        errors = (self.weights[rows, chosen] - targets).div_(corner)
        self.fixed[rows, chosen] = True
        column.masked_fill_(self.fixed, 0)
        self.weights.addcmul_(column, errors[:, None], value=-1)
        self.weights[rows, chosen] = targets
        self.diagonal.addcmul_(column, column, value=-1)
        self._factor[:, step] = column
        self._step += 1
