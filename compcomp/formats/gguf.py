"""Read GGUF files: the header, and the block formats; those of superblocks with the package gguf where it is there."""

from __future__ import annotations

import importlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.numbers import E2M1, Array, decoded
from compcomp.formats.stored import Block, Contents, Layer, StoredGrid
from compcomp.formats.tensors import WHERE, Tensor

MAGIC = b"GGUF"


@dataclass(frozen=True)
class Type:
    """Describe a number format of GGUF: weights and bytes of a block, and the grid of its values."""

    name: str
    block: int
    nbytes: int
    grid: StoredGrid | None = None


TYPES = {
    0: Type("F32", 1, 4),
    1: Type("F16", 1, 2),
    2: Type("Q4_0", 32, 18, StoredGrid(4, 32)),
    3: Type("Q4_1", 32, 20, StoredGrid(4, 32, "minimum")),
    6: Type("Q5_0", 32, 22, StoredGrid(5, 32)),
    7: Type("Q5_1", 32, 24, StoredGrid(5, 32, "minimum")),
    8: Type("Q8_0", 32, 34, StoredGrid(8, 32)),
    10: Type("Q2_K", 256, 84, StoredGrid(2, 16, "minimum")),
    11: Type("Q3_K", 256, 110, StoredGrid(3, 16)),
    12: Type("Q4_K", 256, 144, StoredGrid(4, 32, "minimum")),
    13: Type("Q5_K", 256, 176, StoredGrid(5, 32, "minimum")),
    14: Type("Q6_K", 256, 210, StoredGrid(6, 16)),
    16: Type("IQ2_XXS", 256, 66),
    17: Type("IQ2_XS", 256, 74),
    18: Type("IQ3_XXS", 256, 98),
    19: Type("IQ1_S", 256, 50),
    20: Type("IQ4_NL", 32, 18, StoredGrid(4, 32, "IQ4_NL")),
    21: Type("IQ3_S", 256, 110),
    22: Type("IQ2_S", 256, 82),
    23: Type("IQ4_XS", 256, 136, StoredGrid(4, 32, "IQ4_NL")),
    24: Type("I8", 1, 1),
    25: Type("I16", 1, 2),
    26: Type("I32", 1, 4),
    27: Type("I64", 1, 8),
    28: Type("F64", 1, 8),
    29: Type("IQ1_M", 256, 56),
    30: Type("BF16", 1, 2),
    34: Type("TQ1_0", 256, 54, StoredGrid(2, 256)),
    35: Type("TQ2_0", 256, 66, StoredGrid(2, 256)),
    9: Type("Q8_1", 32, 40),
    15: Type("Q8_K", 256, 292),
    40: Type("NVFP4", 64, 36, StoredGrid(4, 16, "FP4")),
    41: Type("Q1_0", 128, 18, StoredGrid(1, 128)),
    39: Type("MXFP4", 32, 17, StoredGrid(4, 32, "FP4")),
}
"""The types by their numbers. Sizes are those of ggml."""
_MXFP4 = np.array([*E2M1, *(-value for value in E2M1)], np.float32)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_MOST = 1 << 26


class _Damaged(Exception):
    pass


