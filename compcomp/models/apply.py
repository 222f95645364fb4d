"""One technique on one layer of tensors, with what is checked of every kernel."""

from __future__ import annotations

from typing import Any

import torch

from compcomp.errors import InputError
from compcomp.language.layer import LayerState
from compcomp.language.technique import Technique
from compcomp.models.measure import effective_weight


def apply_kernel(technique: Technique, name: str, layer: LayerState) -> LayerState:
    """The layer after the technique's kernel.

    Raises InputError, naming the layer, where the technique does not fit, the kernel wrote to what it was given, or its
    result has another shape or is not finite.
    """
    versions = _versions(layer)
    try:
        after = technique.kernel()(technique, layer)
    except InputError as error:
        raise InputError(error.given, error.allowed, f"layer {name}: {error.where}") from error
    except Exception as error:
        error.add_note(f"while {technique} ran on layer {name}")
        raise
    where = f"layer {name}: after {technique}"
    if _versions(layer) != versions:
        raise InputError("a kernel that wrote to what it was given", "kernels that return new tensors", where)
    weight = effective_weight(after)
    if weight.shape != layer.weight.shape:
        raise InputError(f"weights of shape {tuple(weight.shape)}", f"{tuple(layer.weight.shape)}", where)
    if not bool(torch.isfinite(weight).all()):
        raise InputError("weights that are not finite", "finite weights", where)
    return after


def _versions(layer: LayerState) -> list[int]:
    """How often each tensor of the state was written to."""
    form = layer.format
    tensors: list[Any] = [layer.weight, layer.reference, layer.gram, form.mask]
    tensors += [] if form.grid is None else [form.grid.step, form.grid.offset]
    return [tensor._version for tensor in tensors if tensor is not None]
