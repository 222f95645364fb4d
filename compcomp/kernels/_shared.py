"""Shared parts of kernels: checks, memory bounds and the selection of the smallest scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from math import isfinite, isqrt

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

MANY = 2**14
"""The size of a group from which on a sample of its scores bounds those that are looked at."""

CLOSE = 2.0**-20
"""The relative difference below which float32 scores do not tell the order of exact ones."""

TINY = 2.0**-120
"""The magnitude below which they do not tell it either."""

MEMORY = 2**28
"""The bytes a kernel may take for one batch of intermediate results; eight times as many on a CUDA device."""


def check(technique: Technique, layer: LayerState, *, weight_too: bool = True) -> None:
    """Check that the technique fits the layer and that every tensor it reads is finite.

    Args:
        technique: The technique.
        layer: The layer.
        weight_too: False if the kernel passes the weight's largest magnitudes to :func:`range_of`.

    Raises:
        InputError: It does not fit, or an entry is not finite.
    """
    if layer.weight.ndim != 2:
        raise InputError(f"a weight with {layer.weight.ndim} dimensions", "2 (out x in)", str(technique))
    tokens, gram = _reads(technique, tuple(layer.weight.shape))
    tensors = {"weight": layer.weight, "reference": layer.reference}
    if layer.format.factors is not None:
        tensors |= {"left factor": layer.format.factors.left, "right factor": layer.format.factors.right}
    if tokens:
        if layer.inputs is None or layer.inputs.shape[0] != layer.weight.shape[1]:
            given = "no inputs" if layer.inputs is None else f"inputs of {layer.inputs.shape[0]} features"
            raise InputError(given, "inputs (in x tokens), with the weight's in", str(technique))
        tensors["inputs"] = layer.inputs
    elif gram:
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
        if (weight_too or name != "weight") and not all_finite(tensor):
            raise InputError(f"a {name} with nan or infinite entries", "finite entries", str(technique))


# What follows from a technique's parameters takes as long as the operations on a small layer.


@lru_cache(maxsize=256)
def _reads(technique: Technique, shape: tuple[int, ...]) -> tuple[bool, bool]:
    """Return if the technique reads inputs, and if it reads their Gram matrix; raise InputError if it does not fit."""
    technique.check(shape)
    return technique.needs_tokens, technique.needs_inputs and not technique.needs_magnitudes


@lru_cache(maxsize=256)
def selection(technique: Technique) -> Selection:
    """Return the technique's only step, which is a selection."""
    (step,) = technique.steps()
    assert isinstance(step, Selection)
    return step


def wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype to compute in: the tensor's own, but at least float32."""
    dtype = tensor.dtype
    return dtype if dtype in (torch.float32, torch.float64) else torch.promote_types(dtype, torch.float32)


def effective(layer: LayerState, dtype: torch.dtype) -> Tensor:
    """Return the effective weight, out x in, in the given dtype."""
    weight: Tensor = layer.weight.to(dtype)
    factors = layer.format.factors
    return weight if factors is None else weight + factors.left.to(dtype) @ factors.right.to(dtype)


def largest_inputs(layer: LayerState, where: object) -> Tensor:
    """Return the largest magnitude of each input feature (in). Raises InputError as :func:`magnitudes` does."""
    inputs = _known_inputs(layer, where)
    if inputs is None:
        return magnitudes(layer, where).largest  # type: ignore[no-any-return]
    return _finite(largest_magnitudes(inputs, inputs.dtype)[:, 0], where)


def magnitudes(layer: LayerState, where: object) -> Magnitudes:
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
        raise InputError("no inputs", NEEDS_INPUTS, str(where))
    _finite(known.largest, where)
    return known


def _known_inputs(layer: LayerState, where: object) -> Tensor | None:
    inputs: Tensor | None = layer.inputs
    if inputs is not None and inputs.shape[0] != layer.weight.shape[1]:
        given = f"inputs of {inputs.shape[0]} features"
        raise InputError(given, "inputs (in x tokens), with the weight's in", str(where))
    return inputs


def _finite(largest: Tensor, where: object) -> Tensor:
    if not all_finite(largest):
        raise InputError("inputs with nan or infinite entries", "finite entries", str(where))
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


