from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from compcomp.language.codebooks import float_codes
from compcomp.language.layer import Factors, Format, Grid
from compcomp.models.size import compression_rate, dense_bits, layer_bits, theoretical_rate, value_bits

SHAPE = (4, 8)
HALF = torch.arange(32).reshape(SHAPE) % 2 == 0


def grid(levels: int, scales: int) -> Grid:
    return Grid(step=torch.ones(SHAPE), levels=levels, scales=scales)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("levels", "bits"), [(0, 1), (1, 2), (2, 3), (3, 3), (4, 4), (7, 4), (8, 5), (127, 8), (32767, 16)]
)
def test_bits_are_enough_for_all_values_of_a_grid(levels: int, bits: int) -> None:
    assert value_bits(grid(levels, 1)) == bits
    assert 2**bits >= 2 * levels + 1 and (bits == 1 or 2 ** (bits - 1) < 2 * levels + 1)


def ranged(levels: int, scales: int, zero: bool) -> Grid:
    return Grid(torch.ones(SHAPE), levels, scales, offset=torch.zeros(SHAPE), zero=zero)  # type: ignore[arg-type]


def quantized(left: int | None, right: int | None) -> Factors:
    """Factors of rank 1 on grids of so many levels."""
    factors = torch.zeros(4, 1), torch.zeros(1, 8)
    grids = (None if k is None else Grid(f, k, 1) for f, k in zip(factors, (left, right), strict=True))  # type: ignore[arg-type]
    return Factors(*factors, *grids)  # type: ignore[arg-type]


def coded(scale: str) -> Grid:
    codes = float_codes(2, 1, bias=1, largest=6)
    bits, shared = (8, 64) if scale == "double" else (16, 0)
    step = torch.ones(SHAPE)
    return Grid(step, len(codes) - 1, 4, codes=codes, scale_bits=bits, shared_bits=shared)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "bits"),
    [
        (Format(), 32 * 16),
        (Format(mask=HALF), 16 * 16 + 32),  # type: ignore[arg-type]
        (Format(mask=HALF.numpy()), 16 * 16 + 32),
        (Format(grid=grid(7, 4)), 32 * 4 + 4 * 16),
        (Format(mask=HALF, grid=grid(7, 1)), 16 * 4 + 32 + 16),  # type: ignore[arg-type]
        (Format(mask=torch.ones(SHAPE, dtype=torch.bool), grid=grid(7, 1)), 32 * 4 + 16),  # type: ignore[arg-type]
        (Format(grid=ranged(15, 4, zero=True)), 32 * 4 + 4 * (16 + 4)),
        (Format(grid=ranged(15, 4, zero=False)), 32 * 4 + 4 * (16 + 16)),
        (Format(mask=HALF, grid=ranged(15, 1, zero=True)), 16 * 4 + 32 + 16 + 4),  # type: ignore[arg-type]
        (Format(mask=HALF, grid=ranged(15, 1, zero=False)), 32 * 4 + 32 + 16 + 16),  # type: ignore[arg-type]
        (Format(factors=Factors(np.zeros((4, 2)), np.zeros((2, 8)))), 32 * 16 + 2 * 12 * 16),
        (Format(rank=0, factors=quantized(1, 7)), 4 * 2 + 16 + 8 * 4 + 16),
        (Format(rank=0, factors=quantized(7, None)), 4 * 4 + 16 + 8 * 16),
        (Format(grid=coded("exact")), 32 * 4 + 4 * 16),
        (Format(grid=coded("double")), 32 * 4 + 4 * 8 + 64),
        (Format(mask=HALF, grid=coded("double")), 16 * 4 + 32 + 4 * 8 + 64),  # type: ignore[arg-type]
        (Format(rank=1), 12 * 16),
        (Format(rank=2), 24 * 16),
        (Format(rank=3), 32 * 16),
        (Format(rank=1, mask=HALF), 16 * 16 + 32),  # type: ignore[arg-type]
        (Format(rank=1, grid=grid(7, 1)), 32 * 4 + 16),
    ],
)
def test_bits_of_a_format(form: Format, bits: int) -> None:
    assert layer_bits(form, SHAPE) == bits


def test_rates() -> None:
    assert dense_bits(SHAPE) == 512
    assert compression_rate([(Format(), SHAPE)]) == 0
    assert compression_rate([(Format(grid=grid(7, 0)), SHAPE), (Format(), SHAPE)]) == 1 - (128 + 512) / 1024
    assert compression_rate([(Format(factors=Factors(np.zeros((4, 9)), np.zeros((9, 8)))), SHAPE)]) < 0


def test_the_theoretical_rate_of_the_paper() -> None:
    """[laborde2025]: a quarter pruned at 4 bits is as small as 3 bits, 81.25 %."""
    assert theoretical_rate(4, Fraction(1, 4)) == theoretical_rate(3, 0) == 0.8125
    assert theoretical_rate(16, 0) == 0
