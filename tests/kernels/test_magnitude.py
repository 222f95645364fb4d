from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from compcomp.kernels import _shared
from compcomp.kernels.magnitude import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, Magnitude
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
def test_against_torch(device: str) -> None:
    """On data without ties, torch.nn.utils.prune drops the same weights."""
    layer = tensors((24, 40), device)
    module = torch.nn.Linear(40, 24, bias=False, device=device)
    module.weight = torch.nn.Parameter(layer.weight.clone())
    prune.l1_unstructured(module, "weight", amount=333)
    after = kernel(Magnitude(sparsity=Fraction(333, 960)), layer)
    assert torch.equal(after.weight, module.weight)
    assert torch.equal(after.format.mask, module.weight_mask.bool())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("pattern", "kept", "size"), [("2:4", 2, 4), ("1:8", 1, 8), ("3:4", 3, 4)])
def test_patterns_against_brute_force(device: str, pattern: str, kept: int, size: int) -> None:
    """Small whole numbers, so that ties are everywhere: a stable sort drops the lowest index first."""
    weight = torch.randint(-3, 4, (32, 64), generator=torch.Generator().manual_seed(1)).float()
    expected = weight.numpy().copy().reshape(-1, size)
    for group in expected:
        group[np.argsort(np.abs(group), kind="stable")[: size - kept]] = 0
    technique = Magnitude(sparsity=Fraction(size - kept, size), pattern=pattern)
    after = kernel(technique, LayerState.dense(weight.to(device)))
    assert after.weight.cpu().numpy().tolist() == expected.reshape(32, 64).tolist()
    assert after.format.mask.sum() == 32 * 64 * kept // size


@pytest.mark.parametrize("device", DEVICES)
def test_ties_all_and_a_count_that_floats_get_wrong(device: str) -> None:
    weight = torch.arange(1, 101, device=device, dtype=torch.float32)[None]
    assert int((kernel(Magnitude(sparsity=0.29), LayerState.dense(weight)).weight == 0).sum()) == 29
    weight = torch.tensor([[1.0, -1.0, 2.0, 1.0]], device=device)
    after = kernel(Magnitude(sparsity="1/4", ties="all"), LayerState.dense(weight))
    assert after.weight.tolist() == [[0, 0, 2, 0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("per", ["tensor", "row"])
def test_half_precision(device: str, dtype: Any, per: str) -> None:
    """16 bits make many ties; float64 holds the same values and must drop the same weights."""
    layer = tensors((16, 64), device, dtype)
    technique = Magnitude(sparsity="1/2", per=per)
    after = kernel(technique, layer)
    exact = kernel(technique, LayerState.dense(layer.weight.double()))
    assert after.weight.dtype is dtype
    assert torch.equal(after.weight.double(), exact.weight)
    assert torch.equal(after.format.mask, exact.format.mask)


@pytest.mark.parametrize("device", DEVICES)
def test_scores_of_the_dense_weights(device: str) -> None:
    layer = tensors((8, 16), device)
    technique = Magnitude("1/2", per="row", of="dense")
    start = AbsMax(bits=2).kernel()(AbsMax(bits=2), layer)
    after = kernel(technique, start)
    assert torch.equal(after.format.mask, kernel(Magnitude("1/2", per="row"), layer).format.mask)
    assert torch.equal(after.weight, start.weight * after.format.mask)


def test_masks_accumulate_and_the_grid_stays() -> None:
    start = AbsMax(bits=4).kernel()(AbsMax(bits=4), kernel(Magnitude(sparsity="1/2"), tensors((4, 8))))
    after = kernel(Magnitude(sparsity="1/4", pattern="3:4"), start)
    assert not (after.format.mask & ~start.format.mask).any()
    assert after.format.grid is start.format.grid


@pytest.mark.parametrize("technique", [Magnitude("1/2", per="row"), Magnitude("1/2", pattern="2:4")])
def test_chunks_do_not_show(technique: Magnitude, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tensors((33, 64))
    whole = kernel(technique, layer)
    monkeypatch.setattr(_shared, "MEMORY", 32 * 64 * 4)
    assert torch.equal(kernel(technique, layer).weight, whole.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    layer = tensors((4, 8))
    layer.weight[1, 2] = value
    refused(lambda: kernel(Magnitude(sparsity="1/2"), layer), "nan or infinite", "weight")


def test_what_does_not_fit_is_refused() -> None:
    refused(lambda: kernel(Magnitude("1/2", pattern="2:4"), tensors((4, 6))), "rows of 6")
    refused(lambda: kernel(Magnitude("1/2"), LayerState.dense(torch.ones(4))), "2 (out x in)")
    refused(lambda: kernel(Magnitude("1/2"), LayerState.dense(torch.ones(4, 4).int())), "floating point")
