"""Read what compcomp writes: the dense weights, and what compcomp.json says of each compressed layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compcomp.formats.numbers import SIZES, half_ulp
from compcomp.formats.stored import Block, Claim, Layer, StoredGrid, total
from compcomp.formats.tensors import Tensor, of_files, read_json

ABOUT, COMPONENTS = "compcomp.json", "components.safetensors"


def described(folder: Path, layers: list[Layer]) -> tuple[list[Layer], list[str]]:
    """Return the layers with the claims and sizes of compcomp.json, and where its files differ from the weights.

    Layers of plain floats are counted with the bytes of their compressed parts, as far as there are any.
    """
    about = read_json(folder / ABOUT).get("layers")
    parts = of_files(sorted(folder.glob("components*.safetensors")))
    found, problems, known = [], [], set()
    for layer in layers:
        entry = about.get(layer.name) if isinstance(about, dict) else None
        if not isinstance(entry, dict):
            found.append(layer)
            continue
        known.add(layer.name)
        own = {name.removeprefix(f"{layer.name}."): part for name, part in parts.items() if _of(name, layer.name)}
        claim = _claim(entry, layer)
        rank, size = int(entry.get("factor_rank") or 0), total(own.values()) or layer.nbytes
        layer = replace(layer, claim=claim, branch_rank=rank, nbytes=size)
        if "levels" in own and not any(part.startswith(("basis_", "left", "right")) for part in own):
            differing = _differs(layer, own)
            if differing is None:
                layer = _on_its_grid(layer, own, claim)
            else:
                problems.append(f"{layer.name}: {differing}")
        found.append(layer)
    for name in sorted(set(about if isinstance(about, dict) else ()) - known):
        problems.append(f"{name}: {ABOUT} names it, and no weight has this name")
    return found, problems


def _of(name: str, layer: str) -> bool:
    return name.startswith(f"{layer}.") and "." not in name[len(layer) + 1 :]


def _claim(entry: Mapping[str, Any], layer: Layer) -> Claim:
    levels, scales, offsets = (entry.get(key) for key in ("levels", "scales", "offsets"))
    bits = group = None
    if isinstance(levels, int) and isinstance(scales, int) and scales > 0 and not entry.get("basis"):
        # one integer more on the negative side is no more bits; with an offset or codes, levels counts all but one
        bits = levels.bit_length() + (0 if offsets or entry.get("codes") else 1)
        size = layer.shape[0] * layer.shape[1] // scales
        group = size if size <= layer.shape[1] else -1
    patterns = entry.get("pattern")
    first = patterns[0] if isinstance(patterns, list) and patterns else ""
    n, _, m = str(first).partition(":")
    pattern = (int(n), int(m)) if n.isdigit() and m.isdigit() and int(m) else None
    rank = entry.get("rank")
    return Claim(ABOUT, bits, group, pattern, rank if isinstance(rank, int) else None)


def _on_its_grid(layer: Layer, parts: Mapping[str, Tensor], claim: Claim) -> Layer:
    """Return the layer with the grid of its parts, which give its weights."""
    scales = math.prod(parts["scales"].shape)
    size = layer.shape[0] * layer.shape[1] // scales
    group = size if size <= layer.shape[1] else layer.shape[1]
    if claim.bits is None or size == 1 or layer.shape[1] % group:
        group = 0
    kind = "minimum" if "offsets" in parts else "codebook" if "codes" in parts else "integers"
    levels, read = parts["levels"], layer.read
    assert read is not None

    def with_levels(first: int, last: int) -> Block:
        block = read(first, last)
        return block if kind == "codebook" else replace(block, levels=levels.rows(first, last))

    return replace(layer, read=with_levels, grid=StoredGrid(claim.bits or 8 * SIZES[levels.dtype], group, kind))


def _differs(layer: Layer, parts: Mapping[str, Tensor]) -> str | None:
    """Return a sentence if the parts do not give the stored weights, within rounding of their dtype; else None."""
    rows, columns = layer.shape
    levels, mask = parts["levels"], parts.get("mask")
    scales = parts["scales"].array().reshape(-1).astype(np.float64)
    if levels.shape != layer.shape or not len(scales) or (rows * columns) % len(scales) or layer.dtype is None:
        return f"{COMPONENTS} holds levels of shape {list(levels.shape)}, and the weight is {rows} x {columns}"
    offsets = parts["offsets"].array().reshape(-1) if "offsets" in parts else None
    codes = parts["codes"].array().reshape(-1) if "codes" in parts else None
    size = rows * columns // len(scales)
    for block in layer.blocks():
        count = len(block.values)
        at = np.arange(block.start * columns, (block.start + count) * columns).reshape(count, columns) // size
        places = levels.rows(block.start, block.start + count)
        given = (places if codes is None else codes[places]) * scales[at]
        bound = np.abs(given)
        if offsets is not None:
            given = given + offsets[at]
            bound = np.maximum(bound, np.abs(offsets[at]))
        if mask is not None and (offsets is not None or codes is not None):
            given = np.where(mask.rows(block.start, block.start + count) != 0, given, 0)
        apart = np.abs(given - block.values) > 2 * half_ulp(bound, layer.dtype)
        if apart.any():
            row, column = np.argwhere(apart)[0]
            return f"{COMPONENTS} gives another weight in row {block.start + int(row)}, column {int(column)}"
    return None
