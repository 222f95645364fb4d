from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels import _shared
from compcomp.kernels.quantization_aware_training import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, ApplyMask, Magnitude, QuantizationAwareTraining, TruncatedSVD
from tests.helpers import DEVICES, HALVES, loss, refused, tensors

T = QuantizationAwareTraining
TRAINED = [
    *(T(2), T(3, per="channel"), T(4, group=8), T(4, rate=8), T(16, iterations=5), T(4, group=8, grid="full_range")),
    *(T(3, grid="clipped"), T(4, group=8, grid="narrow_step", scales="bfloat16"), T(4, scales="power_of_two")),
]
DTYPES = [torch.float32, torch.float64]


def rounded(technique: T) -> AbsMax:
    return AbsMax(technique.bits, technique.group, per=technique.per, grid=technique.grid, scales=technique.scales)


def row_losses(state: LayerState) -> torch.Tensor:
    assert state.gram is not None
    error = state.effective().double() - state.reference.double()
    return ((error @ state.gram.double()) * error).sum(dim=1)


def on_grid(state: LayerState) -> bool:
    grid = state.format.grid
    assert grid is not None
    level = torch.where(grid.step > 0, state.weight.to(grid.step.dtype) / grid.step, 0).round()
    same = torch.equal((level * grid.step).to(state.weight.dtype), state.weight)
    return same and bool(((level >= grid.lowest) & (level <= grid.levels)).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@pytest.mark.parametrize("technique", TRAINED, ids=str)
def test_on_the_absmax_grid_and_no_row_worse_than_rounding(technique: T, dtype: Any, device: str) -> None:
    for seed in range(3):
        layer = tensors((12, 24), device, dtype, seed)
        after, nearest = kernel(technique, layer), rounded(technique).kernel()(rounded(technique), layer)
        assert after.weight.dtype == dtype and after.format.grid is not None
        assert torch.equal(after.format.grid.step, nearest.format.grid.step)
        assert (after.format.grid.levels, after.format.grid.scales) == (technique.levels, nearest.format.grid.scales)
        if dtype not in HALVES or technique.bits < 8:  # halves do not tell 2^15 levels apart
            assert on_grid(after)
        assert (row_losses(after) <= row_losses(nearest) * (1 + 1e-9)).all()
        assert torch.equal(kernel(technique, layer).weight, after.weight), "nothing in it is random"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("technique", TRAINED[:3], ids=str)
def test_the_mask_stays(technique: T, dtype: Any, device: str) -> None:
    for prune in (Magnitude("1/2"), Magnitude("1/2", pattern="2:4")):
        pruned = prune.kernel()(prune, tensors((8, 16), device, dtype, 4))
        after = kernel(technique, pruned)
        assert after.format.mask is pruned.format.mask and after.format.pattern == pruned.format.pattern
        assert not after.weight[~pruned.format.mask].any() and on_grid(after)
        nearest = rounded(technique).kernel()(rounded(technique), pruned)
        assert (row_losses(after) <= row_losses(nearest) * (1 + 1e-9)).all()
        assert loss(after) < loss(nearest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("technique", TRAINED[:3], ids=str)
def test_a_broken_mask_is_restored(technique: T, dtype: Any) -> None:
    """The grid is that of the weights it finds, so it loses no more than rounding them and applying the mask."""
    layer = tensors((8, 16), "cpu", dtype, 5)
    mask = Magnitude("1/2").kernel()(Magnitude("1/2"), layer).format.mask
    broken = replace(layer, format=replace(layer.format, mask=mask))
    after = kernel(technique, broken)
    assert not after.weight[~mask].any()
    assert loss(after) <= loss((rounded(technique) >> ApplyMask()).kernel(broken)) * (1 + 1e-9)


@pytest.mark.parametrize("technique", TRAINED[:4], ids=str)
def test_no_training_is_round_to_nearest(technique: T) -> None:
    for dtype in DTYPES:
        layer = tensors((8, 16), "cpu", dtype, 6)
        nearest = rounded(technique).kernel()(rounded(technique), layer)
        assert torch.equal(kernel(replace(technique, iterations=0), layer).weight, nearest.weight)


def test_training_lowers_the_loss() -> None:
    losses = [loss(kernel(T(3, iterations=n), tensors((16, 32), "cpu", torch.float64, 7))) for n in (0, 20, 400)]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.7 * losses[0]


def test_a_step_by_hand() -> None:
    """L = 1, s = 8, w = (8, 3.5, 3.5, 3.5), x = (1, 1, 2, 0): rounding to (8, 0, 0, 0) leaves an error of -10.5.

    A step of rate 1 adds x_j 10.5 / 6, clipped to 8: (8, 5.25, 7, 3.5), which rounds to (8, 8, 8, 0), an error of 13.5,
    so the start is kept. At rate 1/4 it leads to (8, 3.9375, 4.375, 3.5) and (8, 0, 8, 0), an error of 5.5.
    """
    weight, x = torch.tensor([[8, 3.5, 3.5, 3.5]]).double(), torch.tensor([[1.0], [1], [2], [0]]).double()
    layer = LayerState.dense(weight, x)
    assert kernel(T(2, iterations=1), layer).weight.tolist() == [[8, 0, 0, 0]]
    assert kernel(T(2, iterations=1, rate="1/4"), layer).weight.tolist() == [[8, 0, 8, 0]]


def test_it_makes_up_for_what_was_lost_before() -> None:
    """The target is the dense layer's outputs, of the dense inputs, also where there is a low-rank branch."""
    layer = tensors((12, 24), "cpu", torch.float64, 8)
    corrected = (AbsMax(3) >> TruncatedSVD(2, residual=True)).kernel(layer)
    after = kernel(T(3), corrected)
    assert after.format.factors is corrected.format.factors
    assert loss(after) < 0.95 * loss(kernel(T(3, iterations=0), corrected))
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(24, 60, generator=generator, dtype=torch.float64)
    current = dense + 0.5 * torch.randn(24, 60, generator=generator, dtype=torch.float64)
    changed = LayerState.dense(layer.weight, dense).with_inputs(current)

    def lost(iterations: int) -> float:
        weight = kernel(T(3, iterations=iterations), changed).weight
        return float((weight @ current - layer.weight @ dense).square().sum())

    assert lost(100) < 0.9 * lost(0)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    for technique in TRAINED[:4]:
        layer = Magnitude("1/2").kernel()(Magnitude("1/2"), tensors((16, 32), "cpu", torch.float64, 9))
        layer = TruncatedSVD(1, residual=True).kernel()(TruncatedSVD(1, residual=True), layer)
        monkeypatch.setattr(_shared, "MEMORY", 2**28)
        whole = kernel(technique, layer)
        monkeypatch.setattr(_shared, "MEMORY", 100 * 32 * 5)
        assert torch.equal(kernel(technique, layer).weight, whole.weight)


@pytest.mark.parametrize("weight", [torch.zeros(4, 8), torch.ones(4, 8)])
@pytest.mark.parametrize("gram", [torch.zeros(8, 8), torch.ones(8, 8)])
def test_degenerate_layers(weight: torch.Tensor, gram: torch.Tensor) -> None:
    for technique in (T(2), T(4, group=2)):
        assert torch.allclose(kernel(technique, LayerState.dense(weight, gram=gram)).weight, weight)


def test_what_it_cannot_use_is_refused() -> None:
    layer = tensors((4, 8))
    refused(lambda: kernel(T(4), replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(T(4, group=3), layer), "rows of 8")
    refused(lambda: kernel(T(4), replace(layer, weight=layer.weight / 0)), "nan or infinite")
