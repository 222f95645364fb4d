"""Read the AWQ layout: 4-bit integers packed along the outputs, in the order of AutoAWQ's kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.compressed_tensors import quantization
from compcomp.formats.gptq import claim_of
from compcomp.formats.numbers import Array, nibbles
from compcomp.formats.stored import Block, Layer, StoredGrid, total
from compcomp.formats.tensors import WHERE, Tensor, Tensors, needed

FORMAT = "AWQ"
PARTS = ("qweight", "qzeros", "scales")
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output that each of the eight integers of an int32 belongs to, from the lowest bits up."""


def take(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> list[Layer]:
    """Remove the layers of this format from the tensors, and return them.

    Raises:
        InputError: A layer's tensors do not fit together.
    """
    found = []
    for prefix in sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")):
        found.append(_layer(tensors, prefix, quantization(config)))
        for part in PARTS:
            del tensors[f"{prefix}.{part}"]
    return found


def _layer(tensors: Tensors, prefix: str, settings: Mapping[str, Any]) -> Layer:
    qweight, qzeros, scales = needed(tensors, prefix, *PARTS)
    columns = qweight.shape[0]
    count, out = scales.shape
    if 8 * qweight.shape[1] != out or columns % count or qzeros.shape != (count, out // 8):
        raise InputError(
            f"{prefix!r}, whose tensors {list(qweight.shape)} and {list(scales.shape)} fit neither GPTQ nor AWQ",
            "in x (out / 8) with groups x out",
            WHERE,
        )
    group = columns // count
    zeros, steps = _unpacked(qzeros.array()), scales.array()
    packs: list[Array] = []

    def read(first: int, last: int) -> Block:
        if not packs:
            packs.append(qweight.array())
        left, right = first // 8, -(-last // 8)
        inside = slice(first - 8 * left, last - 8 * left)
        codes = _unpacked(packs[0][:, left:right])[:, inside].T
        if last == out:
            packs.clear()
        levels = codes - np.repeat(zeros[:, first:last].T, group, axis=1)
        return Block(first, levels * np.repeat(steps[:, first:last].T, group, axis=1), levels)

    kind = "integers" if bool((zeros == 8).all()) else "zero point"
    stored = total(tensors[f"{prefix}.{part}"] for part in PARTS)
    grid = StoredGrid(4, group, kind)
    return Layer(prefix, (out, columns), FORMAT, stored, read, None, grid, claim_of(prefix, settings))


def _unpacked(packs: Array) -> Array:
    """Return the integers of int32s, in the order of the outputs."""
    packed = nibbles(np.ascontiguousarray(packs).view(np.uint8)).reshape(*packs.shape, 8)
    found = np.empty(packed.shape, np.int16)
    found[..., ORDER] = packed
    return found.reshape(packs.shape[0], -1)
