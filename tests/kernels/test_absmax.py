from __future__ import annotations

from typing import Any

import pytest
import torch

from compcomp.kernels import _shared
from compcomp.kernels.absmax import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [None, 16, 64])
def test_against_the_nearest_grid_value(device: str, bits: int, group: int | None) -> None:
    """Brute force: the distance to every grid value."""
    layer = tensors((6, 64), device, torch.float64)
    after = kernel(AbsMax(bits=bits, group=group), layer)
    groups = layer.weight.reshape(-1, group or 6 * 64)
    levels = 2 ** (bits - 1) - 1
    step = (groups.abs().amax(dim=1, keepdim=True) / levels).expand(groups.shape).reshape(6, 64)
    grid = step[..., None] * torch.arange(-levels, levels + 1, device=device)
    nearest = grid.gather(2, (grid - layer.weight[..., None]).abs().argmin(dim=2, keepdim=True))[..., 0]
    torch.testing.assert_close(after.weight, nearest, rtol=1e-12, atol=0)
    torch.testing.assert_close(after.format.grid.step, step, rtol=1e-12, atol=0)
    assert after.format.grid.scales == len(groups)
    assert after.format.grid.levels == levels


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("grid", "beyond", "below"), [("full_range", 0.5, 1), ("narrow_step", 0, 1), ("clipped", 1, 1), ("narrow", 0, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_grids_in_use_against_the_nearest_value(
    device: str, bits: int, grid: str, beyond: float, below: int, dtype: Any
) -> None:
    """Brute force: the distance to every value, with the largest weight of every other row negative."""
    layer = tensors((6, 64), device, dtype)
    weight = layer.weight * torch.tensor([[1], [-1]] * 3, device=device) * layer.weight.amax(dim=1, keepdim=True).sign()
    after = kernel(AbsMax(bits=bits, grid=grid, per="channel"), LayerState.dense(weight))
    levels = 2 ** (bits - 1) - 1
    step = (weight.abs().amax(dim=1, keepdim=True) / (levels + beyond)).expand(6, 64)
    values = step[..., None] * torch.arange(-levels - below, levels + 1, device=device)
    nearest = values.gather(2, (values - weight[..., None]).abs().argmin(dim=2, keepdim=True))[..., 0]
    largest = weight.abs() == weight.abs().amax(dim=1, keepdim=True)
    found, expected = (x.where(~largest, 0) if beyond == 0.5 else x for x in (after.weight, nearest))  # a midpoint
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert after.format.grid is not None
    torch.testing.assert_close(after.format.grid.step, step, rtol=1e-6, atol=0)
    assert (after.format.grid.levels, after.format.grid.lowest) == (levels, -levels - below)
    ends = (after.weight / step).round()
    assert ends.amax() <= levels
    assert ends.amin() >= -levels - below
    if grid == "clipped":
        assert ends.amax() == levels
        assert ends.amin() == -levels - 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_the_signed_grid_holds_the_weight_of_largest_magnitude(device: str, bits: int, dtype: Any) -> None:
    weight = tensors((64, 32), device, dtype).weight
    weight[3], weight[5, 7], weight[5, 9], weight[6, 2], weight[6, 4] = 0, 9, -9, -9, 9
    after, half = kernel(AbsMax(bits=bits, group=32, grid="signed"), LayerState.dense(weight)), 2 ** (bits - 1)
    first = weight.abs().argmax(dim=1, keepdim=True)
    largest = weight.double().gather(1, first)
    assert torch.equal(after.weight.double().gather(1, first), largest)
    assert after.format.grid is not None
    step = after.format.grid.step[:, :1].double()
    torch.testing.assert_close(step, largest / -half, rtol=1e-7, atol=0)
    values = step[..., None] * torch.arange(-half, half, device=device)  # rows x 1 x values
    distances = (values - weight.double()[..., None]).abs()
    rounding = torch.finfo(torch.promote_types(dtype, torch.float32)).eps + torch.finfo(dtype).eps
    off = (after.weight.double() - weight.double()).abs() - distances.amin(dim=2)
    assert (off <= rounding * largest.abs()).all()
    assert after.weight[5, 9] == 9 * (1 - half) / half
    assert after.weight[6, 4] == 9 * (half - 1) / half


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize(
    ("rounding", "levels"),
    [
        ("half_even", [0, 0, 2, -2, 2, -2]),
        ("half_up", [1, 0, 2, -1, 3, -2]),
        ("half_away", [1, -1, 2, -2, 3, -3]),
        ("any", [1, 0, 2, -1, 3, -2]),
    ],
)
@pytest.mark.parametrize("largest", [14, 7, 3.5])
def test_midpoints(device: str, dtype: Any, rounding: str, levels: list[int], largest: float) -> None:
    """(k + 1/2) / 7 of the largest, also where the step is exact in no dtype."""
    weight = torch.tensor([[7, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5]], device=device) * (largest / 7)
    after = kernel(AbsMax(bits=4, rounding=rounding), LayerState.dense(weight.to(dtype)))
    assert after.weight.tolist() == [[largest, *(k * largest / 7 for k in levels)]]


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
def test_a_step_that_no_float_holds_moves_no_midpoint(rounding: str) -> None:
    """13 * 7 / 14 is 6.5 exactly; 13 / (14 / 7 * 1/3) is not, once the step has been rounded."""
    signs = {"half_even": (6, -6), "half_up": (7, -6), "half_away": (7, -7)}[rounding]
    for scale in (1.0, 3.0, 5.0, 11.0, 2.0**-20):
        weight = torch.tensor([[14 * scale, 13 * scale, -13 * scale]], dtype=torch.float64)
        after = kernel(AbsMax(bits=4, rounding=rounding), LayerState.dense(weight))
        found = (after.weight / after.format.grid.step).round().tolist()
        assert found == [[7, *signs]]


def test_just_below_a_midpoint_is_not_rounded_up() -> None:
    """floor(x + 1/2) in floats takes 0.49999999999999994 to 1."""
    below = torch.tensor([[1.0, 0.49999999999999994]], dtype=torch.float64)
    assert kernel(AbsMax(bits=2, rounding="half_up"), LayerState.dense(below)).weight.tolist() == [[1, 0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(device: str, dtype: Any) -> None:
    """Levels are those of float64; the step is wider than the weight."""
    layer = tensors((16, 64), device, dtype)
    after = kernel(AbsMax(bits=4, group=32), layer)
    exact = kernel(AbsMax(bits=4, group=32), LayerState.dense(layer.weight.double()))
    assert after.weight.dtype is dtype
    assert after.format.grid.step.dtype is torch.float32
    torch.testing.assert_close(after.weight.double(), exact.weight, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_an_all_zero_group_stays_zero(device: str) -> None:
    weight = torch.zeros(2, 4, device=device)
    weight[1, 3] = 2.0
    after = kernel(AbsMax(bits=4, group=2), LayerState.dense(weight))
    assert torch.equal(after.weight, weight)
    step = torch.tensor([[0, 0, 0, 0], [0, 0, 2 / 7, 2 / 7]], device=device)
    torch.testing.assert_close(after.format.grid.step, step)
    assert not kernel(AbsMax(bits=4), LayerState.dense(weight * 0)).weight.any()


@pytest.mark.parametrize("group", [None, 16])
def test_chunks_do_not_show(group: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tensors((33, 64))
    whole = kernel(AbsMax(bits=4, group=group), layer)
    monkeypatch.setattr(_shared, "MEMORY", 32 * 64 * 4)
    assert torch.equal(kernel(AbsMax(bits=4, group=group), layer).weight, whole.weight)


def test_a_transposed_weight() -> None:
    weight = tensors((8, 12)).weight
    after = kernel(AbsMax(bits=3, group=4), LayerState.dense(weight.T))
    expected = kernel(AbsMax(bits=3, group=4), LayerState.dense(weight.T.contiguous()))
    assert torch.equal(after.weight, expected.weight)


def test_what_it_cannot_use_is_refused() -> None:
    weight = tensors((4, 6)).weight
    refused(lambda: kernel(AbsMax(bits=4, group=4), LayerState.dense(weight)), "rows of 6")
    refused(lambda: kernel(AbsMax(bits=4), LayerState.dense(weight / 0)), "nan or infinite")


@pytest.mark.parametrize("device", DEVICES)
def test_a_scale_for_each_output_channel(device: str) -> None:
    layer = tensors((6, 64), device, torch.float64)
    after = kernel(AbsMax(bits=4, per="channel"), layer)
    one_group = kernel(AbsMax(bits=4, group=64), layer)
    torch.testing.assert_close(after.weight, one_group.weight, rtol=0, atol=0)
    assert after.format.grid.scales == 6


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("group", [None, 32, 512])
def test_float32_next_to_midpoints(rounding: str, bits: int, group: int | None) -> None:
    """Ratios that float32 cannot tell from a midpoint get the level of the exact ratio."""
    generator = torch.Generator().manual_seed(bits)
    levels, largest = 2 ** (bits - 1) - 1, torch.rand(64, 1, generator=generator) + 0.5
    middles = torch.randint(-levels, levels, (64, 512), generator=generator).double() + 0.5
    weight = (middles * largest.double() / levels).float()
    weight = torch.where(torch.rand(64, 512, generator=generator) < 0.5, weight, weight.nextafter(weight.new_zeros(())))
    weight[:, ::32] = largest
    technique = AbsMax(bits=bits, group=group, rounding=rounding)
    after, exact = (kernel(technique, LayerState.dense(w)) for w in (weight, weight.double()))
    assert after.format.grid is not None and exact.format.grid is not None
    found, expected = (s.weight.double() / s.format.grid.step.double() for s in (after, exact))  # type: ignore[union-attr]
    assert torch.equal(found.round(), expected.round())