def largest_magnitudes(groups: Tensor, dtype: torch.dtype = torch.float64, dim: int = 1) -> Tensor:
    """Return the largest magnitude of each row as a column, in this dtype; with ``dim=0`` of each column as a row."""
    # amax and amin are several times as fast as aminmax along a dimension
    high, low = groups.amax(dim=dim, keepdim=True), groups.amin(dim=dim, keepdim=True)
    return torch.maximum(high, low.neg_(), out=low).to(dtype)


def range_of(largest: Tensor, technique: Technique) -> tuple[float, float]:
    """Return the least and the largest of magnitudes of a weight; raise InputError if one is not finite."""
    low, high = map(float, largest.aminmax())
    if not isfinite(high):
        raise InputError("a weight with nan or infinite entries", "finite entries", str(technique))
    return low, high


def divisors(largest: Tensor, technique: Technique) -> tuple[Tensor, bool]:
    """Return magnitudes with 1 for 0, and True if float32 loses no precision in quotients of them and small numbers.

    Raises:
        InputError: A magnitude is not finite.
    """
    low, high = range_of(largest, technique)
    if low == 0:
        largest = torch.where(largest == 0, 1, largest)
        low = float(largest.amin())
    return largest, low > 2.0**-90 and high < 2.0**90


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
    size = scores.shape[dim]
    if (count, size, dim) == (2, 4, -1):
        return _above_two(scores, ties).bool().logical_not_()
    if size <= FEW and ties != "all":
        return _ranks(scores, dim) < count
    if scores.numel() == size and size >= MANY:
        return _above_last(scores.reshape(-1), count, ties).bool().logical_not_().reshape(scores.shape)
    last = scores.kthvalue(count, dim=dim, keepdim=True).values
    if ties == "all":
        return scores <= last
    below, equal = scores < last, scores == last
    room = count - below.sum(dim=dim, keepdim=True, dtype=torch.int32)
    return below | (equal & (equal.cumsum(dim=dim, dtype=torch.int32) <= room))


# Comparisons that give 0 and 1 in the dtype of what is compared take a quarter of the time of those that give bool.


