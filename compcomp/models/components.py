"""What a compressed layer is made of, as tensors to store: levels and scales, kept values, mask, factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compcomp.language.layer import Grid, LayerState
from compcomp.language.size import stored_as_factors


def pack(layer: LayerState, dtype: torch.dtype) -> dict[str, Tensor]:
    """The parts of one layer (out x in), on the CPU.

    ``levels``: whole numbers (out x in; int8, or int16 above 127 levels a side; uint8 or int32 with offsets) with
    ``scales``, one a group in row-major order, and ``offsets``, one a scale, where the grid has them. Without a
    grid, ``values`` in the model's ``dtype``: out x in, or only the kept ones, in row-major order, under a mask.
    ``mask``: bool, out x in. ``left`` (out x r), ``right`` (r x in): factors beside the weight. ``weight_left``,
    ``weight_right``: the weight itself, when its rank makes these smaller.
    """
    form = layer.format
    weight, mask, parts = _tensor(layer.weight), None, dict[str, Tensor]()
    if form.mask is not None:
        mask = parts["mask"] = _tensor(form.mask).bool()
    if mask is not None and form.grid is not None and not form.grid.zero and bool(weight[~mask].any()):
        mask = None  # the grid has no zero to keep it with, and no step put it right: there is no mask any more
        del parts["mask"]
    on_grid = {} if form.grid is None else _levels(weight, form.grid, mask)
    if on_grid:
        parts |= on_grid
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
        levels, scales = parts["levels"], parts["scales"].reshape(-1, 1)
        if "offsets" in parts:  # in the dtype of the scales, in which zero is exact
            groups = levels.to(scales.dtype).reshape(len(scales), -1) * scales + parts["offsets"].reshape(-1, 1)
        else:
            groups = levels.double().reshape(len(scales), -1) * scales.double()
        weight = groups.reshape(levels.shape).double()
        if "offsets" in parts and "mask" in parts:
            weight = weight.masked_fill(~parts["mask"], 0)
    elif "weight_left" in parts:
        weight = parts["weight_left"].double() @ parts["weight_right"].double()
    else:
        weight = parts["values"].double()
        if weight.ndim == 1:
            kept = weight
            weight = torch.zeros(parts["mask"].shape, dtype=torch.float64)
            weight[parts["mask"]] = kept
    return weight + parts["left"].double() @ parts["right"].double() if "left" in parts else weight


def _levels(weight: Tensor, grid: Grid, mask: Tensor | None) -> dict[str, Tensor]:
    """Levels, scales and offsets, one a group where groups are runs of equal length; none when off the grid.

    Where zero is no value of the grid, only the weights that the mask keeps have to be on it.
    """
    shared = {"scales": _tensor(grid.step).expand_as(weight)}
    if grid.offset is not None:
        shared["offsets"] = _tensor(grid.offset).expand_as(weight)
    count = 1 if weight.numel() % grid.scales else grid.scales
    groups = {name: part.reshape(count, -1) for name, part in shared.items()}
    if not all(torch.equal(part, part[:, :1].expand_as(part)) for part in groups.values()):
        groups = {name: part.reshape(-1, 1) for name, part in shared.items()}
    exact, step = weight.double(), shared["scales"].double()
    least, lowest = (shared["offsets"].double(), 0) if grid.offset is not None else (step * 0, -grid.levels)
    levels = torch.where(step == 0, 0.0, torch.round((exact - least) / step))
    size = torch.maximum(exact.abs(), least.abs())
    off = (levels * step + least - exact).abs() > 4 * torch.finfo(weight.dtype).eps * size
    off |= (levels < lowest) | (levels > grid.levels)
    if mask is not None and not grid.zero:
        levels, off = levels.masked_fill(~mask, 0), off & mask
    if bool(off.any()):
        return {}
    kind = torch.int8 if grid.levels <= 127 else torch.int16 if grid.levels <= 32767 else torch.int32
    if grid.offset is not None:
        kind = torch.uint8 if grid.levels <= 255 else torch.int32
    return {"levels": levels.to(kind), **{name: part[:, 0] for name, part in groups.items()}}


def _factorise(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading ``rank`` singular triples as out x rank and rank x in."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]).to(weight.dtype), vt[:rank].to(weight.dtype)


def _tensor(value: Any) -> Tensor:
    tensor: Tensor = value.detach().cpu()
    return tensor
