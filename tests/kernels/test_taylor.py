from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compcomp.kernels import _shared
from compcomp.kernels.taylor import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import Taylor, TruncatedSVD
from tests.helpers import DEVICES, refused, tensors


def by_autograd(layer: LayerState, inputs: torch.Tensor) -> torch.Tensor:
    """|w g| with the gradient that torch computes of |W X|^2 / 2."""
    weight = layer.effective().clone().requires_grad_()
    ((weight @ inputs).square().sum() / 2).backward()
    assert weight.grad is not None
    return (weight.detach() * weight.grad).abs()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("corrected", [False, True])
def test_against_autograd(device: str, corrected: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, inputs = (torch.randn(s, generator=generator, dtype=torch.float64).to(device) for s in ((12, 8), (8, 30)))
    layer = LayerState.dense(weight, inputs)
    if corrected:
        moved = replace(layer, weight=weight * 2)
        layer = TruncatedSVD(1, residual=True).kernel()(TruncatedSVD(1, residual=True), moved)
    scores = by_autograd(layer, inputs)
    after = kernel(Taylor("1/4"), layer)
    gone = torch.zeros(96, dtype=torch.bool, device=device)
    gone[scores.ravel().argsort()[:24]] = True
    assert torch.equal(after.format.mask, ~gone.reshape(12, 8))
    rows = kernel(Taylor("1/3", group="row", size=2), layer).format.cut
    columns = kernel(Taylor("1/4", group="column"), layer).format.cut
    assert rows is not None and columns is not None
    assert not rows.rows.reshape(6, 2)[scores.reshape(6, 16).sum(dim=1).argsort()[:2]].any() and rows.rows.sum() == 8
    assert not columns.columns[scores.sum(dim=0).argsort()[:2]].any() and columns.columns.sum() == 6


@pytest.mark.parametrize("technique", [Taylor("1/2", pattern="2:4"), Taylor("1/2", "row"), Taylor("1/2", "column", 4)])
def test_chunks_do_not_show(technique: Taylor, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tensors((32, 64), dtype=torch.float64)
    whole = kernel(technique, layer)
    monkeypatch.setattr(_shared, "MEMORY", 32 * 64 * 4)
    assert torch.equal(kernel(technique, layer).weight, whole.weight)


def test_what_it_cannot_use_is_refused() -> None:
    layer = tensors((4, 8))
    refused(lambda: kernel(Taylor("1/2"), replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(Taylor("1/2", group="row", size=3), layer), "4 rows")
    refused(lambda: kernel(Taylor("1/2"), replace(layer, weight=layer.weight / 0)), "nan or infinite")
