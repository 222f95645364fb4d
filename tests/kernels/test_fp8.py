from __future__ import annotations

import pytest
import torch

from compcomp.layers.state import LayerState
from compcomp.techniques import FP8
from tests.helpers import DEVICES
from tests.kernels.codebooks import assert_nearest


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("technique", [FP8(), FP8("e5m2"), FP8(per="row"), FP8("e5m2", group=16)], ids=str)
def test_against_the_nearest_value(device: str, technique: FP8) -> None:
    assert_nearest(technique, device)


@pytest.mark.parametrize(("format", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
@pytest.mark.parametrize("device", DEVICES)
def test_at_a_scale_of_one_it_is_torchs_cast(format: str, dtype: torch.dtype, device: str) -> None:
    """Every float16 number up to the largest value: all midpoints among them."""
    values = torch.arange(2**16, dtype=torch.int32, device=device).to(torch.int16).view(torch.float16).float()
    largest = torch.finfo(dtype).max
    values = values[values.abs() <= largest]
    after = FP8(format).kernel()(FP8(format), LayerState.dense(torch.cat([values, values.new_tensor([largest])])[None]))
    assert torch.equal(after.weight[0, :-1], values.to(dtype).float())
