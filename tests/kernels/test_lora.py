from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.lora import kernel
from compcomp.techniques import AbsMax, LoRA, Magnitude, TruncatedSVD
from tests.helpers import DEVICES, HALVES, loss, refused, tensors


def start(device: str = "cpu", dtype: Any = torch.float64) -> Any:
    return (Magnitude("1/2") >> AbsMax(bits=3)).kernel(tensors((12, 20), device, dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"merged": True}, {"merged": True, "masked": True}], ids=str)
def test_the_loss_falls_with_every_iteration(device: str, options: dict[str, bool]) -> None:
    layer = start(device)
    losses = [loss(layer), *(loss(kernel(LoRA(3, k, **options), layer)) for k in (1, 2, 3, 10, 200))]
    assert all(b < a for a, b in itertools.pairwise(losses))
    if not options.get("masked"):
        best = TruncatedSVD(rank=3, residual=True, metric="output")
        assert loss(best.kernel()(best, layer)) <= losses[-1] * (1 + 1e-9)


def test_gradients_are_those_of_autograd() -> None:
    """One iteration moves B along the gradient of the loss, as far as a search along that line finds best."""
    layer = start()
    technique = LoRA(2, 1)
    a = torch.from_numpy(technique.first(20)).double() / 1024
    b = torch.zeros(12, 2, dtype=torch.float64, requires_grad=True)
    error = layer.reference - layer.weight
    (((error - b @ a) @ layer.gram) * (error - b @ a)).sum().backward()
    found = kernel(technique, layer).format.factors.left
    ratio = found / -b.grad
    torch.testing.assert_close(ratio, ratio.mean().expand(12, 2), rtol=1e-9, atol=0)
    losses = [loss(replace(layer, weight=layer.weight + k * found @ a)) for k in (0.99, 1, 1.01)]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("device", DEVICES)
def test_a_masked_adapter_keeps_zeros(device: str) -> None:
    layer = start(device)
    after = kernel(LoRA(3, 5, merged=True, masked=True), layer)
    assert torch.equal(after.weight == 0, layer.weight == 0) and after.format.grid is None


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(dtype: Any) -> None:
    after = kernel(LoRA(3, 5), start(dtype=dtype))
    assert after.weight.dtype is after.format.factors.left.dtype is dtype


def test_what_is_wrong_is_refused() -> None:
    layer = tensors((4, 6))
    refused(lambda: kernel(LoRA(1, 1), replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(LoRA(1, 1), replace(layer, weight=layer.weight / 0)), "weight with nan")
