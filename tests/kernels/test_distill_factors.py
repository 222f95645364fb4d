from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.distill_factors import kernel
from compcomp.techniques import AbsMax, DistillFactors, TruncatedSVD
from tests.helpers import DEVICES, HALVES, loss, refused, tensors


def corrected(device: str, dtype: Any = torch.float64) -> Any:
    return (AbsMax(bits=3) >> TruncatedSVD(rank=3, residual=True)).kernel(tensors((12, 20), device, dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_sweeps_come_closer_to_the_best_of_that_rank(device: str) -> None:
    start = corrected(device)
    start = replace(start, gram=start.gram + torch.eye(20, dtype=torch.float64, device=device) / 10)
    losses = [loss(start), *(loss(kernel(DistillFactors(k), start)) for k in (1, 3, 300))]
    assert losses == sorted(losses, reverse=True) and losses[1] < 0.9 * losses[0]
    quantized = replace(start, format=replace(start.format, factors=None))
    best = TruncatedSVD(rank=3, residual=True, metric="output")
    assert losses[-1] == pytest.approx(loss(best.kernel()(best, quantized)), rel=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_never_loses(device: str, dtype: Any) -> None:
    start = corrected(device, dtype)
    after = kernel(DistillFactors(5), start)
    assert after.format.factors.left.dtype is dtype and torch.equal(after.weight, start.weight)
    assert loss(after) <= loss(start)
    again = kernel(DistillFactors(5), kernel(DistillFactors(100), after))
    assert loss(again) <= loss(after)


def test_without_factors_nothing_happens() -> None:
    start = tensors((4, 6))
    assert kernel(DistillFactors(), start) is start


def test_what_is_wrong_is_refused() -> None:
    layer = tensors((4, 6))
    refused(lambda: kernel(DistillFactors(), replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(DistillFactors(), replace(layer, reference=layer.weight / 0)), "reference with nan")
