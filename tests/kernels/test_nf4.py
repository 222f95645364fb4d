from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from compcomp.kernels import _shared
from compcomp.kernels.nf4 import kernel
from compcomp.layers import codebooks
from compcomp.layers.state import LayerState
from compcomp.techniques import NF4
from tests.helpers import DEVICES, HALVES, refused, tensors
from tests.kernels.codebooks import assert_nearest


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("group", [None, 16, 64])
def test_against_the_nearest_value(device: str, group: int | None) -> None:
    assert_nearest(NF4(group), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away", "any"])
def test_midpoints_of_the_table(device: str, rounding: str) -> None:
    """Midpoints of float32 numbers, exact in float64, at a scale of 1 and of 3."""
    table = [float(c) for c in codebooks.NF4]
    middles = [(a + b) / 2 for a, b in pairwise(table)]
    up = [{"half_even": k % 2 == 0, "half_away": k >= 7}.get(rounding, True) for k in range(15)]
    expected = [table[k + 1] if up[k] else table[k] for k in range(15)]
    for scale in (1.0, 3.0):
        weight = torch.tensor([[scale, *(scale * m for m in middles)]], dtype=torch.float64, device=device)
        after = kernel(NF4(None, rounding), LayerState.dense(weight))
        assert after.weight.tolist() == [[scale, *(scale * x for x in expected)]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(device: str, dtype: torch.dtype) -> None:
    layer = tensors((16, 64), device, dtype)
    after = kernel(NF4(32), layer)
    exact = kernel(NF4(32), LayerState.dense(layer.weight.double()))
    assert after.weight.dtype is dtype and after.format.grid.step.dtype is torch.float32
    torch.testing.assert_close(after.weight.double(), exact.weight, rtol=torch.finfo(dtype).eps, atol=0)


def test_an_all_zero_group_stays_zero() -> None:
    weight = torch.zeros(2, 4)
    weight[1, 3] = 2.0
    assert torch.equal(kernel(NF4(2), LayerState.dense(weight)).weight, weight)
    assert not kernel(NF4(None), LayerState.dense(weight * 0)).weight.any()


@pytest.mark.parametrize("group", [None, 16])
def test_chunks_do_not_show(group: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tensors((33, 64))
    whole = kernel(NF4(group), layer)
    monkeypatch.setattr(_shared, "MEMORY", 96 * 64 * 4)
    assert torch.equal(kernel(NF4(group), layer).weight, whole.weight)


def test_what_it_cannot_use_is_refused() -> None:
    weight = tensors((4, 6)).weight
    refused(lambda: kernel(NF4(4), LayerState.dense(weight)), "rows of 6")
    refused(lambda: kernel(NF4(2), LayerState.dense(weight / 0)), "nan or infinite")


@pytest.mark.parametrize("group", [None, 32])
def test_float32_next_to_midpoints(group: int | None) -> None:
    """Weights that float32 cannot tell from a midpoint get the code of the exact quotient."""
    generator = torch.Generator().manual_seed(0)
    table = torch.tensor([float(c) for c in codebooks.NF4], dtype=torch.float64)
    middles = ((table[1:] + table[:-1]) / 2)[torch.randint(15, (64, 512), generator=generator)]
    largest = torch.rand(64, 1, generator=generator) + 0.5
    weight = (middles * largest).float()
    weight = torch.where(torch.rand(64, 512, generator=generator) < 0.5, weight, weight.nextafter(weight.new_zeros(())))
    weight[:, ::32] = largest
    after, exact = (kernel(NF4(group), LayerState.dense(w)) for w in (weight, weight.double()))
    assert torch.equal(after.weight, exact.weight.float()) or torch.allclose(after.weight.double(), exact.weight, 1e-6)
