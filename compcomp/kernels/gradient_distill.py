"""Gradient descent on a layer's output loss, on tensors [frantar2022, nesterov2018]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.gradient_distill import GradientDistill
from compcomp.kernels._shared import Tensor, check, effective
from compcomp.layers.state import LayerState


def kernel(technique: GradientDistill, layer: LayerState) -> LayerState:
    """Take gradient steps towards the dense layer's outputs; the output error of no row grows.

    ``layer.weight`` and ``layer.reference`` are out x in, ``layer.gram`` is in x in, of the current inputs. All is
    computed in float64, in place in one copy of the weight, whatever the number of steps. A row that the weight's dtype
    cannot improve does not change, bit for bit; the grid is given up all the same. Source: [frantar2022],
    [nesterov2018].

    Raises:
        InputError: There are no inputs, or an entry is not finite.
    """
    check(technique, layer)
    assert layer.gram is not None
    gram, form = layer.gram.to(torch.float64), layer.format
    start = layer.weight.to(torch.float64)
    slope = effective(layer, torch.float64) @ gram - dense_products(layer, gram)  # half the gradient
    trace, change = gram.trace(), torch.zeros_like(start)
    step = torch.where(trace > 0, float(technique.rate) / trace, 0.0)
    for _ in range(technique.iterations):
        move = (slope + change @ gram) * step
        change -= move if form.mask is None else move.masked_fill_(~form.mask, 0)
    weight = (start + change).to(layer.weight.dtype)
    change = weight.to(torch.float64) - start
    gain = (change * (2 * slope + change @ gram)).sum(dim=1)  # the growth of each row's error
    weight = torch.where((gain < 0)[:, None], weight, layer.weight)
    return replace(layer, weight=weight, format=replace(form, rank=None, grid=None))


def dense_products(layer: LayerState, gram: Tensor) -> Tensor:
    """Return the dense outputs times the current inputs, ``W X X'^T`` (out x in, float64). ``gram`` is float64."""
    reference: Tensor = layer.reference.to(torch.float64)
    if layer.reference_inputs is None or layer.inputs is None:
        return reference @ gram
    moved: Tensor = layer.reference_inputs.to(torch.float64) @ layer.inputs.to(torch.float64).T
    return reference @ moved
