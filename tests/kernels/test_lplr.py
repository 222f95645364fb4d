from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.lplr import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import LPLR
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (1, 8)])
def test_many_bits_give_the_projection_on_the_sketched_range(device: str, shape: tuple[int, int]) -> None:
    layer = tensors(shape, device, torch.float64)
    technique = LPLR(rank=3, bits=16)
    after = kernel(technique, layer)
    sketch = torch.from_numpy(technique.sketched(shape[1])).to(layer.weight)
    q, _ = torch.linalg.qr(layer.weight @ sketch)
    torch.testing.assert_close(after.effective(), q @ q.T @ layer.weight, rtol=0, atol=2e-2)
    assert not after.weight.any() and after.format.rank == 0 and after.format.mask is None


@pytest.mark.parametrize("device", DEVICES)
def test_factors_lie_on_their_grids(device: str) -> None:
    factors = kernel(LPLR(rank=4, bits=3, right_bits=5), tensors((12, 20), device)).format.factors
    for factor, grid, levels in ((factors.left, factors.left_grid, 3), (factors.right, factors.right_grid, 15)):
        level = factor / grid.step
        assert grid.levels == levels and grid.scales == 1 and grid.step.shape == factor.shape
        assert torch.equal(level.round().abs().amax(), torch.tensor(float(levels), device=device))
        torch.testing.assert_close(level, level.round(), rtol=0, atol=1e-5)


def test_low_rank_is_found() -> None:
    """Of a matrix of rank 3 the sketch of rank 3 finds the whole range."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(30, 3, generator=generator), torch.randn(3, 40, generator=generator)
    weight = (left @ right).double()
    errors = [
        float((kernel(LPLR(rank=3, bits=bits), LayerState.dense(weight)).effective() - weight).norm() / weight.norm())
        for bits in (4, 8, 16)
    ]
    assert 1 > errors[0] > 2 * errors[1] > 100 * errors[2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(device: str, dtype: Any) -> None:
    layer = tensors((12, 20), device, dtype)
    after = kernel(LPLR(rank=4, bits=4), layer)
    factors = after.format.factors
    assert after.weight.dtype is factors.left.dtype is factors.right.dtype is dtype
    assert factors.left_grid.step.dtype is torch.float32


def test_what_is_not_finite_is_refused() -> None:
    layer = tensors((4, 6))
    refused(lambda: kernel(LPLR(rank=1, bits=4), replace(layer, weight=layer.weight / 0)), "weight with nan")
