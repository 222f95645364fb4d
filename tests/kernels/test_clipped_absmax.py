from __future__ import annotations

import pytest
import torch

from compcomp.kernels import _shared
from compcomp.kernels.clipped_absmax import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, ClippedAbsMax
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group", [None, 16])
def test_no_ratio_loses_less(device: str, bits: int, group: int | None) -> None:
    layer = tensors((6, 64), device, torch.float64)
    after = kernel(ClippedAbsMax(bits, group, ratios=10), layer)
    groups, found = (x.reshape(-1, group or 6 * 64) for x in (layer.weight, after.weight))
    levels, largest = 2 ** (bits - 1) - 1, groups.abs().amax(dim=1, keepdim=True)
    losses = []
    for k in range(11):
        step = largest * (1 - k / 20) / levels
        losses.append(((groups / step).round().clamp(-levels, levels) * step - groups).square().sum(dim=1))
    torch.testing.assert_close((found - groups).square().sum(dim=1), torch.stack(losses).amin(dim=0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(device: str, dtype: torch.dtype) -> None:
    layer = tensors((16, 64), device, dtype)
    after = kernel(ClippedAbsMax(4, 32), layer)
    exact = kernel(ClippedAbsMax(4, 32), LayerState.dense(layer.weight.double()))
    assert after.weight.dtype is dtype and after.format.grid.step.dtype is torch.float32
    torch.testing.assert_close(after.weight.double(), exact.weight, rtol=torch.finfo(dtype).eps, atol=0)


def test_one_ratio_is_absmax() -> None:
    layer = tensors((8, 32))
    only = ClippedAbsMax(4, 8, smallest=1)
    assert torch.equal(kernel(only, layer).weight, AbsMax(4, 8).kernel()(AbsMax(4, 8), layer).weight)


@pytest.mark.parametrize("group", [None, 16])
def test_chunks_do_not_show(group: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tensors((33, 64))
    whole = kernel(ClippedAbsMax(4, group), layer)
    monkeypatch.setattr(_shared, "MEMORY", 64 * 64 * 4)
    assert torch.equal(kernel(ClippedAbsMax(4, group), layer).weight, whole.weight)


def test_what_it_cannot_use_is_refused() -> None:
    weight = tensors((4, 6)).weight
    refused(lambda: kernel(ClippedAbsMax(4, 4), LayerState.dense(weight)), "rows of 6")
    refused(lambda: kernel(ClippedAbsMax(4, 2), LayerState.dense(weight / 0)), "nan or infinite")
    assert not kernel(ClippedAbsMax(4), LayerState.dense(weight * 0)).weight.any()
