"""Training of a compressed model against the dense one, within the formats of its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from compcomp.encodings.gradient_distill import GradientDistill
from compcomp.errors import InputError
from compcomp.kernels import gradient_distill
from compcomp.kernels._shared import Tensor, check, wide
from compcomp.layers.state import LayerState
from compcomp.layers.whole import Outputs, WholeModel

Lost = Callable[[Outputs, Outputs], Tensor]
"""The loss of the compressed model's outputs (second) against the dense one's (first), a scalar."""


def train(technique: Any, whole: WholeModel, lost: Lost) -> dict[str, LayerState]:
    """Return the states after ``technique.iterations`` steps of AdamW on the layers without a grid.

    Dropped weights are zero at every step. The same batches, weights and seed give the same result on one device.

    Raises:
        InputError: The loss is not finite.
    """
    states = whole.states
    free = {
        name: within(state.weight.to(wide(state.weight)), state).clone().requires_grad_()
        for name, state in states.items()
        if state.format.grid is None
    }
    if not free:
        return dict(states)
    fixed = {name: low_rank_term(state) for name, state in states.items()}
    batches = whole.batches if technique.targets == "data" else whole.generated(technique.seed)
    optimizer = torch.optim.AdamW(free.values(), lr=float(technique.rate), weight_decay=0.0)
    with torch.enable_grad():
        for step in range(technique.iterations):
            optimizer.param_groups[0]["lr"] = float(technique.rate) * (1 - step / technique.iterations)
            batch = batches[step % len(batches)]
            with torch.no_grad():
                teacher = whole.forward(batch)
            loss = lost(teacher, whole.forward(batch, in_place(states, free, fixed)))
            if not bool(torch.isfinite(loss)):
                raise InputError(
                    f"a loss of {float(loss.detach())} at step {step + 1}", "a smaller rate", str(technique)
                )
            slopes = torch.autograd.grad(loss, list(free.values()), materialize_grads=True, allow_unused=True)
            for weight, slope in zip(free.values(), slopes, strict=True):  # none is left in the model's own parameters
                weight.grad = slope
            optimizer.step()
    return {
        name: replace(
            state,
            weight=within(free[name].detach(), state).to(state.weight.dtype),
            format=replace(state.format, rank=None),
        )
        if name in free
        else state
        for name, state in states.items()
    }


def within(weight: Tensor, state: LayerState) -> Tensor:
    """Return the weight with zeros where the state's mask drops."""
    mask = state.format.mask
    return weight if mask is None else weight.masked_fill(~mask, 0)


def low_rank_term(state: LayerState) -> Tensor | None:
    """Return the low-rank term, out x in."""
    factors = state.format.factors
    return None if factors is None else (factors.left.double() @ factors.right.double()).to(wide(state.weight))


def in_place(
    states: Mapping[str, LayerState], free: Mapping[str, Tensor], fixed: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    """Return the effective weights of the layers, out x in."""
    found = {}
    for name, state in states.items():
        weight = within(free[name], state) if name in free else state.weight
        term = fixed[name]
        found[name] = weight if term is None else weight + term
    return found


def alone(technique: Any, layer: LayerState) -> LayerState:
    """Return the layer after training on its own: gradient steps on its output loss, within the mask."""
    check(technique, layer)
    if layer.format.grid is not None:
        return layer
    start = replace(layer, weight=within(layer.weight, layer))
    return gradient_distill.kernel(GradientDistill(technique.iterations), start)
