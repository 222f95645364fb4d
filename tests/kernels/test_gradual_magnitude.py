from __future__ import annotations

from typing import Any

import pytest
import torch

from compcomp.kernels.gradual_magnitude import kernel
from compcomp.techniques import GradualMagnitude, Magnitude
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"per": "row"}, {"pattern": "2:4"}, {"pattern": "4:8"}])
@pytest.mark.parametrize("schedule", ["cubic", "linear"])
def test_rounds_come_to_one(device: str, options: dict[str, str], schedule: str) -> None:
    layer = tensors((24, 64), device, torch.bfloat16)  # with ties
    one = Magnitude("1/2", **options)
    after = kernel(GradualMagnitude("1/2", 5, schedule, **options), layer)
    expected = one.kernel()(one, layer)
    assert torch.equal(after.weight, expected.weight)
    assert torch.equal(after.format.mask, expected.format.mask)
    assert after.format.pattern == expected.format.pattern


@pytest.mark.parametrize("dtype", HALVES)
def test_the_share_grows_as_published(dtype: Any) -> None:
    state = tensors((10, 100), dtype=dtype)
    for technique, share in zip(GradualMagnitude("4/5", 4).each_round(), (462, 700, 787, 800), strict=True):
        state = technique.kernel()(technique, state)
        assert int((~state.format.mask).sum()) == share  # int(1000 * 4/5 * (1 - (1 - t/4)^3))


def test_what_does_not_fit_is_refused() -> None:
    refused(lambda: kernel(GradualMagnitude("1/2", pattern="2:4"), tensors((4, 6))), "rows of 6")
