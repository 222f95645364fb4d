from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels import _shared
from compcomp.kernels.wanda import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import Magnitude, Wanda
from tests.helpers import DEVICES, HALVES, refused, tensors


def published(weight: torch.Tensor, norms: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """The mask of what the released code keeps: |W| * sqrt(scaler_row), a stable sort, the first go."""
    metric = (weight.abs() * norms.sqrt()).reshape(-1, size)
    order = metric.sort(dim=-1, stable=True).indices[:, :count]
    kept = torch.ones_like(metric, dtype=torch.bool).scatter_(1, order, False)
    return kept.reshape(weight.shape)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("pattern", "count", "size"), [("unstructured", 32, 64), ("2:4", 2, 4), ("4:8", 4, 8)])
def test_against_the_published_score(device: str, pattern: str, count: int, size: int) -> None:
    layer = tensors((24, 64), device, torch.float64)
    assert layer.gram is not None
    kept = published(layer.weight, layer.gram.diagonal(), count, size)
    after = kernel(Wanda(sparsity="1/2", pattern=pattern), layer)
    assert torch.equal(after.format.mask, kept)
    assert torch.equal(after.weight, layer.weight * kept)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(device: str, dtype: Any) -> None:
    layer = tensors((16, 64), device, dtype)
    assert layer.gram is not None
    after = kernel(Wanda(sparsity="1/2"), layer)
    exact = kernel(Wanda(sparsity="1/2"), LayerState.dense(layer.weight.double(), gram=layer.gram.double()))
    assert after.weight.dtype is dtype
    assert torch.equal(after.format.mask, exact.format.mask)


def test_small_weights_do_not_underflow() -> None:
    """(1e-23)^2 is zero in float32; the scores must still tell these weights apart."""
    weight = torch.tensor([[4e-23, 3e-23, 2e-23, 1e-23]])
    after = kernel(Wanda(sparsity="1/2"), LayerState.dense(weight, gram=torch.eye(4)))
    assert after.format.mask.tolist() == [[True, True, False, False]]


def test_equal_norms_give_magnitude_pruning() -> None:
    layer = replace(tensors((8, 16)), gram=torch.eye(16))
    expected = Magnitude("1/2", per="row").kernel()(Magnitude("1/2", per="row"), layer)
    assert torch.equal(kernel(Wanda("1/2"), layer).weight, expected.weight)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tensors((33, 64))
    whole = kernel(Wanda("1/2"), layer)
    monkeypatch.setattr(_shared, "MEMORY", 32 * 64 * 4)
    assert torch.equal(kernel(Wanda("1/2"), layer).weight, whole.weight)


def test_the_weight_it_is_given_stays() -> None:
    layer = tensors((4, 8), dtype=torch.float64)
    before = layer.weight.clone()
    kernel(Wanda("1/2"), layer)
    assert torch.equal(layer.weight, before)


def test_what_it_cannot_use_is_refused() -> None:
    layer = tensors((4, 8))
    assert layer.gram is not None
    refused(lambda: kernel(Wanda("1/2"), replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(Wanda("1/2"), replace(layer, gram=torch.eye(4))), "Gram matrix of shape 4x4")
    refused(lambda: kernel(Wanda("1/2"), replace(layer, gram=layer.gram / 0)), "nan or infinite", "Gram")
    refused(lambda: kernel(Wanda("1/2"), replace(layer, weight=layer.weight / 0)), "nan or infinite", "weight")
