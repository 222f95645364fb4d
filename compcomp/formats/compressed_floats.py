"""Write the codebooks of FP8 and FP4 as compressed-tensors stores them.

The steps of NVFP4 are numbers of FP8 divided by one number of the matrix. vLLM takes one such number for all matrices
that it multiplies by at once, such as those of queries and keys. So it is the same, 256, for all matrices with steps
from 2^-17 to 1.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.numbers import E2M1, Array, decoded
from compcomp.formats.writing import Part, SavedLayer, Structure

EIGHT, MXFP4, NVFP4 = "float-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized"
BLOCKS = {MXFP4: 32, NVFP4: 16}
"""The weights of a block, which share a step. A step of a larger group is written several times."""
STEPS = {MXFP4: "torch.uint8", NVFP4: "torch.float8_e4m3fn"}
"""The dtype of the steps of blocks, by its name in config.json."""
_E2M1 = frozenset(Fraction(sign * value) for value in E2M1 for sign in (-1, 1))
_E4M3 = frozenset(Fraction(float(value)) for value in decoded(bytes(range(256)), "F8_E4M3") if np.isfinite(value))


def format_of(layer: Structure) -> str:
    """Return the name of the format that holds a layer with a codebook, if :func:`misfit` has nothing against it.

    Embeddings of FP4 are stored as FP8, which has its values, since transformers does not load packed embeddings.
    """
    if frozenset(layer.codes or ()) == _E4M3 or layer.module != "Linear":
        return EIGHT
    return NVFP4 if _run(layer) % BLOCKS[MXFP4] else MXFP4


def misfit(layer: Structure) -> str | None:
    """Return why a layer with a codebook cannot be written, as one line without its name; None if it can."""
    codes = frozenset(layer.codes or ())
    if codes not in (_E2M1, _E4M3):
        return "its values are those of a codebook other than FP8 (E4M3) and FP4 (E2M1)"
    if format_of(layer) == EIGHT:
        return None
    if not layer.powers_of_two:
        return "its steps of FP4 are no powers of two (MXFP4), and no FP8 numbers under one scale of the matrix (NVFP4)"
    if _run(layer) % BLOCKS[NVFP4]:
        return f"{_run(layer)} weights share a step of FP4, which are no whole blocks of 32 (MXFP4) or 16 (NVFP4)"
    return None


def _run(layer: Structure) -> int:
    """Return the number of consecutive weights of a row that share a step."""
    return layer.group or layer.shape[1]


def tensors(layer: SavedLayer, step_dtype: str) -> dict[str, Part]:
    """Return the tensors of a layer that fits, by the names that follow the name of its module.

    Args:
        layer: the layer.
        step_dtype: the dtype of steps in the format float-quantized.

    Raises:
        InputError: A step lies beyond what the format holds.
    """
    name, scales = format_of(layer.structure), layer.per_group("scales")
    codes = np.array([float(code) for code in layer.structure.codes or ()], np.float32)
    values = np.where(layer.spread(scales) == 0, np.float32(0), codes[layer.levels()])
    if name == EIGHT:
        shape = (1,) if layer.structure.group == 0 else scales.shape
        return {"weight": Part.of(values, "F8_E4M3"), "weight_scale": Part.of(scales.reshape(shape), step_dtype)}
    steps = _octets(layer) if name == MXFP4 else _under_one_scale(layer)
    return {"weight_packed": Part.of(_pairs(values), "U8"), **steps}


def _pairs(values: Array) -> Array:
    """Return numbers of FP4 in 4 bits each, the first of two neighbours in the low ones."""
    places = np.searchsorted(np.array(E2M1, np.float32), np.abs(values)).astype(np.uint8) | (values < 0) * np.uint8(8)
    return places[:, ::2] | places[:, 1::2] << 4


def _exponents(layer: SavedLayer) -> tuple[Array, Array]:
    """Return the exponents of two of the steps of all blocks, out x blocks, and which of the steps are not zero."""
    (rows, columns), scales = layer.structure.shape, layer.per_group("scales")
    count = columns // BLOCKS[format_of(layer.structure)]
    scales = np.broadcast_to(np.repeat(scales, count // scales.shape[1], axis=1), (rows, count))
    return np.frexp(scales)[1].astype(np.int32) - 1, scales != 0


def _octets(layer: SavedLayer) -> dict[str, Part]:
    """Return the steps of all blocks as E8M0, out x blocks. A step zero is stored as the least one."""
    exponents, some = _exponents(layer)
    if (beyond := some & (np.abs(exponents) > 127)).any():
        given = f"layer {layer.name} with the step 2^{exponents[beyond][0]}"
        raise InputError(given, "steps from 2^-127 to 2^127, as MXFP4 stores them", "export")
    return {"weight_scale": Part.of(np.where(some, exponents + 127, 0), "U8")}


def _under_one_scale(layer: SavedLayer) -> dict[str, Part]:
    """Return the steps of all blocks, out x blocks, as numbers of FP8 and one number to divide all of them by."""
    exponents, some = _exponents(layer)
    low, high = (int(exponents[some].min()), int(exponents[some].max())) if some.any() else (0, 0)
    whole = 8 if low >= -17 and high <= 0 else min(8 - high, 127)  # one number where possible: see the module
    if low + whole < -9:
        given = f"layer {layer.name} with steps from 2^{low} to 2^{high}"
        raise InputError(given, "steps of a matrix over 17 powers of two, as NVFP4 stores them", "export")
    steps = np.where(some, np.ldexp(1.0, exponents + whole), 0)
    return {"weight_scale": Part.of(steps, "F8_E4M3"), "weight_global_scale": Part.of(np.array([2.0**whole]), "F32")}
