"""GPTQ on tensors [frantar2023]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.gptq import GPTQ
from compcomp.kernels._second_order import damped, inverse_root, on_grid, row_grid, spread
from compcomp.kernels._shared import Tensor, check, wide
from compcomp.language.parameters import known
from compcomp.layers.state import Grid, LayerState


def kernel(technique: GPTQ, layer: LayerState) -> LayerState:
    """Round the columns one after the other, with later ones compensating for the error of each.

    ``layer.weight`` is out x in, ``layer.gram`` is in x in, of the current inputs. All is computed in float64. The step
    is kept in the weight's dtype, but at least float32. The error that is spread is that of the value as it is stored.
    ``rounding="any"`` is "half_up". Source: [frantar2023].

    Raises:
        InputError: There are no inputs, the group does not divide a row, an entry is not finite, or the damped Gram
        matrix is not positive definite.
    """
    check(technique, layer)
    (rows, columns), dtype = layer.weight.shape, wide(layer.weight)
    levels, group = known(technique.levels, "GPTQ.bits"), technique.group
    gram, dead = damped(technique, layer, technique.damping)
    kept = layer.format.mask if technique.mask == "kept" else None
    work = layer.weight.to(torch.float64).T.clone(memory_format=torch.contiguous_format)
    largest = torch.empty_like(work)  # in x out, as are the others
    largest[:] = row_grid(layer.weight, kept, levels)[0]
    work[dead] = 0
    stays = None if kept is None else kept.T.contiguous()

    def enter(part: slice) -> None:
        sizes = work[part].abs()
        largest[part] = (sizes if stays is None else sizes.masked_fill_(~stays[part], 0)).amax(dim=0)

    dynamic = group is not None and not technique.static_groups
    if group is not None and technique.static_groups:
        for start in range(0, columns, group):
            enter(slice(start, start + group))
    order = None
    if technique.order == "activation":
        assert layer.gram is not None
        keys = layer.gram.diagonal().masked_fill(dead, 1)
        order = keys.sort(descending=True, stable=True).indices
        gram, work, largest = gram[order][:, order], work[order], largest[order]
        stays = None if stays is None else stays[order]
    step = (largest / levels).to(dtype)

    def begin(part: slice) -> None:
        if dynamic:
            enter(part)
            step[part] = (largest[part] / levels).to(dtype)

    def final_values(j: int, values: Tensor) -> Tensor:
        result = on_grid(values, largest[j], step[j], levels, technique.rounding, layer.weight.dtype)
        return result if stays is None else result.masked_fill_(~stays[j], 0)

    spread(work, inverse_root(technique, gram), group if dynamic and group else columns, begin, final_values)
    if order is not None:
        back = order.argsort()
        work, step = work[back], step[back]
    weight = work.T.to(layer.weight.dtype, memory_format=torch.contiguous_format)
    grid = Grid(step.T.contiguous(), levels, rows * (columns // (group or columns)))
    form = replace(layer.format, grid=grid, rank=None)
    if technique.mask == "ignored":
        form = replace(form, mask=None, pattern=None, cut=None)
    return replace(layer, weight=weight, format=form)
