"""What a compressed layer is made of, as tensors to store: levels and scales, kept values, mask, factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compcomp.language.layer import Grid, LayerState
from compcomp.models.size import stored_as_factors


def pack(layer: LayerState, dtype: torch.dtype) -> dict[str, Tensor]:
    """The parts of one layer (out x in), on the CPU.

    ``levels``: whole numbers (out x in; int8, or int16 above 127 levels a side) with ``scales``, one a group
    in row-major order. Without a grid, ``values`` in the model's ``dtype``: out x in, or only the kept ones,
    in row-major order, under a mask. ``mask``: bool, out x in. ``left`` (out x r), ``right`` (r x in):
    factors beside the weight. ``weight_left``, ``weight_right``: the weight itself, when its rank makes these
    smaller.
    """
    form = layer.format
    weight, mask, parts = _tensor(layer.weight), None, dict[str, Tensor]()
    if form.mask is not None:
        mask = parts["mask"] = _tensor(form.mask).bool()
    on_grid = None if form.grid is None else _levels(weight, form.grid)
    if on_grid is not None:
        parts["levels"], parts["scales"] = on_grid
    elif stored_as_factors(form, (weight.shape[0], weight.shape[1])):
        parts["weight_left"], parts["weight_right"] = _factorise(weight, form.rank or 0)
    elif mask is not None and not bool(weight[~mask].any()):
        parts["values"] = weight[mask].to(dtype)
    else:
        parts["values"] = weight.to(dtype)
    if form.factors is not None:
        parts["left"], parts["right"] = _tensor(form.factors.left), _tensor(form.factors.right)
    return {name: part.clone(memory_format=torch.contiguous_format) for name, part in parts.items()}


def unpack(parts: Mapping[str, Tensor]) -> Tensor:
    """The weight (out x in, float64) that the layer computes with, from what :func:`pack` gave."""
    if "levels" in parts:
        levels = parts["levels"].double()
        scales = parts["scales"].double()
        weight = (levels.reshape(scales.numel(), -1) * scales.reshape(-1, 1)).reshape(levels.shape)
    elif "weight_left" in parts:
        weight = parts["weight_left"].double() @ parts["weight_right"].double()
    else:
        weight = parts["values"].double()
        if weight.ndim == 1:
            kept = weight
            weight = torch.zeros(parts["mask"].shape, dtype=torch.float64)
            weight[parts["mask"]] = kept
    return weight + parts["left"].double() @ parts["right"].double() if "left" in parts else weight


def _levels(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor] | None:
    """Levels and scales, one a group where groups are runs of equal length; None when off the grid."""
    step = _tensor(grid.step).expand_as(weight)
    groups = step.reshape(1 if weight.numel() % grid.scales else grid.scales, -1)
    if not torch.equal(groups, groups[:, :1].expand_as(groups)):
        groups = step.reshape(-1, 1)
    exact = weight.double()
    levels = torch.where(step == 0, 0.0, torch.round(exact / step.double()))
    off = (levels * step.double() - exact).abs() > 4 * torch.finfo(weight.dtype).eps * exact.abs()
    if bool(off.any()) or bool((levels.abs() > grid.levels).any()):
        return None
    kind = torch.int8 if grid.levels <= 127 else torch.int16 if grid.levels <= 32767 else torch.int32
    return levels.to(kind), groups[:, 0]


def _factorise(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading ``rank`` singular triples as out x rank and rank x in."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]).to(weight.dtype), vt[:rank].to(weight.dtype)


def _tensor(value: Any) -> Tensor:
    tensor: Tensor = value.detach().cpu()
    return tensor
