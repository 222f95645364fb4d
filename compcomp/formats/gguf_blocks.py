"""Pack levels and steps into the blocks of GGUF: the same integers and the same steps, nothing is quantized again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.gguf import decoded_blocks
from compcomp.formats.numbers import E2M1, Array, rounded_to
from compcomp.formats.writing import SavedLayer, Structure

BLOCK = 32
"""The weights of a block."""
FLOATS = ("F32", "F16", "BF16")
"""The types that weights without blocks are stored as: the dtypes of safetensors with these names."""


@dataclass(frozen=True)
class _Kind:
    """Describe a type of blocks whose values are ``level * step``, or ``minimum + level * step``."""

    name: str
    lowest: int
    highest: int


_INTEGERS = (_Kind("Q4_0", -8, 7), _Kind("Q5_0", -16, 15), _Kind("Q8_0", -128, 127))
_MINIMA = (_Kind("Q4_1", 0, 15), _Kind("Q5_1", 0, 31))
_CODES = frozenset({*E2M1, *(-value for value in E2M1)})


def misfit(layer: Structure) -> str | None:
    """Return why a layer does not fit blocks of GGUF, as one line without its name; None if it fits."""
    if not layer.on_grid:
        return "its weights lie on no grid (the format gguf-dense stores such weights as they are)"
    if layer.basis:
        return f"its inputs are in another basis ({', '.join(layer.basis)})"
    if layer.branch:
        return f"it has a low-rank term of rank {layer.branch}"
    if layer.group is None:
        return "its steps are not shared by runs of weights of one row"
    if (layer.group or layer.shape[1]) % BLOCK or layer.shape[1] % BLOCK:
        of = f"groups of {layer.group}" if layer.group else f"rows of {layer.shape[1]}"
        return f"its {of} are no whole blocks of {BLOCK} weights"
    if layer.offsets == "minimum" and layer.masked:
        return "its mask drops weights to zero, which is no value of its grid"
    if layer.codes is not None and set(map(float, layer.codes)) != _CODES:
        return "its values are those of a codebook other than FP4 (E2M1)"
    if _kind(layer) is None:
        given = f"from {_ends(layer)[0]} to {_ends(layer)[1]}"
        most = _MINIMA[-1].highest if layer.offsets == "minimum" else _INTEGERS[-1].highest
        return f"its levels go {given}, and those of GGUF end at {most}"
    return None


def type_of(layer: Structure) -> str:
    """Return the type of GGUF that holds a layer that fits: the one with the fewest bits."""
    found = _kind(layer)
    assert found is not None
    return found


def _kind(layer: Structure) -> str | None:
    if layer.codes is not None:
        return "MXFP4"
    low, high = _ends(layer)
    kinds = _MINIMA if layer.offsets == "minimum" else _INTEGERS
    return next((kind.name for kind in kinds if kind.lowest <= low and high <= kind.highest), None)


def _ends(layer: Structure) -> tuple[int, int]:
    """Return the least and the largest integer to store. With zero points, these are subtracted first."""
    assert layer.lowest is not None and layer.highest is not None
    return (-layer.highest if layer.offsets == "zero point" else layer.lowest), layer.highest


def step_dtype(layer: Structure) -> str:
    """Return the narrowest dtype that has the steps of all blocks: powers of two for FP4 go beyond those of float16."""
    return "F32" if layer.codes is not None else "F16"


def blocks_of(layer: SavedLayer, *, exact: bool = True) -> Array:
    """Return the blocks of a layer as bytes, out x the bytes of a row.

    A step that belongs to several blocks is written in each. A zero point is subtracted from the levels.

    Args:
        layer: a layer that fits.
        exact: if False, steps and minima that are no float16 are rounded to nearest.

    Raises:
        InputError: A step or a minimum is not one of the block's dtype, or lies beyond it. The blocks do not give the
            saved weight (with ``exact``).
    """
    structure = layer.structure
    name, levels = type_of(structure), layer.levels()
    if structure.offsets == "zero point":
        levels = levels.astype(np.int32) - layer.spread(layer.zero_points())
    levels, steps = levels.reshape(-1, BLOCK), _each_block(layer, "scales")
    if name == "MXFP4":
        found = _mxfp4(layer, levels, steps)
    else:
        shared = [_half(layer, steps, "step", exact)]
        if structure.offsets == "minimum":
            shared.append(_half(layer, _each_block(layer, "offsets"), "minimum", exact))
        found = np.concatenate([*shared, _PACKERS[name](levels)], axis=1)
    found = found.reshape(structure.shape[0], -1)
    if exact:
        _check(layer, found)
    return found


def weight_of(layer: SavedLayer, blocks: Array) -> Array:
    """Return the weight (out x in, float32) that a reader of GGUF computes from the blocks of a layer."""
    return decoded_blocks(type_of(layer.structure), blocks).reshape(layer.structure.shape)


def _check(layer: SavedLayer, blocks: Array) -> None:
    """Raise InputError unless the blocks give the saved weight, after rounding to the dtype that it is saved in."""
    saved = layer.weight.array()
    differ = rounded_to(weight_of(layer, blocks), layer.weight.dtype) != saved
    if differ.any():
        row, column = map(int, np.argwhere(differ)[0])
        given = f"layer {layer.name!r}, whose saved weight at {row}, {column} is not its level times its step"
        raise InputError(given, "a saved weight that its components give", "export")


def _each_block(layer: SavedLayer, part: str) -> Array:
    """Return the scale or the offset of each block, blocks x 1."""
    (rows, columns), found = layer.structure.shape, layer.per_group(part)
    repeated = np.repeat(found, columns // BLOCK // found.shape[1], 1)
    return np.array(np.broadcast_to(repeated, (rows, columns // BLOCK)), order="C").reshape(-1, 1)


def _half(layer: SavedLayer, numbers: Array, what: str, exact: bool) -> Array:
    """Return the bytes of numbers as float16, blocks x 2."""
    with np.errstate(over="ignore"):
        half = numbers.astype("<f2")
    kept = half.astype(np.float32)
    wrong = kept != numbers if exact else ~np.isfinite(kept) | ((kept == 0) & (numbers != 0))
    if wrong.any():
        number = float(numbers[wrong][0])
        given = f"layer {layer.name!r} with the {what} {number:.9g}"
        holds = f"a {what} that float16 holds"
        if exact:
            holds += " exactly: scales='float16' of a technique, or the format gguf-rounded, which changes the model"
        raise InputError(given, holds, "export")
    return half.view(np.uint8)


def _mxfp4(layer: SavedLayer, places: Array, steps: Array) -> Array:
    """Return the exponents and the codes, from positions among the values of FP4."""
    assert layer.structure.codes is not None
    share, exponent = np.frexp(steps)
    wrong = (steps != 0) & ((share != 0.5) | (exponent < -126) | (exponent > 128))
    if wrong.any():
        given = f"layer {layer.name!r} with the step {float(steps[wrong][0]):.9g}"
        raise InputError(given, "a power of two from 2^-127 to 2^127, as MXFP4 stores it", "export")
    values = [float(code) for code in layer.structure.codes]
    nibbles = np.array([E2M1.index(abs(value)) + 8 * (value < 0) for value in values], np.uint8)
    octets = np.where(steps == 0, 0, exponent + 126).astype(np.uint8)
    return np.concatenate([octets, _halves(np.where(steps == 0, 0, nibbles[places]))], axis=1)


def _halves(codes: Array) -> Array:
    """Return two integers of 4 bits in each byte: those of the first half of a block are the low ones."""
    low, high = np.split(codes.astype(np.uint8) & 15, 2, axis=1)
    found: Array = low | high << 4
    return found


def _fifths(codes: Array) -> Array:
    """Return the fifth bits of the integers of a block in 4 bytes, then the others as :func:`_halves`."""
    return np.concatenate([np.packbits((codes >> 4) & 1, axis=1, bitorder="little"), _halves(codes)], axis=1)


def _octets(levels: Array) -> Array:
    return levels.astype(np.int8).view(np.uint8)


_PACKERS = {
    "Q4_0": lambda levels: _halves(levels.astype(np.int16) + 8),
    "Q4_1": _halves,
    "Q5_0": lambda levels: _fifths(levels.astype(np.int16) + 16),
    "Q5_1": _fifths,
    "Q8_0": _octets,
}
