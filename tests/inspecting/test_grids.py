"""Grids in floats: found by kind, bits and group size through the rounding of every dtype; none on dense weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compcomp.formats.numbers import E2M1, NF4, Array, half_ulp
from compcomp.inspecting.grids import SLACK, Kind, fitted, guessed, misfits

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def gaussian(seed: int, rows: int = 32, columns: int = 256) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02


def stored(values: Array, dtype: str) -> Array:
    return torch.from_numpy(values).to(DTYPES[dtype]).double().numpy()


def on_grid(weights: Array, group: int, kind: str, bits: int, scale_dtype: str = "F32") -> Array:
    """Return round to nearest on a grid of FACTS' table, exactly k times a step in the dtype of scales."""
    parts = weights.reshape(-1, group)
    largest = np.abs(parts).max(axis=1, keepdims=True)
    h = 2 ** (bits - 1)
    if kind == "zero point":
        low, high = np.minimum(parts.min(1, keepdims=True), 0), np.maximum(parts.max(1, keepdims=True), 0)
        step = stored((high - low) / (2 * h - 1), scale_dtype)
        zero = np.rint(-low / step)
        return ((np.clip(np.rint(parts / step) + zero, 0, 2 * h - 1) - zero) * step).reshape(weights.shape)
    if kind == "minimum":
        low = stored(parts.min(1, keepdims=True), scale_dtype)
        step = stored((parts.max(1, keepdims=True) - low) / (2 * h - 1), scale_dtype)
        return (np.clip(np.rint((parts - low) / step), 0, 2 * h - 1) * step + low).reshape(weights.shape)
    if kind == "signed":
        extreme = np.take_along_axis(parts, np.abs(parts).argmax(1)[:, None], 1)
        step = stored(extreme / -h, scale_dtype)
        return (np.clip(np.rint(parts / step), -h, h - 1) * step).reshape(weights.shape)
    divisor, low = {"narrow": (h - 1, 1 - h), "full range": (h - 0.5, -h), "clipped": (h, -h)}[kind]
    step = stored(largest / divisor, scale_dtype)
    return (np.clip(np.rint(parts / step), low, h - 1) * step).reshape(weights.shape)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("narrow", "integers"),
        ("full range", "integers"),
        ("clipped", "integers"),
        ("signed", "integers"),
        ("zero point", "zero point"),
        ("minimum", "minimum"),
    ],
)
@pytest.mark.parametrize("group", [32, 256])
def test_four_bits_are_found(dtype: str, kind: str, name: str, group: int) -> None:
    weights = stored(on_grid(gaussian(1), group, kind, 4), dtype)
    found = guessed(weights, dtype)
    assert found is not None
    assert (found.kind, found.group) == (Kind(name, 4), group)
    groups = weights.reshape(-1, group)
    assert fitted(groups, found.kind, dtype).fits.all()


@pytest.mark.parametrize(("bits", "dtype"), [(2, "BF16"), (3, "BF16"), (5, "F16"), (8, "F32"), (8, "F16"), (8, "BF16")])
def test_other_widths_are_found(bits: int, dtype: str) -> None:
    weights = stored(on_grid(gaussian(2), 128, "narrow", bits), dtype)
    found = guessed(weights, dtype)
    assert found is not None
    assert (found.kind, found.group) == (Kind("integers", bits), 128)
    assert fitted(weights.reshape(-1, 128), found.kind, dtype).fits.mean() > 0.99


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_codebooks_are_found(dtype: str) -> None:
    for name, codes in (("NF4", np.array(NF4)), ("FP4", np.array([*E2M1, *(-c for c in E2M1)]))):
        parts = gaussian(3).reshape(-1, 64)
        step = np.abs(parts).max(1, keepdims=True) / np.abs(codes).max()
        values = codes[np.abs(parts[..., None] / step[..., None] - codes).argmin(-1)] * step
        found = guessed(stored(values.reshape(32, 256), dtype), dtype)
        assert found is not None and (found.kind, found.group) == (Kind(name, 4), 64)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("seed", range(3))
def test_dense_weights_lie_on_no_grid(dtype: str, seed: int) -> None:
    weights = stored(gaussian(seed), dtype)
    assert guessed(weights, dtype) is None
    half = weights * (np.random.default_rng(seed).random(weights.shape) < 0.5)  # pruned, too
    assert guessed(half, dtype) is None


def test_exact_and_rounded_are_distinguished() -> None:
    exact = on_grid(gaussian(4), 64, "narrow", 4, "BF16")
    rounded = on_grid(gaussian(4), 64, "narrow", 4, "F32")
    kind = Kind("integers", 4)
    assert fitted(stored(exact, "F32").reshape(-1, 64), kind, "F32").exact.all()
    assert fitted(stored(rounded, "BF16").reshape(-1, 64), kind, "BF16").exact.mean() < 0.5


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_weight_off_the_grid_is_found_in_its_place(dtype: str) -> None:
    weights = stored(on_grid(gaussian(5), 64, "full range", 4), dtype)
    found = guessed(weights, dtype)
    assert found is not None
    for place in (0, 17, 63):
        group = weights.reshape(-1, 64)[7].copy()
        for value in (1.37, 0.4):  # also where it becomes the largest
            group[place] = stored(np.array(value * np.abs(group).max()), dtype)
            step = np.abs(weights.reshape(-1, 64)[7]).max()
            assert not fitted(group[None], found.kind, dtype).fits[0], (place, value, step)
            assert np.flatnonzero(misfits(group, found)).tolist() == [place]


def test_half_a_unit_is_the_largest_error_of_rounding() -> None:
    values = np.concatenate([gaussian(6).ravel(), [2.0**-140, 1.5 * 2.0**-25, 1.0, 2.0]])
    for dtype, kind in DTYPES.items():
        kept = values if dtype != "F16" else values[np.abs(values) > 2.0**-26]
        error = np.abs(torch.from_numpy(kept).to(kind).double().numpy() - kept)
        assert (error <= half_ulp(stored(kept, dtype), dtype) * SLACK).all()
