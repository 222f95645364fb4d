"""Shared parts of kernels: checks, memory bounds and the selection of the smallest scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import torch

from compcomp.errors import InputError
from compcomp.language.steps import Selection
from compcomp.language.technique import Technique
from compcomp.layers.state import NEEDS_INPUTS, LayerState, Magnitudes

Tensor = torch.Tensor

FEW = 8
"""The size of groups up to which their scores are compared in pairs."""

MEMORY = 2**28
"""The bytes a kernel may take for one batch of intermediate results; eight times as many on a CUDA device."""


def check(technique: Technique, layer: LayerState) -> None:
    """Check that the technique fits the layer and that every tensor it reads is finite.

    Raises:
        InputError: It does not fit, or an entry is not finite.
    """
    if layer.weight.ndim != 2:
        raise InputError(f"a weight with {layer.weight.ndim} dimensions", "2 (out x in)", str(technique))
    technique.check(tuple(layer.weight.shape))
    tensors = {"weight": layer.weight, "reference": layer.reference}
    if layer.format.factors is not None:
        tensors |= {"left factor": layer.format.factors.left, "right factor": layer.format.factors.right}
    if technique.needs_tokens:
        if layer.inputs is None or layer.inputs.shape[0] != layer.weight.shape[1]:
            given = "no inputs" if layer.inputs is None else f"inputs of {layer.inputs.shape[0]} features"
            raise InputError(given, "inputs (in x tokens), with the weight's in", str(technique))
        tensors["inputs"] = layer.inputs
    elif technique.needs_inputs and not technique.needs_magnitudes:
        if layer.gram is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(technique))
        if tuple(layer.gram.shape) != (layer.weight.shape[1],) * 2:
            given = "x".join(map(str, layer.gram.shape))
            raise InputError(f"a Gram matrix of shape {given}", "in x in, with the weight's in", str(technique))
        tensors["Gram matrix"] = layer.gram
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"a {name} of {tensor.dtype}", "a floating point tensor", str(technique))
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"a {name} with nan or infinite entries", "finite entries", str(technique))


def wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype to compute in: the tensor's own, but at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def effective(layer: LayerState, dtype: torch.dtype) -> Tensor:
    """Return the effective weight, out x in, in the given dtype."""
    weight: Tensor = layer.weight.to(dtype)
    factors = layer.format.factors
    return weight if factors is None else weight + factors.left.to(dtype) @ factors.right.to(dtype)


def magnitudes(layer: LayerState, where: str) -> Magnitudes:
    """Return the largest and the mean magnitude of each input feature (in each).

    Raises:
        InputError: They are not known.
    """
    inputs: Tensor | None = layer.inputs
    known = layer.magnitudes
    if inputs is not None:
        if inputs.shape[0] != layer.weight.shape[1]:
            raise InputError(
                f"inputs of {inputs.shape[0]} features", "inputs (in x tokens), with the weight's in", where
            )
        sizes = inputs.abs()
        known = Magnitudes(sizes.amax(dim=1), sizes.mean(dim=1, dtype=torch.float64))
    if known is None:
        raise InputError("no inputs", NEEDS_INPUTS, where)
    if not bool(torch.isfinite(known.largest).all()):
        raise InputError("inputs with nan or infinite entries", "finite entries", where)
    return known


def chunks(count: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """Return consecutive slices of ``range(count)``, each within :data:`MEMORY`, but at least one long."""
    memory = MEMORY * (8 if device.type == "cuda" else 1)
    size = max(1, memory // max(1, bytes_each))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def rounded(ratio: Tensor, rounding: str) -> Tensor:
    """Return the nearest whole numbers, with midpoints as ``rounding`` says. May overwrite ``ratio``.

    It never computes ``floor(x + 1/2)``, as this sum rounds.
    """
    if rounding == "half_even":
        return ratio.round_()
    if rounding == "half_away":
        return _half_up(ratio.abs()).copysign_(ratio)
    return _half_up(ratio)


def _half_up(ratio: Tensor) -> Tensor:
    below = ratio.floor()
    return below.add_(ratio.sub_(below) >= 0.5)


def smallest(scores: Tensor, count: int, ties: str, dim: int = -1) -> Tensor:
    """Return which scores of each group are among its ``count`` smallest; bool, same shape.

    Args:
        scores: Two dimensions, one of which runs through the scores of a group.
        count: The number to take of each group.
        ties: One of :data:`compcomp.terms.TIES`; "any" takes the lowest index first.
        dim: The dimension of a group.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.shape[dim] <= FEW and ties != "all":
        return _ranks(scores, dim) < count
    last = scores.kthvalue(count, dim=dim, keepdim=True).values
    if ties == "all":
        return scores <= last
    below, equal = scores < last, scores == last
    room = count - below.sum(dim=dim, keepdim=True, dtype=torch.int32)
    return below | (equal & (equal.cumsum(dim=dim, dtype=torch.int32) <= room))


def _ranks(scores: Tensor, dim: int) -> Tensor:
    """Return the place of each score among those of its group in ascending order, equal ones by index."""
    size = scores.shape[dim]
    if dim == 0:  # many small calls: few operations matter
        first, later, signs, start = _pairs(size, scores.device)
        return torch.addmm(start, signs, (scores[first] <= scores[later]).float())
    ranks = torch.empty(scores.shape, dtype=torch.int8, device=scores.device)
    parts, places = scores.unbind(dim), ranks.unbind(dim)
    for k, place in enumerate(places):
        place.fill_(size - 1 - k)
    for k in range(size):
        for i in range(k):
            first = parts[i] <= parts[k]
            places[k].add_(first)
            places[i].sub_(first.view(torch.int8))
    return ranks


@lru_cache(maxsize=16)
def _pairs(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return both members of all pairs, and signs and start with ranks ``start + signs @ (first <= later)``."""
    first, later = torch.triu_indices(size, size, 1, device=device)
    places = torch.arange(size, device=device)[:, None]
    signs = (places == later).float() - (places == first).float()
    return first, later, signs, (size - 1 - places).float()


def drop(layer: LayerState, selection: Selection, score: Callable[[slice], Tensor]) -> LayerState:
    """Return the layer with the least scores of every group set to zero, as ``selection.apply`` does on terms.

    ``score`` returns the scores of a slice of rows, (rows in the slice) x in.
    """
    rows, columns = layer.weight.shape
    size = selection.partition.group_size((rows, columns))
    count = selection.count(size)
    whole = selection.partition.kind == "tensor"
    dropped = torch.empty((rows, columns), dtype=torch.bool, device=layer.weight.device)
    for part in [slice(0, rows)] if whole else chunks(rows, 32 * columns, layer.weight.device):
        taken = smallest(score(part).reshape(-1, size), count, selection.ties)
        dropped[part] = taken.reshape(-1, columns)
    mask = ~dropped
    if layer.format.mask is not None:
        mask &= layer.format.mask
    weight = layer.weight.masked_fill(dropped, 0)
    return replace(layer, weight=weight, format=selection.format_after(layer.format, mask))
