from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels import _shared
from compcomp.kernels.ria import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import RIA
from tests.helpers import DEVICES, HALVES, refused, tensors


def published(weight: torch.Tensor, norms2: torch.Tensor, power: float) -> torch.Tensor:
    """The formula of the paper, with |x_j| up to a factor that all inputs share."""
    sizes = weight.abs()
    relative = sizes / sizes.sum(dim=0) + sizes / sizes.sum(dim=1).reshape(-1, 1)
    return relative * torch.sqrt(norms2 / 1000).reshape(1, -1) ** power


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("pattern", "per", "size"), [("unstructured", "tensor", 24 * 64), ("2:4", "tensor", 4)])
@pytest.mark.parametrize("power", ["0", "1/2", "1"])
def test_against_the_published_score(device: str, pattern: str, per: str, size: int, power: str) -> None:
    layer = tensors((24, 64), device, torch.float64)
    assert layer.gram is not None
    technique = RIA(sparsity="1/2", pattern=pattern, per=per, power=power)
    metric = published(layer.weight, layer.gram.diagonal(), float(technique.power)).reshape(-1, size)
    order = metric.sort(dim=-1, stable=True).indices[:, : size // 2]
    kept = torch.ones_like(metric, dtype=torch.bool).scatter_(1, order, False).reshape(24, 64)
    after = kernel(technique, layer)
    assert torch.equal(after.format.mask, kept)
    assert torch.equal(after.weight, layer.weight * kept)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(device: str, dtype: Any) -> None:
    layer = tensors((16, 64), device, dtype)
    assert layer.gram is not None
    after = kernel(RIA("1/2", per="row"), layer)
    exact = kernel(RIA("1/2", per="row"), LayerState.dense(layer.weight.double(), gram=layer.gram.double()))
    assert after.weight.dtype is dtype
    assert torch.equal(after.format.mask, exact.format.mask)


def test_dead_rows_columns_and_inputs() -> None:
    layer = tensors((4, 8), dtype=torch.float64)
    layer.weight[1], layer.weight[:, 2] = 0, 0
    assert layer.gram is not None
    layer.gram[5], layer.gram[:, 5] = 0, 0
    mask = kernel(RIA("1/2"), layer).format.mask
    assert not mask[1].any() and not mask[:, 2].any() and not mask[:, 5].any()  # 8 + 3 + 3 of 16


@pytest.mark.parametrize("technique", [RIA("1/2", per="row"), RIA("1/2", pattern="2:4")])
def test_chunks_do_not_show(technique: RIA, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tensors((33, 64), dtype=torch.float64)
    whole = kernel(technique, layer)
    monkeypatch.setattr(_shared, "MEMORY", 32 * 64 * 4)
    assert torch.equal(kernel(technique, layer).weight, whole.weight)


def test_the_weight_it_is_given_stays() -> None:
    layer = tensors((4, 8), dtype=torch.float64)
    before = layer.weight.clone()
    kernel(RIA("1/2"), layer)
    assert torch.equal(layer.weight, before)


def test_what_it_cannot_use_is_refused() -> None:
    layer = tensors((4, 8))
    refused(lambda: kernel(RIA("1/2"), replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(RIA("1/2"), replace(layer, weight=layer.weight / 0)), "nan or infinite", "weight")
    refused(lambda: kernel(RIA("1/2", pattern="2:4"), tensors((4, 6))), "rows of 6")
    assert kernel(RIA("1/2", power=0), replace(layer, gram=None)).format.mask.sum() == 16
