from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.apply_mask import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import ApplyMask, Magnitude
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_dropped_weights_go_to_zero_and_the_rest_stays(device: str, dtype: Any) -> None:
    layer = tensors((4, 8), device, dtype)
    pruned = Magnitude("1/2").kernel()(Magnitude("1/2"), layer)
    after = kernel(ApplyMask(), replace(pruned, weight=pruned.weight + 1))
    assert after.weight.dtype is dtype
    assert torch.equal(after.weight, torch.where(pruned.format.mask, pruned.weight + 1, 0))
    assert after.format.mask is pruned.format.mask


def test_without_a_mask_nothing_changes() -> None:
    layer = tensors((4, 8))
    assert kernel(ApplyMask(), layer) is layer


def test_what_is_not_finite_is_refused() -> None:
    refused(lambda: kernel(ApplyMask(), LayerState.dense(tensors((4, 6)).weight / 0)), "nan or infinite")
