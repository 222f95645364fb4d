"""GPTQ on tensors [frantar2023]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.gptq import GPTQ
from compcomp.kernels._scales import stored
from compcomp.kernels._second_order import Rounding, decomposed, row_largest, spread
from compcomp.kernels._shared import Tensor, check, wide
from compcomp.language.parameters import known
from compcomp.layers.grids import GRIDS
from compcomp.layers.scales import scale_bits
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
    found = decomposed(technique, layer, technique.damping, technique.order)
    kept = layer.format.mask if technique.mask == "kept" else None
    work = layer.weight.to(torch.float64).T.clone(memory_format=torch.contiguous_format)  # in x out
    first = row_largest(layer.weight, kept)
    work[found.dead] = 0
    stays = None if kept is None else kept.T.contiguous()
    size, count = group or columns, columns // (group or columns)
    of_column = torch.arange(columns, device=work.device) // size
    largest = first.expand(count, rows).clone()  # groups x out

    def measured(part: slice, values: Tensor) -> Tensor:
        """Return the largest magnitudes (out) of some columns with these values, of those that stay."""
        sizes = values.abs()
        return (sizes if stays is None else sizes.masked_fill_(~stays[part], 0)).amax(dim=0)

    dynamic = group is not None and not technique.static_groups
    if technique.static_groups and group is not None:
        for number in range(count):
            part = slice(number * size, (number + 1) * size)
            largest[number] = measured(part, work[part])
    if found.order is not None:
        work = work[found.order]
        stays = None if stays is None else stays[found.order]
        of_column = of_column if dynamic else of_column[found.order]
    of = GRIDS[technique.grid]
    reach = float(of.reach(levels))
    step = stored(largest / reach, technique.scales).to(dtype)

    def grid_of(number: int) -> Rounding:
        return Rounding(largest[number], step[number], levels, technique.rounding, of, technique.scales)

    grids = list(map(grid_of, range(count)))

    def enter(part: slice, values: Tensor) -> None:
        number = part.start // size
        largest[number] = measured(part, values)
        step[number] = stored(largest[number] / reach, technique.scales).to(dtype)
        grids[number] = grid_of(number)

    result = torch.empty_like(work, dtype=layer.weight.dtype)
    numbers, targets = of_column.tolist(), result.unbind()
    gone = None if stays is None else (~stays).unbind()

    def final_values(j: int, values: Tensor) -> Tensor:
        target: Tensor = grids[numbers[j]].into(targets[j], values)
        if gone is not None:
            target.masked_fill_(gone[j], 0)
        return target

    spread(work, found.coupling, final_values, size, enter if dynamic else None)
    if found.order is not None:
        back = found.order.argsort()
        result, of_column = result[back], of_column[back]
    weight = result.T.contiguous()
    bits = scale_bits(technique.scales)
    grid = Grid(step[of_column].T.contiguous(), levels, rows * count, scale_bits=bits, below=of.below)
    form = replace(layer.format, grid=grid, rank=None)
    if technique.mask == "ignored":
        form = replace(form, mask=None, pattern=None, cut=None)
    return replace(layer, weight=weight, format=form)
