from __future__ import annotations

from typing import Any

import pytest
import torch

from compcomp.techniques import BlockFloatingPoint
from tests.helpers import DEVICES, HALVES
from tests.kernels.codebooks import assert_midpoints, assert_nearest


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [None, 16])
def test_against_the_nearest_value(device: str, bits: int, group: int | None) -> None:
    assert_nearest(BlockFloatingPoint(bits, group), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize(
    ("rounding", "expected"), [("half_even", [2, -2]), ("half_up", [3, -2]), ("half_away", [3, -3]), ("any", [3, -2])]
)
def test_midpoints(device: str, dtype: Any, rounding: str, expected: list[float]) -> None:
    assert_midpoints(BlockFloatingPoint(4, None, rounding), [7.5, 2.5, -2.5], [7, *expected], device, dtype)
