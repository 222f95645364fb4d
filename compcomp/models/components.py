"""Convert a compressed layer to tensors to store, and back: levels and scales, kept values, mask, factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compcomp.errors import InputError
from compcomp.kernels._codebook import coded, nearest_places
from compcomp.language.size import stored_as_factors
from compcomp.layers import walk
from compcomp.layers.basis import Rotation, Scaling, Transform
from compcomp.layers.state import Grid, LayerState
from compcomp.models.measure import effective_weight


def pack(layer: LayerState, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the parts of one layer (out x in), on the CPU.

    ``levels``: whole numbers (out x in), with ``scales``, one for each group in row-major order, and ``offsets``, one
    for each scale, if the grid has them. They are int8, or int16 beyond its range; with offsets uint8 or int32.
    If the grid has ``codes`` (ascending, float64), the levels are positions among the codes (uint8 up to 256 codes).

    ``values``: the weights in the model's ``dtype`` if there is no grid. They are out x in; under a mask only the kept
    ones, in row-major order. ``mask``: bool, out x in. ``left`` (out x r), ``right`` (r x in): factors of the low-rank
    branch. A factor on a grid has ``left_levels`` and ``left_scales``, or ``right_levels`` and ``right_scales``.
    ``weight_left``, ``weight_right``: the weight itself, if its rank makes these smaller. Arrays of a format that the
    table of fields (:mod:`compcomp.layers.walk`) marks to be stored are kept under their names.

    With a transform, all these describe the weight for transformed inputs, and values keep the dtype of the state.
    ``basis_K``: the K-th part of the transform, in the order in which the parts act on the inputs. It holds the scales
    (in) that features are divided by, or the side of a Hadamard matrix as one whole number.

    Args:
        layer: The state of the layer.
        dtype: The model's dtype.

    Raises:
        InputError: The parts do not add up to the layer's weight again.
    """
    form = layer.format
    dtype = dtype if form.transform is None else torch.promote_types(layer.weight.dtype, torch.float32)
    weight, mask, parts = _tensor(layer.weight), None, dict[str, Tensor]()
    if form.mask is not None:
        mask = parts["mask"] = _tensor(form.mask).bool()
    if mask is not None and form.grid is not None and not form.grid.zero and bool(weight[~mask].any()):
        mask = None  # without a zero in the grid and with no step that restored the mask, there is no mask any more
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
        parts |= _factor("left", form.factors.left, form.factors.left_grid)
        parts |= _factor("right", form.factors.right, form.factors.right_grid)
    for number, part in enumerate(form.transform.parts if form.transform is not None else ()):
        scales = part.scales if isinstance(part, Scaling) else torch.tensor([part.block], device="cpu")
        parts[f"basis_{number}"] = _tensor(scales)
    parts |= {field.name.replace(" ", "_"): _tensor(array) for field, array in walk.apart_of(form)}
    if form.transform is not None:
        _check(layer, parts)
    return {name: part.clone(memory_format=torch.contiguous_format) for name, part in parts.items()}


def _check(layer: LayerState, parts: Mapping[str, Tensor]) -> None:
    """Raise InputError unless the parts give the layer's weight again, up to rounding in its dtype."""
    weight = effective_weight(layer).double().cpu()
    apart = float((unpack(parts) - weight).abs().max()) if weight.numel() else 0.0
    if not apart <= 64 * torch.finfo(layer.weight.dtype).eps * float(weight.abs().max()):
        raise InputError("parts in another basis that do not add up to the weight", "parts that do", "pack")