@dataclass
class _Reader:
    file: BinaryIO

    def bytes(self, count: int) -> bytes:
        if not 0 <= count <= _MOST:
            raise _Damaged("a length that no header has")
        found = self.file.read(count)
        if len(found) < count:
            raise _Damaged("it ends within its header")
        return found

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.bytes(struct.calcsize("<" + kind)))[0]

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """Return a value of the metadata; of a list only its length."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            raise _Damaged(f"a value of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            self.bytes(count * struct.calcsize("<" + _SCALARS[inner]))
        else:
            if count > _MOST:
                raise _Damaged("a length that no header has")
            for _ in range(count):
                self.value(inner)
        return count


def contents(path: Path) -> Contents:
    """Return the layers of a GGUF file.

    Raises:
        InputError: The file is damaged or cut off, or of another version.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            about, listed, start = _header(_Reader(file))
    except _Damaged as error:
        raise InputError(f"{str(path)!r}, which was cut off or damaged: {error}", "a complete file", WHERE) from None
    except OSError as error:
        raise InputError(f"{str(path)!r} ({error.strerror})", "a file that can be read", WHERE) from None
    layers, other, problems, unread = [], 0, [], set()
    for name, shape, kind, offset in listed:
        count = math.prod(shape)
        if kind.block > 1 and (not shape or shape[-1] % kind.block):
            raise InputError(f"{name!r}, with rows of {shape[-1:]} in blocks of {kind.block}", "whole blocks", WHERE)
        tensor = Tensor(path, kind.name, shape, start + offset, count // kind.block * kind.nbytes)
        if tensor.start + tensor.nbytes > size:
            ends = tensor.start + tensor.nbytes
            raise InputError(f"{str(path)!r}, which was cut off: {size} of {ends} bytes", "a complete file", WHERE)
        if len(shape) < 2 or count == 0 or (kind.name.startswith("I") and not kind.name.startswith("IQ")):
            other += tensor.nbytes
            continue
        layer = _layer(name.removesuffix(".weight"), tensor, kind)
        layers.append(layer)
        if layer.read is None:
            unread.add(kind.name)
    if unread:
        names = ", ".join(sorted(unread))
        problems.append(f"weights of {names} are not read, only counted: pip install gguf reads them")
    layers.sort(key=lambda layer: layer.name)
    return Contents("GGUF", layers, other, problems, about)


def _header(reader: _Reader) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], Type, int]], int]:
    reader.bytes(len(MAGIC))
    version = reader.number("I")
    if version not in (2, 3):
        raise _Damaged(f"version {version}, and 2 and 3 are read")
    tensors, entries = reader.number("Q"), reader.number("Q")
    about = {}
    for _ in range(entries):
        key = reader.text()
        about[key] = reader.value(reader.number("I"))
    listed = []
    for _ in range(tensors):
        name, axes = reader.text(), reader.number("I")
        if axes > 8:
            raise _Damaged(f"a tensor of {axes} axes")
        shape = tuple(reader.number("Q") for _ in range(axes))[::-1]  # the last axis is written first
        number, offset = reader.number("I"), reader.number("Q")
        if number not in TYPES:
            raise _Damaged(f"{name!r} is of the unknown type {number}")
        listed.append((name, shape, TYPES[number], offset))
    alignment = about.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"an alignment of {alignment}")
    return about, listed, -(-reader.file.tell() // alignment) * alignment


def _layer(name: str, tensor: Tensor, kind: Type) -> Layer:
    rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    size = columns // kind.block * kind.nbytes
    decode = _DECODERS.get(kind.name) or _by_package(kind.name)
    if kind.block == 1:

        def read(first: int, last: int) -> Block:
            raw = tensor.raw(first * size, last * size)
            return Block(first, decoded(raw, kind.name).reshape(last - first, columns))

        return Layer(name, (rows, columns), f"GGUF {kind.name}", tensor.nbytes, read, kind.name)
    if decode is None:
        return Layer(name, (rows, columns), f"GGUF {kind.name}", tensor.nbytes, None, None, kind.grid)

    def of_blocks(first: int, last: int) -> Block:
        raw = np.frombuffer(tensor.raw(first * size, last * size), np.uint8).reshape(-1, kind.nbytes)
        values, levels = decode(raw)
        shape = last - first, columns
        return Block(first, values.reshape(shape), None if levels is None else levels.reshape(shape))

    return Layer(name, (rows, columns), f"GGUF {kind.name}", tensor.nbytes, of_blocks, None, kind.grid)


def _half(octets: Array) -> Array:
    found: Array = np.ascontiguousarray(octets).view(np.float16).astype(np.float32)
    return found


def _low_then_high(octets: Array) -> Array:
    return np.concatenate([octets & 15, octets >> 4], axis=1).astype(np.int16)


def _fifth(octets: Array) -> Array:
    return np.unpackbits(octets, axis=1, bitorder="little").astype(np.int16) << 4


def _signed(step: Array, levels: Array) -> tuple[Array, Array]:
    return step * levels, np.where(step < 0, -levels, levels)  # levels of the positive step


def _q4_0(raw: Array) -> tuple[Array, Array | None]:
    return _signed(_half(raw[:, :2]), _low_then_high(raw[:, 2:]) - 8)


def _q4_1(raw: Array) -> tuple[Array, Array | None]:
    levels = _low_then_high(raw[:, 4:])
    return _half(raw[:, :2]) * levels + _half(raw[:, 2:4]), levels


def _q5_0(raw: Array) -> tuple[Array, Array | None]:
    return _signed(_half(raw[:, :2]), (_low_then_high(raw[:, 6:]) | _fifth(raw[:, 2:6])) - 16)


def _q5_1(raw: Array) -> tuple[Array, Array | None]:
    levels = _low_then_high(raw[:, 8:]) | _fifth(raw[:, 4:8])
    return _half(raw[:, :2]) * levels + _half(raw[:, 2:4]), levels


def _q8_0(raw: Array) -> tuple[Array, Array | None]:
    levels = np.ascontiguousarray(raw[:, 2:]).view(np.int8).astype(np.int16)
    return _signed(_half(raw[:, :2]), levels)


def _mxfp4(raw: Array) -> tuple[Array, Array | None]:
    step = np.ldexp(np.float32(1), raw[:, :1].astype(np.int32) - 127)
    return step * _MXFP4[_low_then_high(raw[:, 1:])], None


_DECODERS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "MXFP4": _mxfp4}


def decoded_blocks(name: str, blocks: Array) -> Array:
    """Return the weights (float32, in order) of blocks of a type, one after another in an array of bytes."""
    (kind,) = (kind for kind in TYPES.values() if kind.name == name)
    return _DECODERS[name](blocks.reshape(-1, kind.nbytes))[0]


def _by_package(name: str) -> Any:
    """Return the dequantizer of the package gguf for a type, or None if it is not installed."""
    try:
        types, quants = importlib.import_module("gguf.constants"), importlib.import_module("gguf.quants")
        kind = types.GGMLQuantizationType[name]
        quants.dequantize(np.zeros((1, types.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ImportError, KeyError, NotImplementedError, AttributeError):
        return None
    return lambda raw: (quants.dequantize(raw, kind), None)
