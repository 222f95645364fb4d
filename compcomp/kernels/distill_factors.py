"""Distillation of a low-rank branch on tensors [hubara2021]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.distill_factors import DistillFactors
from compcomp.kernels._second_order import Spectrum
from compcomp.kernels._shared import check
from compcomp.kernels.least_squares_distill import output_target, row_errors
from compcomp.layers.state import Factors, LayerState

TOLERANCE = 1e-10
"""Share of the largest singular value below which one counts as zero, for a factor and its product with the inputs."""


def kernel(technique: DistillFactors, layer: LayerState) -> LayerState:
    """Fit the factors of the low-rank branch to the dense layer's outputs, in turn.

    ``layer.weight`` and ``layer.reference`` are out x in, ``layer.gram`` is in x in, of the current inputs. All is
    computed in float64; factors (out x rank, rank x in) keep their dtype. They do not change if the output error would
    not fall in that dtype. Source: [hubara2021] (the layer-wise objective).

    Raises:
        InputError: There are no inputs, or an entry is not finite.
    """
    check(technique, layer)
    assert layer.gram is not None
    factors, gram = layer.format.factors, layer.gram.to(torch.float64)
    if factors is None:
        return layer
    tolerance = max(1e-12, 4 * torch.finfo(layer.gram.dtype).eps)
    target = output_target(layer, gram, tolerance) - layer.weight.to(torch.float64)
    left, right = factors.left.to(torch.float64), factors.right.to(torch.float64)
    spectrum = Spectrum(gram, tolerance)
    root = spectrum.root()
    before = row_errors(target - left @ right, gram).sum()
    for _ in range(technique.sweeps):
        left = left + ((target - left @ right) @ root) @ torch.linalg.pinv(right @ root, rtol=TOLERANCE)
        rest = target - left @ right
        right = right + torch.linalg.pinv(left, rtol=TOLERANCE) @ (rest - spectrum.unseen(rest.T).T)
    stored = Factors(left.to(factors.left.dtype), right.to(factors.right.dtype))
    product = stored.left.to(torch.float64) @ stored.right.to(torch.float64)
    better = bool(row_errors(target - product, gram).sum() < before)
    if not better:
        stored = Factors(factors.left, factors.right)
    return replace(layer, format=replace(layer.format, factors=stored))
