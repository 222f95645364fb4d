"""Read the formats of compressed-tensors (packed integers, whole numbers, FP8, MXFP8, NVFP4, MXFP4), and write them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.formats import compressed_floats
from compcomp.formats.numbers import E2M1, Array, nibbles, packed, unpacked
from compcomp.formats.stored import Block, Claim, Layer, StoredGrid, total
from compcomp.formats.tensors import WHERE, Tensor, Tensors, needed
from compcomp.formats.writing import Part, SavedLayer, SavedModel, Structure, TensorWriter, shared_linear, uncommon

FORMAT = "compressed-tensors"
VERSION = "0.19.0"
"""The version of compressed-tensors whose form of ``quantization_config`` is written."""
MODULES = ("Linear", "Embedding")
"""The classes of modules whose weights compressed-tensors packs."""
_SIGNED_E2M1 = np.array([*E2M1, *(-value for value in E2M1)], np.float32)


def take(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> list[Layer]:
    """Remove the layers of this format from the tensors, and return them.

    Raises:
        InputError: A layer's tensors do not fit together, or it is in one of the old formats of sparse weights.
    """
    prefixes = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    prefixes += [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.dtype in ("I8", "F8_E4M3") and f"{name}_scale" in tensors
    ]
    if odd := next((name for name in tensors if name.endswith(".bitmask")), None):
        raise InputError(f"{odd!r}, of a format that compressed-tensors no longer writes", "dense or packed", WHERE)
    found = []
    for prefix in sorted(prefixes):
        layer = _layer(tensors, prefix, claim_of(prefix, config))
        for name in [name for name in tensors if name.startswith(f"{prefix}.weight")]:
            del tensors[name]
        found.append(layer)
    return found


def _layer(tensors: Tensors, prefix: str, claim: Claim | None) -> Layer:
    size = total(tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.weight"))
    packed = tensors.get(f"{prefix}.weight_packed")
    if packed is None:
        return _whole(tensors, prefix, size, claim)
    if packed.dtype == "U8":
        return _fp4(tensors, prefix, size, claim)
    scale, sizes = needed(tensors, prefix, "weight_scale", "weight_shape")
    rows, columns = (int(side) for side in sizes.array().reshape(-1)[:2])
    bits = 32 * packed.shape[1] // max(1, columns)
    if (
        packed.dtype != "I32"
        or packed.shape[0] != rows
        or not 1 <= bits <= 8
        or -(-columns * bits // 32) != packed.shape[1]
    ):
        raise _misfit(prefix, packed, (rows, columns))
    zero = tensors.get(f"{prefix}.weight_zero_point")
    zeros = None if zero is None else _zeros(zero, bits, rows)
    half = 1 << (bits - 1)

    def levels(first: int, last: int) -> Array:
        return unpacked(packed.rows(first, last), bits, columns).astype(np.int16) - half

    return _integers(tensors, prefix, (rows, columns), size, scale, bits, zeros, levels, claim, "pack-quantized")


def _whole(tensors: Tensors, prefix: str, size: int, claim: Claim | None) -> Layer:
    weight, scale = needed(tensors, prefix, "weight", "weight_scale")
    rows, columns = weight.shape
    if weight.dtype == "I8":
        zero = tensors.get(f"{prefix}.weight_zero_point")
        zeros = None if zero is None else zero.array().reshape(rows, -1).astype(np.int16)
        bits = 8 if claim is None or claim.bits is None else claim.bits

        def levels(first: int, last: int) -> Array:
            return weight.rows(first, last).astype(np.int16)

        return _integers(tensors, prefix, (rows, columns), size, scale, bits, zeros, levels, claim, "int-quantized")
    steps = _steps(scale, rows)

    def read(first: int, last: int) -> Block:
        return Block(first, weight.rows(first, last) * _spread(steps[first:last], columns, prefix))

    grid = StoredGrid(8, _group(steps, columns), "FP8")
    name = "mxfp8-quantized" if scale.dtype == "U8" else "float-quantized"
    return Layer(prefix, (rows, columns), f"{FORMAT} {name}", size, read, None, grid, claim)


def _fp4(tensors: Tensors, prefix: str, size: int, claim: Claim | None) -> Layer:
    packed, scale = needed(tensors, prefix, "weight_packed", "weight_scale")
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    whole = tensors.get(f"{prefix}.weight_global_scale")
    steps = _steps(scale, rows)
    if whole is not None:
        steps = steps / float(whole.array().reshape(-1)[0])

    def read(first: int, last: int) -> Block:
        values = _SIGNED_E2M1[nibbles(packed.rows(first, last))]
        return Block(first, values * _spread(steps[first:last], columns, prefix))

    name = "mxfp4-pack-quantized" if whole is None else "nvfp4-pack-quantized"
    grid = StoredGrid(4, _group(steps, columns), "FP4")
    return Layer(prefix, (rows, columns), f"{FORMAT} {name}", size, read, None, grid, claim)


def _integers(
    tensors: Tensors,
    prefix: str,
    shape: tuple[int, int],
    size: int,
    scale: Tensor,
    bits: int,
    zeros: Array | None,
    levels: Any,
    claim: Claim | None,
    name: str,
) -> Layer:
    rows, columns = shape
    steps = _steps(scale, rows)
    order = tensors.get(f"{prefix}.weight_g_idx")
    groups = None if order is None else order.array().astype(np.int64)
    if groups is not None and not (int(groups.min()) >= 0 and int(groups.max()) < steps.shape[1]):
        groups = None  # compressed-tensors writes -1 for columns in their own order

    def read(first: int, last: int) -> Block:
        found = levels(first, last)
        if zeros is not None:
            found = found - _spread(zeros[first:last], columns, prefix, groups)
        return Block(first, found * _spread(steps[first:last], columns, prefix, groups).astype(np.float32), found)

    in_order = groups is None or bool((np.diff(groups) >= 0).all())
    kind = "integers" if zeros is None else "zero point"
    grid = StoredGrid(bits, _group(steps, columns) if in_order else 0, kind)
    return Layer(prefix, shape, f"{FORMAT} {name}", size, read, None, grid, claim)


def _zeros(zero: Tensor, bits: int, rows: int) -> Array:
    """Return zero points, rows x groups, which are packed along the rows."""
    if zero.dtype == "I8":
        return zero.array().reshape(rows, -1).astype(np.int16)
    found: Array = unpacked(np.ascontiguousarray(zero.array().T), bits, rows).T.astype(np.int16) - (1 << (bits - 1))
    return found


def _steps(scale: Tensor, rows: int) -> Array:
    """Return the steps as rows x groups; one step for the whole tensor is repeated."""
    found = scale.array()
    if scale.dtype == "U8":  # exponents of two
        found = np.ldexp(np.float32(1), found.astype(np.int32) - 127)
    if found.size == 1:
        return np.broadcast_to(found.reshape(1, 1), (rows, 1))
    if found.size % rows:
        raise InputError(f"a scale of shape {list(found.shape)} for {rows} rows", "one for each row or group", WHERE)
    return found.reshape(rows, -1)


def _spread(parts: Array, columns: int, prefix: str, groups: Array | None = None) -> Array:
    """Return one number for each weight from one for each group."""
    if groups is not None:
        return parts[:, groups]
    if columns % parts.shape[1]:
        raise InputError(f"{prefix!r} with {parts.shape[1]} groups in {columns} columns", "groups of one size", WHERE)
    return np.repeat(parts, columns // parts.shape[1], axis=1)


def _group(steps: Array, columns: int) -> int:
    return columns // max(1, int(steps.shape[1]))


def _misfit(prefix: str, packed: Tensor, shape: tuple[int, int]) -> InputError:
    given = f"{prefix!r}, whose packed tensor {list(packed.shape)} does not hold {shape[0]} x {shape[1]} weights"
    return InputError(given, "whole numbers of bits a weight, from 1 to 8", WHERE)


def claim_of(name: str, config: Mapping[str, Any]) -> Claim | None:
    """Return what config.json claims of the layer of this name, or None if it claims nothing."""
    settings = quantization(config)
    groups = settings.get("config_groups")
    sparse = settings.get("sparsity_config")
    pattern = _pattern(sparse) if isinstance(sparse, dict) and not _meets(name, sparse.get("ignore")) else None
    if isinstance(groups, dict) and not _meets(name, settings.get("ignore")):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict) and _meets(name, group.get("targets"), classes=True):
                size = weights.get("group_size")
                if weights.get("strategy") in ("channel", "tensor"):
                    size = -1
                bits = weights.get("num_bits")
                return Claim("config.json", _whole_number(bits), _whole_number(size), pattern)
    return None if pattern is None else Claim("config.json", pattern=pattern)


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of config.json that describes compression, {} if it has none."""
    for key in ("quantization_config", "compression_config"):
        if isinstance(config.get(key), dict):
            found: Mapping[str, Any] = config[key]
            return found
    return {}


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _pattern(sparse: Mapping[str, Any]) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+):(\d+)", str(sparse.get("sparsity_structure", "")))
    return (int(match[1]), int(match[2])) if match and int(match[2]) else None


