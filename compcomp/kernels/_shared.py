"""Shared parts of kernels: checks, memory bounds and the selection of the smallest scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import torch

from compcomp.errors import InputError
from compcomp.language.kernel_result import all_finite
from compcomp.language.steps import Selection
from compcomp.language.technique import Technique
from compcomp.layers.state import NEEDS_INPUTS, LayerState, Magnitudes

Tensor = torch.Tensor

CACHED = 2**16
"""The weights that are rounded at a time on a CPU."""

PIECE = 256
"""The weights of a group that are looked at together, if more may be divided."""

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
    if layer.reference is layer.weight:
        del tensors["reference"]
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"a {name} of {tensor.dtype}", "a floating point tensor", str(technique))
        if not all_finite(tensor):
            raise InputError(f"a {name} with nan or infinite entries", "finite entries", str(technique))


def wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype to compute in: the tensor's own, but at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def effective(layer: LayerState, dtype: torch.dtype) -> Tensor:
    """Return the effective weight, out x in, in the given dtype."""
    weight: Tensor = layer.weight.to(dtype)
    factors = layer.format.factors
    return weight if factors is None else weight + factors.left.to(dtype) @ factors.right.to(dtype)


def largest_inputs(layer: LayerState, where: str) -> Tensor:
    """Return the largest magnitude of each input feature (in). Raises InputError as :func:`magnitudes` does."""
    inputs = _known_inputs(layer, where)
    if inputs is None:
        return magnitudes(layer, where).largest  # type: ignore[no-any-return]
    return _finite(torch.maximum(inputs.amax(dim=1), -inputs.amin(dim=1)), where)


def magnitudes(layer: LayerState, where: str) -> Magnitudes:
    """Return the largest and the mean magnitude of each input feature (in each).

    Raises:
        InputError: They are not known or not finite.
    """
    inputs = _known_inputs(layer, where)
    known = layer.magnitudes
    if inputs is not None:
        sizes = inputs.abs()
        known = Magnitudes(sizes.amax(dim=1), sizes.mean(dim=1, dtype=torch.float64))
    if known is None:
        raise InputError("no inputs", NEEDS_INPUTS, where)
    _finite(known.largest, where)
    return known


def _known_inputs(layer: LayerState, where: str) -> Tensor | None:
    inputs: Tensor | None = layer.inputs
    if inputs is not None and inputs.shape[0] != layer.weight.shape[1]:
        given = f"inputs of {inputs.shape[0]} features"
        raise InputError(given, "inputs (in x tokens), with the weight's in", where)
    return inputs


def _finite(largest: Tensor, where: str) -> Tensor:
    if not all_finite(largest):
        raise InputError("inputs with nan or infinite entries", "finite entries", where)
    return largest


def chunks(count: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """Return consecutive slices of ``range(count)``, each within :data:`MEMORY`, but at least one long."""
    memory = MEMORY * (8 if device.type == "cuda" else 1)
    size = max(1, memory // max(1, bytes_each))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def cached(rows: Tensor) -> Iterator[slice]:
    """Return consecutive slices of rows whose intermediate results stay in a CPU's cache; on other devices see chunks.

    The rows are those of one matrix (rows x n).
    """
    if rows.device.type != "cpu":
        yield from chunks(len(rows), 32 * rows.shape[1], rows.device)
        return
    size = max(1, CACHED // max(1, rows.shape[1]))
    for start in range(0, len(rows), size):
        yield slice(start, min(start + size, len(rows)))


def pieces(weight: Tensor, size: int) -> tuple[Tensor, int]:
    """Return the weight as rows that each lie in one group of ``size`` consecutive weights, and how many make a group.

    The rows are short, so that one that has to be done again costs little.
    """
    length = size
    while length % 2 == 0 and length > PIECE:
        length //= 2
    if length > PIECE and size == weight.numel():
        length = weight.shape[1]
    return weight.reshape(-1, length), size // length


def largest_magnitudes(groups: Tensor) -> Tensor:
    """Return the largest magnitude of each row, float64, as a column."""
    # amax and amin are several times as fast as aminmax along a dimension
    high, low = groups.amax(dim=-1, keepdim=True), groups.amin(dim=-1, keepdim=True)
    return torch.maximum(high, -low).to(torch.float64)


def in_range(largest: Tensor) -> bool:
    """Return True if float32 represents quotients of these magnitudes and small numbers without loss of precision."""
    low, high = torch.where(largest == 0, 1, largest).aminmax()
    return bool(low > 2.0**-90) and bool(high < 2.0**90)


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
