from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.loftq import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, LoftQ, TruncatedSVD
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("group", [None, 5])
def test_one_round_is_absmax_and_its_residual(device: str, group: int | None) -> None:
    layer = tensors((12, 20), device, torch.float64)
    once = kernel(LoftQ(bits=3, rank=2, rounds=1, group=group), layer)
    quantizer, low = AbsMax(bits=3, group=group), TruncatedSVD(rank=2, residual=True)
    steps = low.kernel()(low, quantizer.kernel()(quantizer, layer))
    assert torch.equal(once.weight, steps.weight)
    torch.testing.assert_close(once.effective(), steps.effective(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
def test_midpoints_go_where_they_should(rounding: str) -> None:
    layer = LayerState.dense(torch.tensor([[6.0, 1, -1, 3, -3, 5, -5]], dtype=torch.float64))
    once = kernel(LoftQ(bits=3, rank=1, rounds=1, rounding=rounding), layer)
    quantizer = AbsMax(bits=3, rounding=rounding)
    assert torch.equal(once.weight, quantizer.kernel()(quantizer, layer).weight)


@pytest.mark.parametrize("device", DEVICES)
def test_rounds_fit_a_gaussian_better(device: str) -> None:
    layer = tensors((48, 64), device, torch.float64)
    errors = [
        float((kernel(LoftQ(bits=4, rank=8, rounds=k, group=16), layer).effective() - layer.weight).norm())
        for k in (1, 5)
    ]
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(device: str, dtype: Any) -> None:
    layer = tensors((12, 20), device, dtype)
    after = kernel(LoftQ(bits=4, rank=2, group=10), layer)
    assert after.weight.dtype is after.format.factors.left.dtype is dtype
    assert after.format.grid.step.dtype is torch.float32
    exact = kernel(LoftQ(bits=4, rank=2, group=10), replace(layer, weight=layer.weight.double()))
    apart = (after.effective().double() - exact.effective()).abs().max()
    assert float(apart) < 0.5 * float(layer.weight.double().abs().max()) / 7 * 2  # at most about a step


def test_what_is_wrong_is_refused() -> None:
    layer = tensors((4, 6))
    refused(lambda: kernel(LoftQ(bits=4, rank=1, group=4), layer), "groups of 4")
    refused(lambda: kernel(LoftQ(bits=4, rank=1), replace(layer, weight=layer.weight / 0)), "weight with nan")
