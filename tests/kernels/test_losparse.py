from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.losparse import kernel
from compcomp.techniques import LoSparse
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [1, 3])
def test_the_parts_are_the_weight_but_for_the_rows_that_go(device: str, size: int) -> None:
    layer = tensors((12, 20), device, torch.float64)
    after = kernel(LoSparse(3, "1/2", size), layer)
    u, s, vh = torch.linalg.svd(layer.weight)
    low = u[:, :3] * s[:3] @ vh[:3]
    kept = after.format.mask[:, 0]
    torch.testing.assert_close(after.effective()[kept], layer.weight[kept], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.effective()[~kept], low[~kept], rtol=1e-9, atol=1e-9)
    norms = (layer.weight - low).square().sum(dim=1).reshape(-1, size).sum(dim=1)
    runs = kept.reshape(-1, size)[:, 0]
    assert int(runs.sum()) == len(runs) - len(runs) // 2 and norms[runs].min() > norms[~runs].max()


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(dtype: Any) -> None:
    after = kernel(LoSparse(3, "1/2"), tensors((12, 20), dtype=dtype))
    assert after.weight.dtype is after.format.factors.right.dtype is dtype


def test_what_is_wrong_is_refused() -> None:
    layer = tensors((4, 6))
    refused(lambda: kernel(LoSparse(1, "1/2", 3), layer), "runs of 3")
    refused(lambda: kernel(LoSparse(1, "1/2"), replace(layer, weight=layer.weight / 0)), "weight with nan")
