"""Pruning and quantization in one step, on tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from compcomp.encodings.joint_prune_quantize import JointPruneQuantize
from compcomp.kernels._shared import Tensor, check, chunks, rounded, smallest, wide
from compcomp.layers.state import LayerState


def kernel(technique: JointPruneQuantize, layer: LayerState) -> LayerState:
    """Drop and round at the least sum of squared errors of the weight.

    ``layer.weight`` is out x in. Gains and errors are those of the values that are stored, in float64. The step is kept
    in the weight's dtype, but at least float32. ``rounding="any"`` is "half_up", ``ties="any"`` drops the lowest index
    first.

    Raises:
        InputError: Groups do not divide a row, or a weight is not finite.
    """
    check(technique, layer)
    search = _Search(technique, layer.weight)
    first, *others = technique.clip_ratios
    dropped, chosen = search.dropped(float(first)), torch.full_like(search.largest, float(first))
    if others:
        least = search.errors(dropped, chosen)
        for ratio in others:
            this = torch.full_like(chosen, float(ratio))
            other = search.dropped(float(ratio))
            errors = search.errors(other, this)
            better = errors < least
            least, chosen = torch.where(better, errors, least), torch.where(better, this, chosen)
            for rows in search.parts():
                dropped[rows] = torch.where(search.spread(better, rows), other[rows], dropped[rows])
    weight, step = (
        torch.empty_like(layer.weight),
        torch.empty(layer.weight.shape, dtype=search.dtype, device=dropped.device),
    )
    for rows in search.parts():
        weight[rows] = search.value(rows, chosen).masked_fill_(dropped[rows], 0)
        step[rows] = search.step(rows, chosen)
    mask = ~dropped
    if layer.format.mask is not None:
        mask &= layer.format.mask
    grid = technique.grid_map.grid(step, search.largest.numel())
    form = replace(technique.selection.format_after(layer.format, mask), grid=grid)
    return replace(layer, weight=weight, format=form)


class _Search:
    """Compute the results of clip ratios for a weight (out x in).

    ``largest`` is max|w| of each scale group, 1 x 1 or out x n.
    """

    def __init__(self, technique: JointPruneQuantize, weight: Tensor) -> None:
        self.weight, self.rounding, self.selection = weight, technique.rounding, technique.selection
        of, self.dtype = technique.grid_map, wide(weight)
        self.reach, self.ends = float(of.reach), (-of.known_levels - of.below, of.known_levels)
        rows, columns = weight.shape
        self.size = technique.grid_map.partition.group_size((rows, columns))
        groups = weight.reshape(1, 1, -1) if self.size == weight.numel() else weight.reshape(rows, -1, self.size)
        low, high = groups.aminmax(dim=-1)
        self.largest = torch.maximum(-low, high).to(torch.float64)

    def parts(self) -> Iterator[slice]:
        """Return slices of rows that bound the memory."""
        return chunks(len(self.weight), 64 * self.weight.shape[1], self.weight.device)

    def spread(self, values: Tensor, rows: slice) -> Tensor:
        """Return the values of scale groups repeated for each weight, for a slice of rows."""
        if self.size == self.weight.numel():
            return values.expand(len(self.weight[rows]), self.weight.shape[1])
        return values[rows].repeat_interleave(self.size, dim=1)

    def step(self, rows: slice, ratios: Tensor) -> Tensor:
        """Return the grid's step for every weight of a slice of rows."""
        return self.spread((self.largest * ratios / self.reach).to(self.dtype), rows)

    def value(self, rows: slice, ratios: Tensor) -> Tensor:
        """Return the grid values nearest to a slice of rows, as stored."""
        most = self.spread(self.largest * ratios, rows)
        level = self.weight[rows].to(torch.float64, copy=True).mul_(self.reach).div_(most).masked_fill_(most == 0, 0)
        level = rounded(level, self.rounding).clamp_(*self.ends)
        return (level.to(self.dtype) * self.step(rows, ratios)).to(self.weight.dtype)

    def gain(self, rows: slice, ratios: Tensor) -> Tensor:
        """Return by how much the error falls if a weight of a slice of rows is kept instead of dropped."""
        value = self.value(rows, ratios).to(torch.float64)
        return value * (2 * self.weight[rows].to(torch.float64) - value)

    def dropped(self, ratio: float) -> Tensor:
        """Return the weights of least gain in every group, out x in."""
        ratios = torch.full_like(self.largest, ratio)
        shape = self.weight.shape
        size = self.selection.partition.group_size((shape[0], shape[1]))
        count, ties = self.selection.count(size), self.selection.ties
        if self.selection.partition.kind == "tensor":
            gains = torch.cat([self.gain(rows, ratios) for rows in self.parts()])
            return smallest(gains.reshape(-1, size), count, ties).reshape(shape)
        taken = [smallest(self.gain(rows, ratios).reshape(-1, size), count, ties) for rows in self.parts()]
        return torch.cat([part.reshape(-1, shape[1]) for part in taken])

    def errors(self, dropped: Tensor, ratios: Tensor) -> Tensor:
        """Return the squared error of each scale group, of the shape of ``largest``."""
        found = torch.zeros_like(self.largest)
        for rows in self.parts():
            left = self.value(rows, ratios).to(torch.float64).masked_fill_(dropped[rows], 0)
            error = (self.weight[rows].to(torch.float64) - left).square_()
            if self.size == self.weight.numel():
                found += error.sum()
            else:
                found[rows] = error.reshape(len(error), -1, self.size).sum(dim=-1)
        return found
