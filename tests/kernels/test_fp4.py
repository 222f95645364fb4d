from __future__ import annotations

from typing import Any

import pytest
import torch

from compcomp.layers.state import LayerState
from compcomp.techniques import FP4
from tests.helpers import DEVICES, HALVES
from tests.kernels.codebooks import assert_midpoints, assert_nearest


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("group", [None, 16, 64])
def test_against_the_nearest_value(device: str, group: int | None) -> None:
    assert_nearest(FP4(group), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("half_even", [0, 1, 1, 2, 2, 4, 4, 0, -1, -4]),
        ("half_up", [0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -4]),
        ("half_away", [0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -6]),
        ("any", [0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -4]),
    ],
)
def test_midpoints(device: str, dtype: Any, rounding: str, expected: list[float]) -> None:
    middles = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -5]
    for scale in (1, 2.0**-20):
        weight, values = ([scale * x for x in (6, *row)] for row in (middles, expected))
        assert_midpoints(FP4(None, rounding), weight, values, device, dtype)


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
def test_a_step_that_no_float_holds_moves_no_midpoint(rounding: str) -> None:
    """The largest magnitude is 24 k, the step 4 k and midpoints lie at k, 3 k, 5 k; of a largest 72 the step is 12."""
    expected = {"half_even": [6, 0, 1, 1], "half_up": [6, 0.5, 1, 1.5], "half_away": [6, 0.5, 1, 1.5]}[rounding]
    for scale in (1.0, 3.0, 5.0, 11.0, 13 * 2.0**-20):
        weight = torch.tensor([[24 * scale, scale, 3 * scale, 5 * scale]], dtype=torch.float32)
        after = FP4(None, rounding).kernel()(FP4(None, rounding), LayerState.dense(weight))
        found = (after.weight.double() / (4 * weight[0, 1].double())).tolist()
        assert found[0] == pytest.approx(expected, rel=1e-6)
