from __future__ import annotations

from typing import Any

import pytest
import torch

from compcomp.kernels import _shared
from compcomp.kernels.minmax import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import Magnitude, MinMax
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [None, 16, 64])
@pytest.mark.parametrize("zero", ["exact", "none"])
def test_against_the_nearest_grid_value(device: str, bits: int, group: int | None, zero: str) -> None:
    """Brute force: the distance to every grid value; the zero point also by torch's own fake quantization."""
    layer = tensors((6, 64), device, torch.float64)
    after = kernel(MinMax(bits=bits, group=group, zero=zero), layer)
    groups = layer.weight.reshape(-1, group or 6 * 64)
    levels = 2**bits - 1
    low, high = groups.aminmax(dim=1, keepdim=True)
    step = (high - low) / levels  # of random weights every range reaches over 0
    offset = (low / step).round() * step if zero == "exact" else low
    step, offset = (x.expand(groups.shape).reshape(6, 64) for x in (step, offset))
    grid = step[..., None] * torch.arange(levels + 1, device=device) + offset[..., None]
    nearest = grid.gather(2, (grid - layer.weight[..., None]).abs().argmin(dim=2, keepdim=True))[..., 0]
    torch.testing.assert_close(after.weight, nearest, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(after.format.grid.step, step, rtol=1e-12, atol=0)
    torch.testing.assert_close(after.format.grid.offset, offset, rtol=1e-12, atol=0)
    assert (after.format.grid.levels, after.format.grid.scales) == (levels, len(groups))


def test_against_torchs_fake_quantization() -> None:
    layer = tensors((4, 32))
    after = kernel(MinMax(bits=8), layer)
    step = float(after.format.grid.step[0, 0])
    point = round(float(-after.format.grid.offset[0, 0] / step))
    expected = torch.fake_quantize_per_tensor_affine(layer.weight, step, point, 0, 255)
    torch.testing.assert_close(after.weight, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("bits", [3, 8])
def test_a_zero_stays_exactly_zero(device: str, dtype: Any, bits: int) -> None:
    layer = tensors((16, 64), device, dtype)
    pruned = Magnitude("1/2").kernel()(Magnitude("1/2"), layer)
    after = kernel(MinMax(bits=bits, group=32), pruned)
    assert after.weight.dtype is dtype
    assert not after.weight[~after.format.mask].any()
    assert after.format.grid.step.dtype == after.format.grid.offset.dtype == _shared.wide(layer.weight)


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
def test_midpoints_of_no_float_step(rounding: str) -> None:
    """The step is scale / 3 in no float; midpoints are hit all the same."""
    signs = {"half_even": (2, 0), "half_up": (3, 0), "half_away": (3, -1)}[rounding]
    for scale in (1.0, 5.0, 11.0, 2.0**-20):
        weight = torch.tensor([[5 * scale, -2 * scale, 2.5 * scale, -0.5 * scale]], dtype=torch.float64) / 4
        after = kernel(MinMax(bits=3, rounding=rounding), LayerState.dense(weight))
        assert (after.weight / after.format.grid.step).round().tolist() == [[5, -2, *signs]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("zero", ["exact", "none"])
def test_where_the_range_is_a_point_the_weights_stay(device: str, zero: str) -> None:
    weight = torch.tensor([[0.0, 0, 0.3, 0.3], [0.1, 0.2, -0.3, -0.3]], device=device)
    after = kernel(MinMax(bits=4, group=2, zero=zero), LayerState.dense(weight))
    torch.testing.assert_close(after.weight[0], weight[0])
    torch.testing.assert_close(after.weight[1, 2:], weight[1, 2:])
    assert not kernel(MinMax(bits=4, zero=zero), LayerState.dense(weight * 0)).weight.any()


@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("zero", ["exact", "none"])
def test_chunks_do_not_show(group: int | None, zero: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, technique = tensors((33, 64)), MinMax(bits=4, group=group, zero=zero)
    whole = kernel(technique, layer)
    monkeypatch.setattr(_shared, "MEMORY", 32 * 64 * 4)
    assert torch.equal(kernel(technique, layer).weight, whole.weight)


def test_a_transposed_weight() -> None:
    weight = tensors((8, 12)).weight
    after = kernel(MinMax(bits=3, group=4), LayerState.dense(weight.T))
    assert torch.equal(after.weight, kernel(MinMax(bits=3, group=4), LayerState.dense(weight.T.contiguous())).weight)


def test_what_it_cannot_use_is_refused() -> None:
    weight = tensors((4, 6)).weight
    refused(lambda: kernel(MinMax(bits=4, group=4), LayerState.dense(weight)), "rows of 6")
    refused(lambda: kernel(MinMax(bits=4), LayerState.dense(weight / 0)), "nan or infinite")
