from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.block_means import kernel
from compcomp.techniques import BlockMeans, Magnitude
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rank", [1, 4, 20])
def test_every_run_has_mean_zero(device: str, rank: int) -> None:
    start = Magnitude("1/2").kernel()(Magnitude("1/2"), tensors((12, 20), device, torch.float64))
    after = kernel(BlockMeans(rank), start)
    left = (start.reference - after.effective()).reshape(12, rank, -1)
    torch.testing.assert_close(left.mean(dim=2), torch.zeros_like(left[..., 0]), rtol=0, atol=1e-12)
    assert left.norm() < (start.reference - start.weight).norm()
    assert int(torch.linalg.matrix_rank(after.effective() - after.weight)) <= rank


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(dtype: Any) -> None:
    start = Magnitude("1/2").kernel()(Magnitude("1/2"), tensors((12, 20), dtype=dtype))
    factors = kernel(BlockMeans(4), start).format.factors
    assert factors.left.dtype is factors.right.dtype is dtype


def test_what_is_wrong_is_refused() -> None:
    layer = tensors((4, 6))
    refused(lambda: kernel(BlockMeans(4), layer), "divide into 4 runs")
    refused(lambda: kernel(BlockMeans(2), replace(layer, reference=layer.weight / 0)), "reference with nan")
