"""Kernels with stored steps hold exactly the numbers of their encodings, also where steps overflow or vanish."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from compcomp.language.technique import Technique
from compcomp.layers.scales import SCALES, stored
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, MinMax
from compcomp.terms import Choices
from tests.helpers import DEVICES

FORMATS = [name for name in SCALES if name != "exact"]
SIZES = (1.0, 3e-8, 1e-6, 7e5, 2e6, 0.37, 0.0, 2.0**-30)
"""Of the eight groups of a layer: in float16 steps of some are subnormal, or 0, or beyond the largest number."""


def weights(dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Groups of 8 weights, with the largest magnitude twice, midpoints of the stored grid, and zeros."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randn(8, 8, generator=draw, dtype=torch.float64)
    found[:, 5] = -found.abs().amax(dim=1)
    found[:, 6] = found.abs().amax(dim=1)
    found[:, 2] = 0
    found = (found * torch.tensor(SIZES, dtype=torch.float64)[:, None]).to(dtype)
    return found if bool(found.isfinite().all()) else found.clamp(-6e4, 6e4)


def exact(technique: Technique, weight: torch.Tensor) -> LayerState:
    terms = np.array([[Fraction(x) for x in row] for row in weight.double().tolist()], dtype=object)
    return technique.encode(LayerState.dense(terms))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scales", FORMATS)
@pytest.mark.parametrize("grid", ["narrow", "full_range", "signed"])
def test_bit_for_bit(grid: str, scales: str, dtype: Any, device: str) -> None:
    technique = AbsMax(bits=4, group=8, grid=grid, scales=scales, rounding="half_up")
    weight = weights(dtype, len(grid))
    expected, after = exact(technique, weight), technique.kernel()(technique, LayerState.dense(weight.to(device)))
    assert expected.format.grid is not None and after.format.grid is not None
    assert after.format.grid.step.double().tolist() == expected.format.grid.step.astype(float).tolist()
    values = torch.tensor(expected.weight.astype(float).tolist(), dtype=torch.float32)  # at most 28 bits each
    assert torch.equal(after.weight.cpu(), values.to(dtype))
    assert after.format.grid.scale_bits == SCALES[scales].bits  # type: ignore[union-attr]
    levels = expected.weight / np.where(expected.format.grid.step == 0, 1, expected.format.grid.step)
    assert {int(x) for x in levels.ravel()} <= set(range(-7 - (grid != "narrow"), 8))


@pytest.mark.parametrize(
    ("zero", "scales"),
    [(zero, f) for zero in ("exact", "none") for f in FORMATS if (zero, f) != ("none", "power_of_two")],
)
def test_a_range_bit_for_bit(zero: str, scales: str) -> None:
    technique = MinMax(bits=4, group=8, zero=zero, scales=scales)
    weight = weights(torch.float64, 3).to(torch.float32).double()
    expected, after = exact(technique, weight), technique.kernel()(technique, LayerState.dense(weight))
    assert expected.format.grid is not None and after.format.grid is not None
    assert after.format.grid.offset is not None and expected.format.grid.offset is not None
    assert after.format.grid.step.tolist() == expected.format.grid.step.astype(float).tolist()
    assert after.format.grid.offset.tolist() == expected.format.grid.offset.astype(float).tolist()
    assert after.weight.tolist() == expected.weight.astype(float).tolist()
    step, offset = expected.format.grid.step, expected.format.grid.offset
    if zero == "exact":
        points = {int(-o / s) for o, s in zip(offset.ravel(), step.ravel(), strict=True) if s}
        assert points <= set(range(16)) and len(points) > 1


@pytest.mark.parametrize("grid", ["narrow", "signed"])
def test_midpoints_of_the_stored_grid(grid: str) -> None:
    """The step of 1 in float16 is not 1 / 7, and weights half way between its multiples are midpoints in floats too."""
    for scales in FORMATS:
        step = stored(Fraction(1, 7 if grid == "narrow" else -8), scales, Choices())
        weight = torch.tensor([[1.0, *(float((k + Fraction(1, 2)) * step) for k in range(-6, 6))]])
        for rounding in ("half_even", "half_up", "half_away"):
            technique = AbsMax(bits=4, grid=grid, scales=scales, rounding=rounding)
            after = technique.kernel()(technique, LayerState.dense(weight))
            expected = torch.tensor(exact(technique, weight).weight.astype(float).tolist()).float()
            assert torch.equal(after.weight, expected)


@pytest.mark.parametrize("scales", FORMATS)
def test_the_largest_weight_may_be_beyond_the_last_level(scales: str) -> None:
    """Where the step is rounded down: the last level takes it, as no runtime has another."""
    technique = AbsMax(bits=8, scales=scales)
    beyond = 0
    for k in range(1, 40):
        after = exact(technique, torch.tensor([[float(k), -float(k), 1.0]]))
        assert after.format.grid is not None
        beyond += after.weight[0, 0] == 127 * after.format.grid.step[0, 0] < k
        assert after.weight[0, 0] == -after.weight[0, 1]
    assert beyond
