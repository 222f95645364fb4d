"""LoRA on tensors [hu2022]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.lora import FINENESS, NOTHING, LoRA
from compcomp.kernels._shared import Tensor, check, effective
from compcomp.kernels.least_squares_distill import output_target
from compcomp.kernels.truncated_svd import joined_factors
from compcomp.layers.state import Factors, LayerState


def kernel(technique: LoRA, layer: LayerState) -> LayerState:
    """Train a low-rank adapter on the layer's outputs by exact line searches, and keep it or merge it.

    ``layer.weight`` and ``layer.reference`` are out x in, ``layer.gram`` is in x in, of the current inputs. All is
    computed in float64; factors (out x rank, rank x in) and weight have the weight's dtype. Source: [hu2022].

    Raises:
        InputError: There are no inputs, or an entry is not finite.
    """
    check(technique, layer)
    assert layer.gram is not None
    gram = layer.gram.to(torch.float64)
    tolerance = max(1e-12, 4 * torch.finfo(layer.gram.dtype).eps)
    start = effective(layer, torch.float64)
    error = output_target(layer, gram, tolerance) - start
    free = layer.weight != 0 if technique.masked else None
    size = float((layer.reference.to(torch.float64).square().sum() + start.square().sum()).sqrt() * gram.norm())
    left, right = _trained(technique, error, gram, free, size)
    form, dtype = layer.format, layer.weight.dtype
    if not technique.merged:
        factors = Factors(left.to(dtype), right.to(dtype))
        return replace(layer, format=replace(form, factors=joined_factors(form.factors, factors)))
    weight = (layer.weight.to(torch.float64) + _product(left, right, free)).to(dtype)
    if not technique.masked:
        form = replace(form, mask=None, pattern=None, cut=None)
    return replace(layer, weight=weight, format=replace(form, grid=None, rank=None))


def _trained(technique: LoRA, error: Tensor, gram: Tensor, free: Tensor | None, size: float) -> tuple[Tensor, Tensor]:
    """Return B (out x rank) and A (rank x in). ``size`` is the size of a gradient's terms, without the other factor."""
    left = error.new_zeros(len(error), technique.rank)
    right = torch.from_numpy(technique.first(error.shape[1])).to(error) / FINENESS
    for step in range(technique.iterations):
        slope = (error - _product(left, right, free)) @ gram
        inner = slope if free is None else slope * free
        direction = inner @ right.T if step % 2 == 0 else left.T @ inner
        fixed = right if step % 2 == 0 else left
        if float(direction.norm()) <= NOTHING * size * float(fixed.norm()):
            continue
        change = _product(direction, right, free) if step % 2 == 0 else _product(left, direction, free)
        curvature = ((change @ gram) * change).sum()
        if not float(curvature) > 0:
            continue
        length = (slope * change).sum() / curvature
        if step % 2 == 0:
            left = left + length * direction
        else:
            right = right + length * direction
    return left, right


def _product(left: Tensor, right: Tensor, free: Tensor | None) -> Tensor:
    return left @ right if free is None else (left @ right) * free