def _meets(name: str, patterns: Any, *, classes: bool = False) -> bool:
    """Return True if one of the patterns names the layer: its name, ``re:`` and a pattern, or (targets) a class."""
    for pattern in patterns if isinstance(patterns, list) else []:
        if not isinstance(pattern, str):
            continue
        if pattern.startswith("re:"):
            try:
                if re.match(pattern[3:], name):
                    return True
            except re.error:
                continue
        elif pattern == name or (classes and pattern == "Linear") or fnmatch.fnmatchcase(name, pattern):
            return True
    return False


class CompressedTensors(TensorWriter):
    """Write ``pack-quantized``: integers of 1 to 8 bits, with a step for each group, row or matrix; or FP8 and FP4.

    A symmetric level k of b bits is stored as k + 2^(b-1). With a zero point z, the level k (from 0) and z are stored
    as they are, and read as k - 2^(b-1) and z - 2^(b-1). Steps are stored in the model's dtype, to which transformers
    rounds them at any rate.

    Levels of embeddings are stored as ``int-quantized``, 8 bits each, since transformers does not load packed
    embeddings. An output head that shares the weight has steps of its own. Layers with a codebook are written by
    :mod:`compcomp.formats.compressed_floats`.
    """

    name: ClassVar[str] = "compressed-tensors"
    needs: ClassVar[str] = "integers of 1 to 8 bits or FP8, a step for each group of a row, row or matrix; or MXFP4"

    def misfit(self, layer: Structure) -> str | None:
        if reason := uncommon(layer):
            return reason
        if not layer.on_grid:
            return "its weights lie on no grid, and compressed-tensors no longer writes sparse weights alone"
        if layer.codes is None and _bits(layer) > 8:
            return f"its levels take {_bits(layer)} bits, and it has at most 8"
        if layer.module not in MODULES:
            return f"its module is {layer.module}, and it has {' and '.join(MODULES)}"
        return None if layer.codes is None else compressed_floats.misfit(layer)

    def misfit_of_model(self, model: SavedModel) -> str | None:
        return shared_linear(model)

    def step_dtype(self, layer: SavedLayer) -> str:
        """Return the dtype of the model, or one that holds powers of two exactly, as MXFP4 and NVFP4 do."""
        return "F32" if _Scheme.of(layer.structure).step_dtype else super().step_dtype(layer)

    def tensors(self, layer: SavedLayer) -> dict[str, Part]:
        if layer.structure.codes is not None:
            return compressed_floats.tensors(layer, self.step_dtype(layer))
        structure, found = layer.structure, self._steps(layer)
        bits, symmetric = _bits(structure), not structure.offsets
        if structure.module == "Embedding":
            levels = layer.levels().astype(np.int16) - (0 if symmetric else 1 << (bits - 1))
            return {"weight": Part.of(levels, "I8"), **found}
        codes = layer.levels().astype(np.int16) + (1 << (bits - 1) if symmetric else 0)
        return {
            "weight_packed": Part.of(packed(codes, bits), "I32"),
            "weight_shape": Part.of(np.array(structure.shape), "I64"),
            **found,
        }

    def _steps(self, layer: SavedLayer) -> dict[str, Part]:
        """Return the tensors with a number for each group."""
        structure, scales = layer.structure, layer.per_group("scales")
        bits, shape = _bits(structure), (1,) if structure.group == 0 else scales.shape
        found = {"weight_scale": Part.of(scales.reshape(shape), self.step_dtype(layer))}
        if structure.offsets and structure.group and structure.module != "Embedding":
            found["weight_zero_point"] = Part.of(packed(layer.zero_points().T, bits).T, "I32")
        elif structure.offsets:
            found["weight_zero_point"] = Part.of(layer.zero_points().reshape(shape) - (1 << (bits - 1)), "I8")
        return found

    def shared(self, model: SavedModel) -> Iterator[tuple[str, Part]]:
        for name, owner in model.tied.items():
            if owner in model.layers:
                for own, part in self._steps(model.layers[owner]).items():
                    yield f"{name}.{own}", part

    def settings(self, model: SavedModel) -> dict[str, Any]:
        schemes: dict[_Scheme, list[str]] = {}
        for name, layer in model.layers.items():
            heads = [head for head, owner in model.tied.items() if owner == name]
            schemes.setdefault(_Scheme.of(layer.structure), []).extend([name, *heads])
        alone = len(schemes) == 1 and {layer.structure.module for layer in model.layers.values()} == {"Linear"}
        left = [name for name, kind in model.modules.items() if kind == "Linear" and name not in model.layers]
        formats = {scheme.format for scheme in schemes}
        return {
            "config_groups": {
                f"group_{number}": scheme.to_json(["Linear"] if alone else names)
                for number, (scheme, names) in enumerate(schemes.items())
            },
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "global_compression_ratio": None,
            "ignore": left if alone else [],
            "kv_cache_scheme": None,
            "quant_method": FORMAT,
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": VERSION,
        }


