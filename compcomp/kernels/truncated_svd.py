"""Truncated SVD on tensors [eckart1936, yao2023]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.truncated_svd import TruncatedSVD
from compcomp.kernels._shared import Tensor, check, effective, wide
from compcomp.language.layer import Factors, Format, LayerState


def kernel(technique: TruncatedSVD, layer: LayerState) -> LayerState:
    """Keep the leading singular triples of the effective weight, or of what is lost so far.

    ``layer.weight``, ``layer.reference``: out x in. Computed in float64 on the CPU, elsewhere in the weight's
    dtype but at least float32. New factors (out x rank, rank x in) and weight have the weight's dtype; a rank
    above min(out, in) pads the factors with zeros. Raises InputError when an entry is not finite.
    Source: [eckart1936]; the residual form is LoRC [yao2023].
    """
    check(technique, layer)
    dtype = torch.float64 if layer.weight.device.type == "cpu" else wide(layer.weight)
    start = effective(layer, dtype)
    if not technique.residual:
        left, right = closest(start, technique.rank)
        weight = (left @ right).to(layer.weight.dtype)
        return replace(layer, weight=weight, format=Format(rank=technique.rank))
    left, right = (
        factor.to(layer.weight.dtype) for factor in closest(layer.reference.to(dtype) - start, technique.rank)
    )
    if (beside := layer.format.factors) is not None:
        left, right = torch.cat([beside.left, left], dim=1), torch.cat([beside.right, right], dim=0)
    return replace(layer, format=replace(layer.format, factors=Factors(left, right)))


def closest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (out x rank, rank x in) of the closest matrix of that rank, in Frobenius norm."""
    rows, columns = matrix.shape
    if rank >= columns <= rows:
        left, right = matrix, torch.eye(columns, dtype=matrix.dtype, device=matrix.device)
    elif rank >= rows:
        left, right = torch.eye(rows, dtype=matrix.dtype, device=matrix.device), matrix
    else:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank] * s[:rank], vh[:rank].clone()
    missing = rank - left.shape[1]
    return (
        torch.nn.functional.pad(left, (0, missing)),
        torch.nn.functional.pad(right, (0, 0, 0, missing)),
    )