def unpack(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the weight (out x in, float64) that the layer applies, from the result of :func:`pack`."""
    if "levels" in parts:
        weight = _from_levels(parts)
        if ("offsets" in parts or "codes" in parts) and "mask" in parts:
            weight = weight.masked_fill(~parts["mask"], 0)
    elif "weight_left" in parts:
        weight = parts["weight_left"].double() @ parts["weight_right"].double()
    else:
        weight = parts["values"].double()
        if weight.ndim == 1:
            kept = weight
            weight = torch.zeros(parts["mask"].shape, dtype=torch.float64, device="cpu")
            weight[parts["mask"]] = kept
    if any(name.startswith("left") for name in parts):
        weight = weight + _unpacked("left", parts) @ _unpacked("right", parts)
    basis = [parts[f"basis_{number}"] for number in range(sum(name.startswith("basis_") for name in parts))]
    kinds = (Scaling(part.double()) if part.is_floating_point() else Rotation(int(part)) for part in basis)
    restored: Tensor = Transform(tuple(kinds)).weights_back(weight)
    return restored


def _factor(name: str, factor: Any, grid: Grid | None) -> dict[str, Tensor]:
    """Return a factor as it is, or its levels and scales if it lies on a grid."""
    on_grid = {} if grid is None else _levels(_tensor(factor), grid, None)
    return {f"{name}_{part}": tensor for part, tensor in on_grid.items()} or {name: _tensor(factor)}


def _unpacked(name: str, parts: Mapping[str, Tensor]) -> Tensor:
    """Return the factor of this name, in float64."""
    if name in parts:
        return parts[name].double()
    own = {part.removeprefix(f"{name}_"): tensor for part, tensor in parts.items() if part.startswith(f"{name}_")}
    return _from_levels(own)


def _from_levels(parts: Mapping[str, Tensor]) -> Tensor:
    levels, scales = parts["levels"], parts["scales"].reshape(-1, 1)
    if "offsets" in parts:  # in the dtype of the scales, in which zero is exact
        groups = levels.to(scales.dtype).reshape(len(scales), -1) * scales + parts["offsets"].reshape(-1, 1)
    else:
        values = parts["codes"][levels.long()] if "codes" in parts else levels.double()
        groups = values.reshape(len(scales), -1) * scales.double()
    return groups.reshape(levels.shape).double()


def _levels(weight: Tensor, grid: Grid, mask: Tensor | None) -> dict[str, Tensor]:
    """Return levels, and scales and offsets, one for each group if groups are runs of equal length.

    Return {} off the grid.

    If zero is not a value of the grid, only the weights that the mask keeps have to lie on it.
    """
    shared = {"scales": _tensor(grid.step).expand_as(weight)}
    if grid.offset is not None:
        shared["offsets"] = _tensor(grid.offset).expand_as(weight)
    count = 1 if weight.numel() % grid.scales else grid.scales
    groups = {name: part.reshape(count, -1) for name, part in shared.items()}
    if not all(torch.equal(part, part[:, :1].expand_as(part)) for part in groups.values()):
        groups = {name: part.reshape(-1, 1) for name, part in shared.items()}
    exact, step = weight.double(), shared["scales"].double()
    if grid.codes is not None:
        return _places(exact, step, grid, mask, weight.dtype, {name: part[:, 0] for name, part in groups.items()})
    least = step * 0 if grid.offset is None else shared["offsets"].double()
    levels = torch.where(step == 0, 0.0, torch.round((exact - least) / step))
    size = torch.maximum(exact.abs(), least.abs())
    off = (levels * step + least - exact).abs() > 4 * torch.finfo(weight.dtype).eps * size
    off |= (levels < grid.lowest) | (levels > grid.levels)
    if mask is not None and not grid.zero:
        levels, off = levels.masked_fill(~mask, 0), off & mask
    if bool(off.any()):
        return {}
    largest = max(grid.levels, -1 - grid.lowest)
    kind = torch.int8 if largest <= 127 else torch.int16 if largest <= 32767 else torch.int32
    if grid.offset is not None:
        kind = torch.uint8 if grid.levels <= 255 else torch.int32
    return {"levels": levels.to(kind), **{name: part[:, 0] for name, part in groups.items()}}


def _places(
    exact: Tensor, step: Tensor, grid: Grid, mask: Tensor | None, dtype: torch.dtype, shared: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the positions of weights (float64, from this dtype) among the codes, and the shared arrays.

    Return {} off them.
    """
    assert grid.codes is not None
    codes = coded(grid.codes, step)
    levels = nearest_places(2 * exact, step, grid.codes, "half_even")
    off = (codes[levels] * step - exact).abs() > 4 * torch.finfo(dtype).eps * exact.abs()
    if mask is not None and not grid.zero:
        levels, off = levels.masked_fill(~mask, 0), off & mask
    if bool(off.any()):
        return {}
    return {"levels": levels.to(torch.uint8 if grid.levels <= 255 else torch.int32), "codes": codes, **shared}


def _factorise(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the leading ``rank`` singular triples as out x rank and rank x in."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]).to(weight.dtype), vt[:rank].to(weight.dtype)


def _tensor(value: Any) -> Tensor:
    tensor: Tensor = value.detach().cpu()
    return tensor
