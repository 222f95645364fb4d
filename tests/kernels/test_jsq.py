from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels import _shared, absmax
from compcomp.kernels.jsq import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import JSQ, AbsMax
from tests.helpers import DEVICES, HALVES, refused


def drawn(shape: tuple[int, int], tokens: int = 50, device: str = "cpu", dtype: Any = torch.float64) -> LayerState:
    """A random layer with its inputs."""
    generator = torch.Generator().manual_seed(3)
    weight, inputs = torch.randn(shape, generator=generator), torch.randn(shape[1], tokens, generator=generator)
    inputs *= torch.rand(shape[1], 1, generator=generator) * 3
    return LayerState.dense(weight.to(device, dtype), inputs.to(device, dtype))


def formula(layer: LayerState, order: float, lam: float = 2.1) -> torch.Tensor:
    """The score, column by column with each one really left out."""
    weight, inputs = layer.weight.double(), layer.inputs.double()  # type: ignore[union-attr]
    scores = weight.abs() * torch.linalg.vector_norm(inputs, order, dim=1)
    for j in range(weight.shape[1]):
        kept = torch.arange(weight.shape[1]) != j
        kept = kept.to(weight.device)
        rest = weight[:, kept] @ inputs[kept]
        scores[:, j] += lam * (rest.amax(dim=1) - rest.amin(dim=1))
    return scores


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("pattern", "per", "size"), [("unstructured", "row", 32), ("unstructured", "tensor", 12 * 32), ("2:4", "row", 4)]
)
@pytest.mark.parametrize(("norm", "order"), [("l1", 1.0), ("max", float("inf")), ("l2", 2.0)])
def test_against_the_formula(device: str, pattern: str, per: str, size: int, norm: str, order: float) -> None:
    layer = drawn((12, 32), device=device)
    metric = formula(layer, order).reshape(-1, size)
    gone = metric.sort(dim=-1, stable=True).indices[:, : size // 2]
    kept = torch.ones_like(metric, dtype=torch.bool).scatter_(1, gone, False).reshape(12, 32)
    after = kernel(JSQ("1/2", 4, pattern=pattern, per=per, norm=norm, group=8), layer)
    expected = absmax.kernel(AbsMax(4, 8), replace(layer, weight=layer.weight * kept))
    assert torch.equal(after.format.mask, kept)
    assert torch.equal(after.weight, expected.weight)
    assert torch.equal(after.format.grid.step, expected.format.grid.step)  # type: ignore[union-attr]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_scored_in_float64(device: str, dtype: Any) -> None:
    layer = drawn((8, 32), device=device, dtype=dtype)
    assert layer.inputs is not None
    after = kernel(JSQ("1/2", 4), layer)
    exact = kernel(JSQ("1/2", 4), LayerState.dense(layer.weight.double(), layer.inputs.double()))
    assert after.weight.dtype is dtype
    assert torch.equal(after.format.mask, exact.format.mask)


@pytest.mark.parametrize("per", ["row", "tensor"])
def test_chunks_do_not_show(per: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = drawn((17, 32), tokens=41)
    technique = JSQ("1/2", 4, per=per)
    whole = kernel(technique, layer)
    monkeypatch.setattr(_shared, "MEMORY", 8 * 60 * 7)  # a few rows, tokens and columns at a time
    found = kernel(technique, layer)
    assert torch.equal(found.format.mask, whole.format.mask)
    assert torch.equal(found.weight, whole.weight)


def test_no_intermediate_result_is_larger_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 rows, 48 columns and 64 tokens would be 589,824 bytes at once."""
    layer, sizes, usual = drawn((24, 48), tokens=64), [], torch.addcmul

    def noted(*given: Any, **more: Any) -> torch.Tensor:
        sizes.append(8 * (result := usual(*given, **more)).numel())
        return result

    monkeypatch.setattr(_shared, "MEMORY", 2**16)
    monkeypatch.setattr(torch, "addcmul", noted)
    kernel(JSQ("1/2", 4, per="tensor"), layer)
    assert len(sizes) > 8 and max(sizes) <= 2**16


def test_what_it_is_given_stays() -> None:
    layer = drawn((4, 8))
    assert layer.inputs is not None
    before = layer.weight.clone(), layer.inputs.clone()
    kernel(JSQ("1/2", 4), layer)
    assert torch.equal(layer.weight, before[0]) and torch.equal(layer.inputs, before[1])


def test_what_it_cannot_use_is_refused() -> None:
    layer = drawn((4, 8))
    assert layer.inputs is not None
    refused(lambda: kernel(JSQ("1/2", 4), replace(layer, inputs=None)), "a Gram matrix alone")
    refused(lambda: kernel(JSQ("1/2", 4), replace(layer, inputs=None, gram=None)), "no inputs")
    refused(lambda: kernel(JSQ("1/2", 4), replace(layer, inputs=layer.inputs[:, :0])), "no inputs")
    refused(lambda: kernel(JSQ("1/2", 4), replace(layer, inputs=layer.inputs[:5])), "5 features")
    refused(lambda: kernel(JSQ("1/2", 4), replace(layer, inputs=layer.inputs / 0)), "nan or infinite", "inputs")
    refused(lambda: kernel(JSQ("1/2", 4, group=3), layer), "rows of 8")
    assert kernel(JSQ("1/2", 4), replace(layer, gram=None)).format.mask.sum() == 16
