"""Read the formats of bitsandbytes: NF4 and FP4 with one or two levels of scales, and 8-bit integers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.compressed_tensors import quantization
from compcomp.formats.numbers import Array, nibbles
from compcomp.formats.stored import Block, Claim, Layer, StoredGrid, total
from compcomp.formats.tensors import WHERE, Tensor, Tensors, needed

FORMAT = "bitsandbytes"


def take(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> list[Layer]:
    """Remove the layers of this format from the tensors, and return them.

    Raises:
        InputError: A layer's tensors do not fit together.
    """
    settings = quantization(config)
    bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None
    claim = None if bits is None else Claim("config.json", bits)
    found = []
    for prefix in sorted(name.removesuffix(".weight.absmax") for name in tensors if name.endswith(".weight.absmax")):
        found.append(_four(tensors, prefix, claim))
        for name in [name for name in tensors if name == f"{prefix}.weight" or name.startswith(f"{prefix}.weight.")]:
            del tensors[name]
    for prefix in sorted(name.removesuffix(".SCB") for name in tensors if name.endswith(".SCB")):
        found.append(_eight(tensors, prefix, claim))
        for part in ("weight", "SCB", "weight_format"):
            tensors.pop(f"{prefix}.{part}", None)
    return found


def _four(tensors: Tensors, prefix: str, claim: Claim | None) -> Layer:
    weight, absmax, table = needed(tensors, prefix, "weight", "weight.absmax", "weight.quant_map")
    about = next((name for name in tensors if name.startswith(f"{prefix}.weight.quant_state.")), None)
    try:
        if about is None:
            raise ValueError
        state = json.loads(tensors[about].raw())
        rows, columns = (int(side) for side in state["shape"])
        size, kind = int(state["blocksize"]), str(state["quant_type"]).upper()
        offset = float(state.get("nested_offset", 0.0))
        outer = int(state.get("nested_blocksize", 1))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{prefix!r}, whose quant_state cannot be read", "what bitsandbytes writes", WHERE) from None
    if min(rows, columns, size, outer) < 1 or 2 * weight.nbytes < rows * columns:
        raise InputError(f"{prefix!r}, whose weight is too short for {rows} x {columns}", "half a byte each", WHERE)
    codes = table.array().reshape(-1)
    steps = absmax.array().reshape(-1)
    if absmax.dtype == "U8":
        scale, of_scale = needed(tensors, prefix, "weight.nested_absmax", "weight.nested_quant_map")
        spread = np.repeat(scale.array().reshape(-1), outer)[: len(steps)]
        steps = of_scale.array().reshape(-1)[steps] * spread + offset

    def read(first: int, last: int) -> Block:
        start, end = first * columns, last * columns
        packed = np.frombuffer(weight.raw(start // 2, -(-end // 2)), np.uint8)
        places = nibbles(packed, high_first=True)[start % 2 : start % 2 + end - start]
        values: Array = codes[places] * steps[np.arange(start, end) // size]
        return Block(first, values.reshape(last - first, columns).astype(np.float32))

    stored = total(tensor for name, tensor in tensors.items() if f"{name}.".startswith(f"{prefix}.weight."))
    grid = StoredGrid(4, size if columns % size == 0 else 0, kind)
    return Layer(prefix, (rows, columns), f"{FORMAT} {kind}", stored, read, None, grid, claim)


def _eight(tensors: Tensors, prefix: str, claim: Claim | None) -> Layer:
    weight, scale = needed(tensors, prefix, "weight", "SCB")
    rows, columns = weight.shape
    steps = scale.array().reshape(-1, 1) / np.float32(127)
    if weight.dtype != "I8" or len(steps) != rows:
        raise InputError(f"{prefix!r}, whose SCB does not have {rows} scales", "one for each row", WHERE)

    def read(first: int, last: int) -> Block:
        levels = weight.rows(first, last).astype(np.int16)
        return Block(first, levels * steps[first:last], levels)

    grid = StoredGrid(8, columns)
    stored = weight.nbytes + scale.nbytes
    return Layer(prefix, (rows, columns), f"{FORMAT} int8", stored, read, None, grid, claim)