def _above_two(
    scores: Tensor, ties: str, closer: float = 0.0, again: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return 1 for scores (groups x 4) that are not among the two smallest of their group, else 0, in their dtype.

    Args:
        scores: The scores. With ``again`` they need not be exact.
        ties: As in :func:`smallest`.
        closer: The relative difference up to which two scores may be in the other order.
        again: The function that gives the exact scores (k x 4) of chosen groups (k).
    """
    a, b, c, d = scores.unbind(1)
    one = torch.maximum(torch.minimum(a, b), torch.minimum(c, d))
    other = torch.minimum(torch.maximum(a, b), torch.maximum(c, d))
    second = torch.minimum(one, other)
    above = torch.lt(second[:, None], scores, out=torch.empty_like(scores))
    if ties == "all" and again is None:
        return above
    if closer:
        second.mul_(1 + closer).add_(TINY)
    apart = second.lt_(torch.maximum(one, other, out=one))
    if float(apart.sum()) != len(apart):
        unsure = (apart == 0).nonzero()[:, 0]
        exact = scores[unsure] if again is None else again(unsure)
        redone = exact > exact.sort(dim=1).values[:, 1:2] if ties == "all" else _ranks(exact, -1) >= 2
        above[unsure] = redone.to(above.dtype)
    return above


def _above_last(scores: Tensor, count: int, ties: str) -> Tensor:
    """Return 1 for scores (n) that are not among the ``count`` smallest, else 0, in their dtype."""
    last = _last(scores, count)
    above = torch.empty_like(scores)
    for part in _slices(scores):
        torch.gt(scores[part], last, out=above[part])
    if ties != "all" and (spare := count + int(above.sum(dtype=torch.float64)) - len(scores)):
        equal = (scores == last).nonzero()[:, 0]
        above[equal[len(equal) + spare :]] = 1
    return above


def _last(scores: Tensor, count: int) -> Tensor:
    """Return the ``count``-th smallest of many scores (n), which has no dimension.

    A regular sample gives two bounds. Where the score lies between them, few scores have to be looked at
    [floyd1975]. Where it does not, all are.
    """
    stride = len(scores) // (8 * isqrt(len(scores))) | 1  # odd: it does not stay in the same columns
    sample = scores[::stride].contiguous()
    place, spread = count * len(sample) // len(scores), 2 * isqrt(len(sample))
    low = sample.kthvalue(max(1, place - spread)).values
    high = sample.kthvalue(min(len(sample), place + spread)).values
    below, between = [], []
    for part in _slices(scores):
        some = scores[part]
        under = torch.lt(some, low, out=torch.empty_like(some))
        below.append(under.sum())
        between.append(some.masked_select(torch.le(some, high, out=torch.empty_like(some)).sub_(under).bool()))
    found = torch.cat(between)
    place = count - int(torch.stack(below).sum(dtype=torch.float64))
    last: Tensor = (found.kthvalue(place) if 1 <= place <= len(found) else scores.kthvalue(count)).values
    return last


def _slices(values: Tensor) -> Iterator[slice]:
    """Return consecutive slices of values (n) that stay in a CPU's cache, and whose lengths float32 holds exactly."""
    size = CACHED if values.device.type == "cpu" else 2**24
    for start in range(0, len(values), size):
        yield slice(start, start + size)


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


def drop(
    layer: LayerState,
    selection: Selection,
    score: Callable[[slice], Tensor],
    quick: Callable[[slice], Tensor] | None = None,
) -> LayerState:
    """Return the layer with the least scores of every group set to zero, as ``selection.apply`` does on terms.

    Args:
        layer: The layer.
        selection: The selection.
        score: Returns the scores of a slice of rows, (rows in the slice) x in.
        quick: Returns them in the weight's dtype, each off by at most a share :data:`CLOSE` / 4 or ``TINY / 4``.
    """
    rows, columns = layer.weight.shape
    size = selection.partition.group_size((rows, columns))
    count = selection.count(size)
    parts = list(_row_parts(layer.weight, selection, count, size))
    if len(parts) == 1:  # memory that is new takes longer than the operations
        above = _above(parts[0], count, size, selection.ties, score, quick).reshape(rows, columns)
        mask, weight = above.bool(), above.to(layer.weight.dtype).mul_(layer.weight)
    else:
        weight = torch.empty((rows, columns), dtype=layer.weight.dtype, device=layer.weight.device)
        mask = torch.empty((rows, columns), dtype=torch.bool, device=layer.weight.device)
        for part in parts:
            above = _above(part, count, size, selection.ties, score, quick).reshape(-1, columns)
            mask[part] = above
            # several times as fast as masked_fill, and as a product with bool
            torch.mul(layer.weight[part], above.to(weight.dtype), out=weight[part])
    if layer.format.mask is not None:
        mask = mask & layer.format.mask
    return replace(layer, weight=weight, format=selection.format_after(layer.format, mask))


def _row_parts(weight: Tensor, selection: Selection, count: int, size: int) -> Iterator[slice]:
    """Return the slices of rows whose scores are computed together."""
    if selection.partition.kind == "tensor":
        return iter([slice(0, len(weight))])
    if (count, size) == (2, 4):
        return cached(weight)
    return chunks(len(weight), 32 * weight.shape[1], weight.device)


def _above(
    part: slice,
    count: int,
    size: int,
    ties: str,
    score: Callable[[slice], Tensor],
    quick: Callable[[slice], Tensor] | None,
) -> Tensor:
    """Return 1 or True for scores of these rows (groups x size) that are not among the ``count`` smallest, else 0."""
    if (count, size) == (2, 4) and quick is not None:
        return _above_two(quick(part).reshape(-1, 4), ties, CLOSE, lambda groups: score(part).reshape(-1, 4)[groups])
    scores = score(part).reshape(-1, size)
    if (count, size) == (2, 4):
        return _above_two(scores, ties)
    if count and len(scores) == 1 and size >= MANY:
        return _above_last(scores[0], count, ties)
    return smallest(scores, count, ties).logical_not_()
