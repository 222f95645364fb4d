"""Read an exact layer as tensors, floats or batches, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from compcomp.layers import walk
from compcomp.layers.batches import batch_size, stack
from compcomp.layers.state import LayerState
from compcomp.terms import Array, Batch, BatchChoices, Choices, Term, each


def float_array(array: Array) -> Array:
    """Return exact numbers as float64, in the same shape."""
    return np.array([float(x) for x in array.ravel()]).reshape(array.shape)


def tensors(layer: LayerState, device: str) -> LayerState:
    """Return the exact layer as float64 tensors, with its mask as a bool tensor."""

    def tensor(array: Array) -> torch.Tensor:
        if all(isinstance(x, bool | np.bool_) for x in array.ravel()):
            return torch.tensor(array.astype(bool), device=device)
        return torch.tensor(float_array(array), dtype=torch.float64, device=device)

    return walk.map(tensor, layer)


def floats(layer: LayerState) -> LayerState:
    """Return tensors as object arrays of Python floats and bools."""
    return walk.map(lambda tensor: np.array(tensor.tolist(), dtype=object).reshape(tuple(tensor.shape)), layer)


class _FirstChoices(BatchChoices):
    """Make the choices of :class:`Choices`, for a batch."""

    def order(self, count: int) -> Any:
        return np.broadcast_to(np.arange(count)[:, None], (count, self.size))

    def flip(self) -> Term:
        return Batch(np.zeros(self.size, dtype=bool))

    def number(self, usual: Term) -> Term:
        return usual

    def grid_value(self, x: Term, step: Term, levels: int, below: int = 0) -> Term:
        return Choices.grid_value(self, x, step, levels, below)


def batches(states: Sequence[LayerState]) -> LayerState:
    """Return exact layers of one format as one layer of batches."""

    def batch(*terms: Term) -> Batch:
        return Batch([x if isinstance(x, bool | np.bool_) else float(x) for x in terms])

    choices = _FirstChoices(len(states), np.random.default_rng(0))
    return replace(walk.map(lambda *arrays: each(batch, *arrays), *states), choices=choices)


def unbatched(layer: LayerState, index: int) -> LayerState:
    """Return one candidate of a layer of batches, as floats."""
    size = batch_size(layer.weight, layer.reference)
    return walk.map(lambda array: stack(array, size)[index], layer)
