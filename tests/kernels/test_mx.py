from __future__ import annotations

from typing import Any

import pytest
import torch

from compcomp.encodings.mx import FORMATS
from compcomp.kernels._codebook import largest_power
from compcomp.techniques import MX
from tests.helpers import DEVICES, HALVES
from tests.kernels.codebooks import assert_midpoints, assert_nearest


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group", [1, 16, 32])
def test_against_the_nearest_value(device: str, format: str, group: int) -> None:
    assert_nearest(MX(format, group), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("power", [0, 3, -7])
def test_midpoints_and_what_lies_beyond(device: str, dtype: Any, power: int) -> None:
    weight, expected = [7.5, 5, 3.5, -2.5, 0.25, 0], [6, 4, 4, -2, 0, 0]
    assert_midpoints(MX(group=6), *([x * 2.0**power for x in row] for row in (weight, expected)), device, dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_powers_of_two(device: str) -> None:
    values = [0.0, 1.0, 1.5, 2.0, 0.75, 5e-324, 1e-300, 1.7e308, 1 - 2.0**-53]
    found = largest_power(torch.tensor(values, dtype=torch.float64, device=device)).tolist()
    assert found == [0, 1, 1, 2, 0.5, 5e-324, 2.0**-997, 2.0**1023, 0.5]