def _bits(layer: Structure) -> int:
    """Return the bits of a two's complement that holds the levels, or of the levels counted from 0."""
    assert layer.lowest is not None and layer.highest is not None
    if layer.offsets:
        return max(1, layer.highest.bit_length())
    return 1 + max(layer.highest, -1 - layer.lowest).bit_length()


@dataclass(frozen=True)
class _Scheme:
    """Hold the settings that layers of one entry of ``config_groups`` have in common."""

    format: str
    bits: int
    group: int | None
    strategy: str
    symmetric: bool
    type: str = "int"
    step_dtype: str | None = None

    @classmethod
    def of(cls, layer: Structure) -> _Scheme:
        group = None if layer.group in (0, layer.shape[1]) else layer.group
        strategy = "group" if group else "channel" if layer.group else "tensor"
        if layer.codes is not None:
            name = compressed_floats.format_of(layer)
            if name == compressed_floats.EIGHT:
                return cls(name, 8, group, strategy, True, "float")
            strategy = "tensor_group" if name == compressed_floats.NVFP4 else "group"
            block, dtype = compressed_floats.BLOCKS[name], compressed_floats.STEPS[name]
            return cls(name, 4, block, strategy, True, "float", dtype)
        name = "int-quantized" if layer.module == "Embedding" else "pack-quantized"
        return cls(name, _bits(layer), group, strategy, not layer.offsets)

    def to_json(self, targets: list[str]) -> dict[str, Any]:
        """Return the entry of ``config_groups``."""
        weights: dict[str, Any] = {
            "actorder": None,
            "block_structure": None,
            "dynamic": False,
            "group_size": self.group,
            "num_bits": self.bits,
            "observer": "memoryless_minmax",
            "observer_kwargs": {},
            "scale_dtype": self.step_dtype,
            "strategy": self.strategy,
            "symmetric": self.symmetric,
            "type": self.type,
            "zp_dtype": None if self.symmetric else "torch.int8",
        }
        none = {"input_activations": None, "output_activations": None}
        return {"format": self.format, **none, "targets": targets, "weights": weights}
