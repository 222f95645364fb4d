"""Read what compcomp writes: the dense weights, and what compcomp.json says of each compressed layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compcomp.formats.numbers import half_ulp
from compcomp.formats.stored import Claim, Layer, total
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
        if differing := _differs(layer, own):
            problems.append(f"{layer.name}: {differing}")
        size = total(own.values()) or layer.nbytes
        rank = int(entry.get("factor_rank") or 0)
        found.append(replace(layer, claim=_claim(entry, layer), branch_rank=rank, nbytes=size))
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


def _differs(layer: Layer, parts: Mapping[str, Tensor]) -> str | None:
    """Return a sentence if levels and scales do not give the stored weights, within rounding of their dtype."""
    if set(parts) - {"mask"} != {"levels", "scales"} or layer.dtype is None:
        return None
    levels, scales = parts["levels"], parts["scales"].array().reshape(-1).astype(np.float64)
    rows, columns = layer.shape
    if levels.shape != layer.shape or (rows * columns) % len(scales):
        return f"{COMPONENTS} holds levels of shape {list(levels.shape)}, and the weight is {rows} x {columns}"
    size = rows * columns // len(scales)
    for block in layer.blocks():
        count, width = block.values.shape
        at = np.arange(block.start * width, (block.start + count) * width).reshape(count, width) // size
        given = levels.rows(block.start, block.start + count) * scales[at]
        apart = np.abs(given - block.values) > 2 * half_ulp(given, layer.dtype)
        if apart.any():
            row, column = np.argwhere(apart)[0]
            return f"{COMPONENTS} gives another weight in row {block.start + int(row)}, column {int(column)}"
    return None
