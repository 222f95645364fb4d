"""Optimal brain quantization on tensors [frantar2022]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.obq import OBQ
from compcomp.kernels._scales import stored
from compcomp.kernels._second_order import Greedy, Rounding, damped, inverse_root, row_largest
from compcomp.kernels._shared import check, chunks, wide
from compcomp.language.parameters import known
from compcomp.layers.grids import GRIDS
from compcomp.layers.scales import scale_bits
from compcomp.layers.state import Grid, LayerState


def kernel(technique: OBQ, layer: LayerState) -> LayerState:
    """Round one weight after the other in every row, compensated by the rest of the row.

    ``layer.weight`` is out x in, ``layer.gram`` is in x in, of the current inputs. All is computed in float64, with out
    * in^3 / 2 multiplications. The step is kept in the weight's dtype, but at least float32. The error that is
    compensated is that of the value as it is stored. ``ties="any"`` takes the lowest column, ``rounding="any"`` is
    "half_up". Source: [frantar2022].

    Raises:
        InputError: There are no inputs, an entry is not finite, or the damped Gram matrix is not positive definite.
    """
    check(technique, layer)
    (rows, columns), dtype = layer.weight.shape, layer.weight.dtype
    levels = known(technique.levels, "OBQ.bits")
    gram, dead = damped(technique, layer, technique.damping)
    root = inverse_root(technique, gram)
    inverse = root.T @ root
    of, scales = GRIDS[technique.grid], technique.scales
    largest = row_largest(layer.weight, None)[:, None]
    step = stored(largest / float(of.reach(levels)), scales).to(wide(layer.weight))
    weight = layer.weight.to(torch.float64).masked_fill(dead, 0)
    for part in chunks(rows, Greedy.memory(columns, columns), weight.device):
        greedy = Greedy(weight[part], inverse, columns)
        every = torch.arange(len(weight[part]), device=weight.device)
        rounding = Rounding(largest[part], step[part], levels, technique.rounding, of, scales)
        values = torch.empty_like(weight[part], dtype=dtype)
        for _ in range(columns):
            targets = rounding.into(values, greedy.weights.clone()).to(torch.float64)
            chosen = greedy.scores(greedy.weights - targets).argmin(dim=1)
            greedy.fix(chosen, targets[every, chosen])
    grid = Grid(step.expand(rows, columns), levels, rows, scale_bits=scale_bits(scales), below=of.below)
    return replace(layer, weight=weight.to(dtype), format=replace(layer.format, grid=grid, rank=None))
