"""Decode the number types of checkpoints into numpy arrays, and back, and unpack integers of a few bits."""

from __future__ import annotations

from typing import Any

import numpy as np

SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of one number of each dtype, by its name in safetensors."""
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
}
SIGNIFICANT = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}
"""Significant bits of the float dtypes, the leading one included."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of FP4."""
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The values of NF4 [dettmers2023]."""

Array = np.ndarray[Any, np.dtype[Any]]


def is_float(dtype: str) -> bool:
    """Return True if the dtype is one of floating-point numbers."""
    return dtype in SIGNIFICANT


def decoded(raw: bytes, dtype: str) -> Array:
    """Return the numbers of a dtype as a flat array: floats as float32 (F64 as float64), integers as they are."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E5M2":
        return (np.frombuffer(raw, np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E4M3":
        return _E4M3[np.frombuffer(raw, np.uint8)]
    if dtype == "F8_E8M0":
        return np.ldexp(np.float32(1), np.frombuffer(raw, np.uint8).astype(np.int32) - 127)
    flat = np.frombuffer(raw, _NUMPY.get(dtype, "u1"))
    return flat.astype(np.float32) if dtype == "F16" else flat


def _e4m3() -> Array:
    """Return the 256 values of float8_e4m3fn."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, (code & 7) / 8
    size = np.where(exponent == 0, np.ldexp(mantissa, -6), np.ldexp(1 + mantissa, exponent - 7))
    size[(code & 127) == 127] = np.nan
    found: Array = np.where(code >= 128, -size, size).astype(np.float32)
    return found


_E4M3 = _e4m3()


def unpacked(packs: Array, bits: int, count: int) -> Array:
    """Return the first ``count`` integers of ``bits`` bits in each row of int32s, lowest bits first.

    Integers may reach over the end of an int32, as those of 3 bits do.

    Args:
        packs: rows x columns, int32.
        bits: the bits of one integer, 1 to 8.
        count: the integers of a row.
    """
    octets = np.ascontiguousarray(packs).view(np.uint8).reshape(len(packs), -1)
    if bits == 8:
        return octets[:, :count]
    if bits in (1, 2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return ((octets[:, :, None] >> shifts) & ((1 << bits) - 1)).reshape(len(packs), -1)[:, :count]
    flags = np.unpackbits(octets, axis=1, bitorder="little")[:, : count * bits].reshape(len(packs), count, bits)
    found: Array = (flags << np.arange(bits, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)
    return found


def encoded(array: Array, dtype: str) -> bytes:
    """Return the bytes of an array's numbers in a dtype, in row-major order: what :func:`decoded` reads.

    Floats are rounded to nearest, midpoints to even.

    Raises:
        OverflowError: an integer does not fit into the dtype.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype == "BF16":
        return _bfloat16(flat).astype("<u2").tobytes()
    if dtype == "F8_E4M3":
        return _float8(flat).tobytes()
    kind = np.dtype(_NUMPY.get(dtype, "u1"))
    if kind.kind in "iu" and flat.size and not np.array_equal(found := flat.astype(kind), flat):
        raise OverflowError(f"{flat[found != flat][0]} as {dtype}")
    with np.errstate(over="ignore"):
        return flat.astype(kind).tobytes()


def rounded_to(array: Array, dtype: str) -> Array:
    """Return floats rounded to a dtype (to nearest, midpoints to even), as :func:`decoded` returns them."""
    return decoded(encoded(array, dtype), dtype).reshape(array.shape)


def _bfloat16(values: Array) -> Array:
    """Return the bits of numbers that were rounded once to bfloat16. NaN stays NaN."""
    wide = values.astype(np.float64)
    bits = wide.astype(np.float32).view(np.uint32)
    exact = bits.view(np.float32).astype(np.float64)
    with np.errstate(invalid="ignore"):  # round to odd first, so that rounding twice is rounding once
        nearer = np.abs(exact) > np.abs(wide)
    bits = np.where(nearer, bits - 1, bits) | (exact != wide)
    found: Array = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(wide), np.uint16(0x7FC0), found)


def _float8(values: Array) -> Array:
    """Return the bits of numbers that were rounded to float8_e4m3fn. Numbers beyond 464 become NaN."""
    sizes, ends = np.abs(values.astype(np.float64)), _E4M3[:127].astype(np.float64)
    middles = (ends[:-1] + ends[1:]) / 2
    below, above = (np.searchsorted(middles, sizes, side=side) for side in ("left", "right"))  # differ at midpoints
    sizes = np.where(sizes <= 464, np.where(above % 2 == 0, above, below), 127)
    found: Array = (sizes.astype(np.uint8) | (np.signbit(values).astype(np.uint8) << 7)).astype(np.uint8)
    return found


def packed(codes: Array, bits: int) -> Array:
    """Return the integers of each row in int32s, lowest bits first: what :func:`unpacked` reads.

    Args:
        codes: rows x columns, each integer from 0 to 2^bits - 1.
        bits: the bits of one integer, 1 to 8.

    Raises:
        OverflowError: an integer needs more bits.
    """
    rows, columns = codes.shape
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= 1 << bits):
        raise OverflowError(f"integers from {codes.min()} to {codes.max()} in {bits} bits")
    octets = np.zeros((rows, 4 * -(-columns * bits // 32)), np.uint8)
    values = codes.astype(np.uint8)
    if bits == 8:
        octets[:, :columns] = values
    elif bits in (1, 2, 4):
        each = 8 // bits
        padded = np.zeros((rows, octets.shape[1] * each), np.uint8)
        padded[:, :columns] = values
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        octets = np.bitwise_or.reduce(padded.reshape(rows, -1, each) << shifts, axis=2)
    else:
        flags = (values[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
        flat = np.packbits(flags.reshape(rows, -1), axis=1, bitorder="little")
        octets[:, : flat.shape[1]] = flat
    return np.ascontiguousarray(octets).view("<i4")


def nibbles(octets: Array, *, high_first: bool = False) -> Array:
    """Return the two 4-bit integers of every byte along the last axis, the low one first unless said otherwise."""
    low, high = octets & 15, octets >> 4
    pair = (high, low) if high_first else (low, high)
    return np.stack(pair, axis=-1).reshape(*octets.shape[:-1], -1)


def half_ulp(values: Array, dtype: str) -> Array:
    """Return half the distance to the next number of the dtype, which is the largest error of rounding to a value."""
    bits = SIGNIFICANT[dtype]
    least = {"F16": -25, "BF16": -134, "F32": -150, "F8_E4M3": -10, "F8_E5M2": -17}.get(dtype, -1075)
    _, exponent = np.frexp(values)
    found: Array = np.ldexp(1.0, np.maximum(np.where(values == 0, least, exponent - bits - 1), least))
    return found
