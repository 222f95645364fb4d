from __future__ import annotations

import pytest
import torch

from compcomp.kernels.fp8_inputs import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import FP8Inputs
from tests.helpers import DEVICES, refused


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("per", ["token", "tensor"])
def test_every_token_is_cast_at_its_scale(device: str, per: str) -> None:
    inputs = torch.randn((16, 8), generator=torch.Generator().manual_seed(0)).to(device).clamp(-3, 3)
    inputs[0] = 3.5  # the scale is 2^-7, so that the ratio is exact
    state = kernel(FP8Inputs(per=per), LayerState.dense(torch.ones(4, 16, device=device), inputs))
    expected = (inputs * 128).to(torch.float8_e4m3fn).float() / 128
    assert torch.equal(state.inputs, expected) and torch.equal(state.reference_inputs, inputs)
    torch.testing.assert_close(state.gram, expected @ expected.T)


def test_what_it_cannot_use_is_refused() -> None:
    refused(lambda: kernel(FP8Inputs(), LayerState.dense(torch.ones(2, 3))), "no inputs")
    refused(lambda: kernel(FP8Inputs(), LayerState.dense(torch.ones(2, 3), torch.ones(3, 4) / 0)), "nan or infinite")
