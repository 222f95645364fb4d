"""Shared parts of second-order kernels: the damped Gram matrix and the updates, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import torch

from compcomp.errors import InputError
from compcomp.kernels._shared import Tensor, rounded, wide
from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState

EMPTY = 1e-14
"""The share of the largest singular value below which a singular value belongs to columns of zeros."""

BLOCK = 128
"""The number of columns whose errors are applied to later columns together, as one matrix product."""


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
    assert layer.gram is not None
    gram = layer.gram.to(torch.float64, copy=True)
    diagonal = gram.diagonal()
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1)
    diagonal += float(damping) * diagonal.mean()
    return gram, dead


def inverse_root(technique: Technique, gram: Tensor) -> Tensor:
    """Return the upper triangular U with ``gram^-1 = U^T U``.

    Raises:
        InputError: The Gram matrix is not positive definite.
    """
    root, info = torch.linalg.cholesky_ex(gram.flip(0, 1))
    if bool(info != 0):
        raise InputError("a Gram matrix that is not positive definite", "one that is, or more damping", str(technique))
    upper = root.flip(0, 1)  # gram = upper @ upper.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverted: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return inverted


def spread(
    work: Tensor,
    root: Tensor,
    size: int,
    enter: Callable[[slice], None],
    final_values: Callable[[int, Tensor], Tensor],
) -> None:
    """Fix the columns left to right in place, with later columns compensating for the error of each.

    ``enter`` is called with every ``size`` consecutive columns (or those that are left) once all columns before them
    are fixed and accounted for. ``final_values(j, values)`` then returns the final values (out) of column j.

    Args:
        work: The weight transposed, in x out, float64. It is changed.
        root: U of :func:`inverse_root`.
        size: The number of columns in a group.
    """
    columns = len(work)
    ratio = root / root.diagonal()[:, None]
    errors = torch.empty_like(work[:BLOCK])
    for part in _parts(columns, size):
        block, coupling = work[part], ratio[part, part]
        for k in range(len(block)):
            j = part.start + k
            if j % size == 0:
                enter(slice(j, min(j + size, columns)))
            final = final_values(j, block[k])
            torch.sub(block[k], final, out=errors[k])
            block[k] = final
            block[k + 1 :].addr_(coupling[k, k + 1 :], errors[k], alpha=-1)
        work[part.stop :].addmm_(ratio[part, part.stop :].T, errors[: len(block)], alpha=-1)


def _parts(columns: int, size: int) -> Iterator[slice]:
    """Return slices of at most :data:`BLOCK` columns: whole groups of ``size``, or pieces of one."""
    start = 0
    while start < columns:
        most = BLOCK // size * size if size <= BLOCK else min(BLOCK, size - start % size)
        stop = min(start + most, columns)
        yield slice(start, stop)
        start = stop


def on_grid(values: Tensor, largest: Tensor, step: Tensor, levels: int, rounding: str, dtype: torch.dtype) -> Tensor:
    """Return the nearest values of absmax grids, as they are stored in a weight of this dtype; float64.

    Args:
        values: The values to round, float64.
        largest: The largest magnitudes of the grids.
        step: largest / levels, as stored.
        levels: The number of grid values on each side of zero.
        rounding: The rule for midpoints.
        dtype: The dtype of the weight.
    """
    ratio = (values * levels).div_(largest).masked_fill_(largest == 0, 0)
    level = rounded(ratio, rounding).clamp_(-levels, levels)
    return (level.to(step.dtype) * step).to(dtype).to(torch.float64)


def row_grid(weight: Tensor, kept: Tensor | None, levels: int) -> tuple[Tensor, Tensor]:
    """Return the largest magnitude (out, float64) of each row's kept weights, and the step of its absmax grid."""
    sizes = weight.abs() if kept is None else weight.abs().masked_fill(~kept, 0)
    largest = sizes.amax(dim=1).to(torch.float64)
    return largest, (largest / levels).to(wide(weight))


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
