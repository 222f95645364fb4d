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
    tolerance = 0.0
    if technique.needs_inputs:
        assert layer.gram is not None
        tolerance = max(1e-12, 4 * torch.finfo(layer.gram.dtype).eps)
        gram = layer.gram.to(dtype)
    if not technique.residual:
        left, right = closest(start, technique.rank, gram, tolerance)
        weight = (left @ right).to(layer.weight.dtype)
        return replace(layer, weight=weight, format=Format(rank=technique.rank))
    target = layer.reference.to(dtype) if gram is None else output_target(layer, gram, tolerance)
    left, right = (factor.to(layer.weight.dtype) for factor in closest(target - start, technique.rank, gram, tolerance))
    return replace(
        layer, format=replace(layer.format, factors=joined_factors(layer.format.factors, Factors(left, right)))
    )


def joined_factors(first: Factors | None, more: Factors) -> Factors:
    """Return the factors of both low-rank terms together."""
    if first is None:
        return more
    return Factors(torch.cat([first.left, more.left], dim=1), torch.cat([first.right, more.right], dim=0))


def closest(matrix: Tensor, rank: int, gram: Tensor | None = None, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return factors (out x rank, rank x in) of the closest matrix of that rank, in Frobenius norm.

    Rows and columns of zeros are 0 in the product too, although a decomposition leaves rounding errors there.

    Args:
        matrix: out x in.
        rank: The rank of the product.
        gram: in x in. If given, the distance is that of outputs, see :func:`compcomp.algebra.low_rank.best_rank`.
        tolerance: The share of the Gram matrix's largest eigenvalue below which one counts as zero.
    """
    left, right = _triples(matrix, rank, gram, tolerance)
    return left * (matrix != 0).any(dim=1, keepdim=True), right * (matrix != 0).any(dim=0)


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the leading singular triples of a matrix as factors (out x rank, rank x in).

    A few triples of a large float64 matrix come from the eigenvectors of the smaller of M M^T and M^T M, several times
    as fast. Squaring loses small singular values: the least one that is kept has to be at least :data:`CLEAR` times the
    largest. Eigenvectors V then have errors of 1e-16 / CLEAR^2 = 1e-12 in what they capture, and the product (M V) V^T
    is a projection of M whatever their error.
    """
    if matrix.shape[0] < matrix.shape[1]:
        left, right = _leading(matrix.T, rank)
        return right.T, left.T
    if matrix.dtype == torch.float64 and rank * 4 <= matrix.shape[1] >= LARGE:
        values, vectors = torch.linalg.eigh(matrix.T @ matrix)
        if bool(values[-rank] >= CLEAR**2 * values[-1]) and bool(values[-1] > 0):
            vectors = vectors[:, -rank:].flip(1)
            return matrix @ vectors, vectors.T
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank].clone()


def _triples(matrix: Tensor, rank: int, gram: Tensor | None, tolerance: float) -> tuple[Tensor, Tensor]:
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
        return _leading(matrix, rank)
    missing = rank - left.shape[1]
    return (
        torch.nn.functional.pad(left, (0, missing)),
        torch.nn.functional.pad(right, (0, 0, 0, missing)),
    )
