"""Truncated SVD on tensors [eckart1936, yao2023, wang2025]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.truncated_svd import TruncatedSVD
from compcomp.kernels._second_order import Spectrum
from compcomp.kernels._shared import Tensor, check, effective, wide
from compcomp.kernels.least_squares_distill import output_target
from compcomp.layers.state import Factors, Format, LayerState

SEEN = 1e-12
"""The least share of the norm of |M| |S| (S S^T the Gram matrix) that counts as more than zero among the singular
values of M S. Rounding errors of a sum that is zero are smaller.
"""

LARGE = 256
"""The smaller side of a matrix from which on a few singular triples come from its Gram matrix."""

CLEAR = 1e-2
"""The least share of the largest singular value at which they do."""


HUGE = 2048
"""The smaller side from which on they come from a block Krylov space, where its residuals are small enough."""

BLOCK = 16
"""The vectors that each step adds to the space."""

STEPS = 72
"""The largest number of steps."""

ROUNDED = 1e-13
"""The share of the largest value that rounding errors may hide of a residual."""


def kernel(technique: TruncatedSVD, layer: LayerState) -> LayerState:
    """Keep the leading singular triples of the effective weight, or of the error so far.

    ``layer.weight`` and ``layer.reference`` are out x in. With ``metric="output"``, ``layer.gram`` is in x in, of the
    current inputs. All is computed in float64 on the CPU or by outputs, elsewhere in the weight's dtype but at least
    float32. New factors (out x rank, rank x in) and weight have the weight's dtype. A rank above min(out, in) pads the
    factors with zeros. Source: [eckart1936]; metric="output" [wang2025]; the residual form is LoRC [yao2023].

    Raises:
        InputError: An entry is not finite, or inputs are needed and missing.
    """
    check(technique, layer)
    exact = layer.weight.device.type == "cpu" or technique.needs_inputs
    dtype = torch.float64 if exact else wide(layer.weight)
    start, gram = effective(layer, dtype), None
    tolerance, precision = 0.0, torch.finfo(layer.weight.dtype).eps
    if technique.needs_inputs:
        assert layer.gram is not None
        tolerance = max(1e-12, 4 * torch.finfo(layer.gram.dtype).eps)
        gram = layer.gram.to(dtype)
    if not technique.residual:
        left, right = closest(start, technique.rank, gram, tolerance, precision)
        weight = (left @ right).to(layer.weight.dtype)
        return replace(layer, weight=weight, format=Format(rank=technique.rank))
    target = layer.reference.to(dtype) if gram is None else output_target(layer, gram, tolerance)
    found = closest(target - start, technique.rank, gram, tolerance, precision)
    left, right = (factor.to(layer.weight.dtype) for factor in found)
    return replace(
        layer, format=replace(layer.format, factors=joined_factors(layer.format.factors, Factors(left, right)))
    )


def joined_factors(first: Factors | None, more: Factors) -> Factors:
    """Return the factors of both low-rank terms together."""
    if first is None:
        return more
    return Factors(torch.cat([first.left, more.left], dim=1), torch.cat([first.right, more.right], dim=0))


def closest(
    matrix: Tensor, rank: int, gram: Tensor | None = None, tolerance: float = 0.0, precision: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return factors (out x rank, rank x in) of the closest matrix of that rank, in Frobenius norm.

    Rows and columns of zeros are 0 in the product too, although a decomposition leaves rounding errors there.

    Args:
        matrix: out x in.
        rank: The rank of the product.
        gram: in x in. If given, the distance is that of outputs, see :func:`compcomp.algebra.low_rank.best_rank`.
        tolerance: The share of the Gram matrix's largest eigenvalue below which one counts as zero.
        precision: The relative precision that the factors will be stored with; 0 for the best.
    """
    left, right = _triples(matrix, rank, gram, tolerance, precision)
    return left * (matrix != 0).any(dim=1, keepdim=True), right * (matrix != 0).any(dim=0)


def _leading(matrix: Tensor, rank: int, precision: float) -> tuple[Tensor, Tensor]:
    """Return the leading singular triples of a matrix as factors (out x rank, rank x in).

    A few triples of a large float64 matrix come from a Krylov space, or else from the eigenvectors of the smaller of
    M M^T and M^T M, several times as fast. Squaring loses small singular values: the least one that is kept has to be
    at least :data:`CLEAR` times the largest. Eigenvectors V then have errors of 1e-16 / CLEAR^2 = 1e-12 in what they
    capture, and the product (M V) V^T is a projection of M whatever their error.
    """
    if matrix.shape[0] < matrix.shape[1]:
        left, right = _leading(matrix.T, rank, precision)
        return right.T, left.T
    if matrix.dtype == torch.float64 and rank * 4 <= matrix.shape[1] >= LARGE:
        if matrix.shape[1] >= HUGE and (krylov := _krylov(matrix, rank, precision)) is not None:
            return matrix @ krylov, krylov.T
        values, vectors = torch.linalg.eigh(matrix.T @ matrix)
        if bool(values[-rank] >= CLEAR**2 * values[-1]) and bool(values[-1] > 0):
            vectors = vectors[:, -rank:].flip(1)
            return matrix @ vectors, vectors.T
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank].clone()


