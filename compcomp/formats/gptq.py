"""Read the GPTQ layout: integers packed along the inputs, out in the last axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.compressed_tensors import quantization
from compcomp.formats.numbers import Array, unpacked
from compcomp.formats.stored import Block, Claim, Layer, StoredGrid, total
from compcomp.formats.tensors import WHERE, Tensor, Tensors, needed

FORMAT = "GPTQ"
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def take(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> list[Layer]:
    """Remove the layers of this format from the tensors, and return them.

    Raises:
        InputError: A layer's tensors do not fit together.
    """
    found = []
    for prefix in sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")):
        qweight, scales = needed(tensors, prefix, "qweight", "scales")
        if len(qweight.shape) != 2 or len(scales.shape) != 2 or qweight.shape[1] != scales.shape[1]:
            continue
        found.append(_layer(tensors, prefix, quantization(config)))
        for part in PARTS:
            tensors.pop(f"{prefix}.{part}", None)
    return found


def _layer(tensors: Tensors, prefix: str, settings: Mapping[str, Any]) -> Layer:
    qweight, qzeros, scales = needed(tensors, prefix, "qweight", "qzeros", "scales")
    order = tensors.get(f"{prefix}.g_idx")
    claim = claim_of(prefix, settings)
    out, count = scales.shape[1], scales.shape[0]
    if order is not None:
        columns = order.shape[0]
    else:
        columns = 32 * qweight.shape[0] // (claim.bits if claim and claim.bits else 4)
    bits = 32 * qweight.shape[0] // max(1, columns)
    if not 1 <= bits <= 8 or bits * columns != 32 * qweight.shape[0] or (columns % count and order is None):
        raise InputError(
            f"{prefix!r}, whose qweight {list(qweight.shape)} does not hold {columns} inputs", "1 to 8 bits each", WHERE
        )
    groups = np.arange(columns) // (columns // count) if order is None else order.array().astype(np.int64)
    if int(groups.min()) < 0 or int(groups.max()) >= count:
        raise InputError(f"{prefix!r}, whose g_idx names groups without scales", f"0 to {count - 1}", WHERE)
    more = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1  # the first version stores zero points minus 1
    zeros = (unpacked(qzeros.array(), bits, out).astype(np.int16) + more) & ((1 << bits) - 1 if more else 0xFFFF)
    steps = scales.array()
    packs: list[Array] = []

    def read(first: int, last: int) -> Block:
        if not packs:
            packs.append(qweight.array())
        codes = unpacked(np.ascontiguousarray(packs[0][:, first:last].T), bits, columns).astype(np.int16)
        if last == out:
            packs.clear()
        levels = codes - zeros[groups, first:last].T
        return Block(first, levels * steps[groups, first:last].T, levels)

    in_order = bool((np.diff(groups) >= 0).all())
    middle = bool((zeros == 1 << (bits - 1)).all())
    size = columns // count if in_order else 0
    grid = StoredGrid(bits, size, "integers" if middle else "zero point")
    stored = total(tensors[f"{prefix}.{part}"] for part in PARTS if f"{prefix}.{part}" in tensors)
    return Layer(prefix, (out, columns), FORMAT, stored, read, None, grid, claim)


def claim_of(name: str, settings: Mapping[str, Any]) -> Claim | None:
    """Return what the settings of a quantization with one number of bits for all layers claim of a layer."""
    bits, group = (settings.get(key) for key in ("bits", "group_size"))
    if not isinstance(bits, int):
        return None
    skipped = settings.get("modules_to_not_convert")
    if isinstance(skipped, list) and any(isinstance(part, str) and part in name for part in skipped):
        return None
    return Claim("config.json", bits, group if isinstance(group, int) else None)
