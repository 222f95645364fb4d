"""SparseGPT on tensors [frantar2023a]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.sparse_gpt import SparseGPT
from compcomp.kernels._scales import stored
from compcomp.kernels._second_order import Rounding, decomposed, row_largest, spread
from compcomp.kernels._shared import Tensor, check, smallest, wide
from compcomp.layers.grids import GRIDS
from compcomp.layers.scales import scale_bits
from compcomp.layers.state import Grid, LayerState


def kernel(technique: SparseGPT, layer: LayerState) -> LayerState:
    """Choose weights block by block and set them to zero column by column, with later columns compensating for them.

    ``layer.weight`` is out x in, ``layer.gram`` is in x in, of the current inputs. All is computed in float64. The
    result has the weight's dtype and a bool mask, out x in. ``ties="any"`` drops the lowest index first,
    ``rounding="any"`` is "half_up". Source: [frantar2023a].

    Raises:
        InputError: There are no inputs, the pattern does not fit, an entry is not finite, or the damped Gram matrix is
        not positive definite.
    """
    check(technique, layer)
    (rows, columns), levels = layer.weight.shape, technique.levels
    known = decomposed(technique, layer, technique.damping, "left_to_right")
    held = layer.format.mask if technique.mask == "kept" else None
    of, step, rounding = GRIDS[technique.grid], None, None
    if levels is not None:
        largest = row_largest(layer.weight, held)
        step = stored(largest / float(of.reach(levels)), technique.scales).to(wide(layer.weight))
        rounding = Rounding(largest, step, levels, technique.rounding, of, technique.scales)
        value = torch.empty_like(step, dtype=layer.weight.dtype)
    work = layer.weight.to(torch.float64).T.clone(memory_format=torch.contiguous_format)
    work[known.dead] = 0
    dropped = torch.empty_like(work, dtype=torch.bool)  # in x out
    gone = None if held is None else (~held).T.contiguous()
    size = technique.partition.size

    def enter(part: slice, values: Tensor) -> None:
        scores = values.square_().div_(known.pivots[part, None])  # columns of the part x out
        if gone is not None:
            scores.masked_fill_(gone[part], -1)
        if size is None:
            whole = scores.T.reshape(1, -1)
            taken = smallest(whole, technique.count(whole.shape[1]), technique.ties).reshape(rows, -1).T
        else:
            taken = smallest(scores, technique.count(size), technique.ties, dim=0)
        dropped[part] = taken if gone is None else taken | gone[part]

    def final_values(j: int, values: Tensor) -> Tensor:
        if rounding is not None:
            values.copy_(rounding.into(value, values))
        return values.masked_fill_(dropped[j], 0)

    spread(work, known.coupling, final_values, size or technique.block, enter)
    weight = work.T.to(layer.weight.dtype, memory_format=torch.contiguous_format)
    grid = None
    if levels is not None and step is not None:
        every = step[:, None].expand(rows, columns)
        grid = Grid(every, levels, rows, scale_bits=scale_bits(technique.scales), below=of.below)
    form = replace(layer.format, grid=grid, rank=None)
    if technique.mask == "ignored":
        form = replace(form, mask=None, pattern=None, cut=None)
    if size is not None:
        form = replace(form, pattern=form.with_pattern(size - technique.count(size), size))
    mask = ~dropped.T.contiguous()
    if form.mask is not None:
        mask &= form.mask
    return replace(layer, weight=weight, format=replace(form, mask=mask))