def _krylov(matrix: Tensor, rank: int, precision: float) -> Tensor | None:
    """Return the leading right singular vectors (in x rank), descending, from a block Krylov space [musco2015].

    With (v, t) a Ritz pair of G = M^T M, its residual is the norm of G v - t v. Let g be the distance of the last value
    that is kept to the next one. The residuals of those that are kept, together, are at most precision * g, and that of
    the next one is at most g / 8. The angle between their span and that of true eigenvectors is then at most 8 / 7 of
    the precision [davis1970]. So is about the share by which the product (M V) V^T differs. No larger value is missed,
    unless all :data:`BLOCK` random starts are all but orthogonal to its vector.

    Returns None where this does not hold after :data:`STEPS` steps, as in a spectrum without a gap, or where a value
    that is kept is less than :data:`CLEAR` times the largest.
    """
    if precision < 1e-10 or rank > BLOCK:
        return None
    columns = matrix.shape[1]
    steps = min(STEPS, columns // BLOCK)
    generator = torch.Generator(matrix.device).manual_seed(0)
    block = torch.randn(columns, BLOCK, dtype=matrix.dtype, device=matrix.device, generator=generator)
    block = torch.linalg.qr(block).Q
    basis = matrix.new_empty(steps * BLOCK, columns)  # rows: they are contiguous in products
    projected = matrix.new_zeros(steps * BLOCK, steps * BLOCK)
    for start in range(0, steps * BLOCK, BLOCK):
        now, until = slice(start, start + BLOCK), start + BLOCK
        basis[now] = block.T
        rest, known = (basis[now] @ matrix.T) @ matrix, basis[:until]
        inner = rest @ known.T
        projected[now, :until], projected[:until, now] = inner, inner.T
        rest -= inner @ known
        block = torch.linalg.qr(rest.T).Q
        block = torch.linalg.qr(block - known.T @ (known @ block)).Q  # also where the rest is rounding errors
        step = start // BLOCK
        if step >= 4 and step % 4 != 3:
            continue
        values, vectors = torch.linalg.eigh(projected[:until, :until])
        last = block.T @ rest.T @ vectors[-BLOCK:, -rank:]
        if float(last.norm()) <= precision * float(values[-rank] - values[-rank - 1]):
            found = _checked(matrix, known.T @ vectors[:, -rank - 1 :], precision)
            if found is not None:
                return found
    return None


def _checked(matrix: Tensor, vectors: Tensor, precision: float) -> Tensor | None:
    """Return the leading vectors of the span of some (in x rank + 1), descending, all but the last, if they hold.

    They hold if their residuals, and that of the last, are as small as :func:`_krylov` says, and no value is small.
    """
    vectors = torch.linalg.qr(vectors).Q
    image = matrix.T @ (matrix @ vectors)
    values, turn = torch.linalg.eigh(vectors.T @ image)
    vectors = vectors @ turn
    residuals = (image @ turn - vectors * values).norm(dim=0)
    gap, most = values[1] - values[0], values[-1]
    close = residuals[1:].norm() + ROUNDED * most < precision * gap
    if not bool(close & (residuals[0] < gap / 8) & (values[1] >= CLEAR**2 * most)):
        return None
    found: Tensor = vectors[:, 1:].flip(1)
    return found


def _triples(
    matrix: Tensor, rank: int, gram: Tensor | None, tolerance: float, precision: float
) -> tuple[Tensor, Tensor]:
    rows, columns = matrix.shape
    if rank >= columns <= rows:
        left, right = matrix, torch.eye(columns, dtype=matrix.dtype, device=matrix.device)
    elif rank >= rows:
        left, right = torch.eye(rows, dtype=matrix.dtype, device=matrix.device), matrix
    elif gram is not None:
        scale = Spectrum(gram, tolerance).root()
        u, s, _ = torch.linalg.svd(matrix @ scale, full_matrices=False)
        left = u[:, :rank] * (s > SEEN * (matrix.abs() @ scale.abs()).norm())[:rank]
        return left, left.T @ matrix
    else:
        return _leading(matrix, rank, precision)
    missing = rank - left.shape[1]
    return (
        torch.nn.functional.pad(left, (0, missing)),
        torch.nn.functional.pad(right, (0, 0, 0, missing)),
    )
