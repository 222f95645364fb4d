"""Read and write the GPTQ layout: integers packed along the inputs, out in the last axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.compressed_tensors import quantization
from compcomp.formats.numbers import Array, packed, unpacked
from compcomp.formats.stored import Block, Claim, Layer, StoredGrid, total
from compcomp.formats.tensors import WHERE, Tensor, Tensors, needed
from compcomp.formats.writing import Part, SavedLayer, SavedModel, Structure, TensorWriter, shared_linear, uncommon

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


BITS = (2, 3, 4, 8)
"""The bits that readers of this layout know."""


class GPTQ(TensorWriter):
    """Write the first version of the layout, which stores zero points minus 1 (``checkpoint_format: gptq``).

    A level k of a symmetric grid of b bits is stored as k + 2^(b-1), with that zero point. Groups are of consecutive
    columns, whatever the order in which a technique treated these, so that ``g_idx`` is column // group and
    ``desc_act`` is false. Steps are float16.
    """

    name: ClassVar[str] = "gptq"
    needs: ClassVar[str] = "integers of 2, 3, 4 or 8 bits in Linear layers, all with one group size"

    def misfit(self, layer: Structure) -> str | None:
        if layer.codes is not None:
            return "its values are those of a codebook, which are no integers"
        if reason := uncommon(layer):
            return reason
        if not layer.on_grid:
            return "its weights lie on no grid"
        if self._bits(layer) not in BITS:
            return f"its levels take {self._bits(layer)} bits, and readers know {', '.join(map(str, BITS))}"
        if layer.group == 0:
            return "its matrix shares one step, and readers know steps for groups and for rows"
        if layer.module != "Linear":
            return f"its module is {layer.module}, and readers know Linear"
        if layer.shape[0] % 32 or layer.shape[1] % 32:
            return f"its shape is {layer.shape[0]} x {layer.shape[1]}, and integers are packed by 32 on both sides"
        return None

    def misfit_of_model(self, model: SavedModel) -> str | None:
        if reason := shared_linear(model):
            return reason
        found = {self._settings(layer.structure): name for name, layer in model.layers.items()}
        if len(found) > 1:
            one, other = list(found.values())[:2]
            return f"{one} and {other} differ in bits or group size, of which this layout has one for all layers"
        left = [n for n, kind in model.modules.items() if kind == "Linear" and n not in model.layers]
        if left := [name for name in left if name.rpartition(".")[0]]:
            return f"{left[0]} is not quantized, and readers take every Linear layer in a block for quantized"
        for name, layer in model.layers.items():
            if layer.structure.offsets and not layer.zero_points().all():
                return f"{name} has a zero point 0, which is stored as -1, and readers differ on what they make of it"
        return None

    def step_dtype(self, layer: SavedLayer) -> str:
        return "F16"

    @staticmethod
    def _bits(layer: Structure) -> int:
        assert layer.lowest is not None and layer.highest is not None
        if layer.offsets:
            return max(2, layer.highest.bit_length())
        return 1 + max(layer.highest, -1 - layer.lowest).bit_length()

    def _settings(self, layer: Structure) -> tuple[int, int, bool]:
        group = -1 if layer.group == layer.shape[1] else layer.group or 0
        return self._bits(layer), group, not layer.offsets

    def tensors(self, layer: SavedLayer) -> dict[str, Part]:
        structure = layer.structure
        bits, symmetric, columns = self._bits(structure), not structure.offsets, structure.shape[1]
        half = 1 << (bits - 1)
        scales = layer.per_group("scales").T  # groups x out
        zeros = np.full(scales.shape, half) if symmetric else layer.zero_points().T
        codes = layer.levels().astype(np.int64) + (half if symmetric else 0)
        return {
            "qweight": Part.of(packed(codes, bits).T, "I32"),
            "qzeros": Part.of(packed((zeros - 1) & ((1 << bits) - 1), bits), "I32"),
            "scales": Part.of(scales, "F16"),
            "g_idx": Part.of(np.arange(columns) // (columns // len(scales)), "I32"),
        }

    def settings(self, model: SavedModel) -> dict[str, Any]:
        bits, group, symmetric = self._settings(next(iter(model.layers.values())).structure)
        return {
            "bits": bits,
            "checkpoint_format": "gptq",
            "desc_act": False,
            "group_size": group,
            "quant_method": "gptq",
            "static_groups": True,
            "sym": symmetric,
            "true_sequential": True,
        }
