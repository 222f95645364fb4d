"""Read the formats of bitsandbytes (NF4 and FP4 with one or two levels of scales, 8-bit integers), and write NF4."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.compressed_tensors import quantization
from compcomp.formats.numbers import NF4, Array, nibbles
from compcomp.formats.stored import Block, Claim, Layer, StoredGrid, total
from compcomp.formats.tensors import WHERE, Tensor, Tensors, needed
from compcomp.formats.writing import Part, SavedLayer, SavedModel, Structure, TensorWriter, shared_linear

FORMAT = "bitsandbytes"
BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
"""The block sizes of NF4."""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes that weights are read in, by their names in safetensors."""


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


class BitsAndBytes(TensorWriter):
    """Write NF4 with one level of scales, in float32.

    Two positions in the codebook share a byte, the first one in its high half.
    """

    name: ClassVar[str] = "bitsandbytes"
    needs: ClassVar[str] = "NF4 in groups of 64, 128 ... 4096, in Linear layers"

    def misfit(self, layer: Structure) -> str | None:
        if layer.basis:
            return f"its inputs are in another basis ({', '.join(layer.basis)})"
        if layer.branch:
            return f"it has a low-rank term of rank {layer.branch}"
        if layer.codes is None or not np.array_equal(_float32(layer.codes), _float32(NF4)):
            return "its weights are not in the codebook NF4"
        if layer.group not in BLOCKS:
            return f"its groups are not of {', '.join(map(str, BLOCKS))} weights"
        if layer.module != "Linear":
            return f"its module is {layer.module}, and it has Linear"
        return None

    def misfit_of_model(self, model: SavedModel) -> str | None:
        if reason := shared_linear(model):
            return reason
        for name, layer in model.layers.items():
            if layer.weight.dtype not in DTYPES:
                return f"{name} is in {layer.weight.dtype}, and it has {', '.join(DTYPES)}"
        return None

    def step_dtype(self, layer: SavedLayer) -> str:
        return "F32"

    def tensors(self, layer: SavedLayer) -> dict[str, Part]:
        places = layer.levels().astype(np.uint8).reshape(-1, 2)
        about = {
            "quant_type": "nf4",
            "blocksize": layer.structure.group,
            "dtype": DTYPES[layer.weight.dtype],
            "shape": list(layer.structure.shape),
        }
        state = np.frombuffer(json.dumps(about).encode(), np.uint8)
        return {
            "weight": Part.of((places[:, :1] << 4) | places[:, 1:], "U8"),
            "weight.absmax": Part.of(layer.per_group("scales").reshape(-1), "F32"),
            "weight.quant_map": Part.of(_float32(NF4), "F32"),
            "weight.quant_state.bitsandbytes__nf4": Part.of(state, "U8"),
        }

    def settings(self, model: SavedModel) -> dict[str, Any]:
        dtype = DTYPES[next(iter(model.layers.values())).weight.dtype]
        return {
            "_load_in_4bit": True,
            "_load_in_8bit": False,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": [
                name for name, kind in model.modules.items() if kind == "Linear" and name not in model.layers
            ],
            "llm_int8_threshold": 6.0,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "quant_method": FORMAT,
        }


def _float32(numbers: Any) -> Array:
    return np.array([float(number) for number in numbers], np.float32)
